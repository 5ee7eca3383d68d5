"""MAPPO on vmas/navigation beside BenchMARL's, alternating, with the same network, batch, epochs and minibatches.

BenchMARL needs a virtual environment of its own::

    python3.11 -m venv peers/benchmarl
    peers/benchmarl/bin/pip install torch==2.13.0 benchmarl vmas==1.5.2
    HMARL_BENCHMARL_PYTHON=peers/benchmarl/bin/python make benchmark PYTEST_ARGS='-k benchmarl'
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from training_speed import frames_per_second, matrix_product_gflops

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

PYTHON = os.environ.get("HMARL_BENCHMARL_PYTHON")
ENVIRONMENTS, STEPS, MINIBATCHES = 64, 100, 16
# BenchMARL's own network and minibatches (400 frames).
SETTINGS = {
    "hidden_sizes": (256, 256),
    "critic_hidden_sizes": (256, 256),
    "activation": "tanh",
    "minibatches": MINIBATCHES,
    "critic_minibatches": MINIBATCHES,
    "gae_lambda": 0.9,
    "entropy_coefficient": 0.0,
}


def benchmarl_frames_per_s(epochs: int) -> float:
    numbers = [str(number) for number in (ENVIRONMENTS, STEPS, epochs, MINIBATCHES, 2)]
    command = [str(PYTHON), str(Path(__file__).parent / "peers/benchmarl_mappo.py"), *numbers]
    # Its threads spin between operations and starve one another on a shared machine; ours are told not to as well.
    environment = {**os.environ, "GOMP_SPINCOUNT": "5000"}
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return float(json.loads(output.splitlines()[-1])["frames_per_s"])


@pytest.mark.skipif(PYTHON is None, reason="HMARL_BENCHMARL_PYTHON does not name an interpreter with BenchMARL")
@pytest.mark.parametrize("epochs", [4, 45])  # 45 is BenchMARL's default
def test_mappo_beside_benchmarl(epochs: int, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(2)
    settings: dict[str, Any] = {**SETTINGS, "epochs": epochs, "critic_epochs": epochs}
    ours, theirs = [], []
    for _ in range(2):
        theirs.append(benchmarl_frames_per_s(epochs))
        ours.append(frames_per_second("mappo", "vmas/navigation", ENVIRONMENTS, STEPS, 2, **settings)[2])
    ratio = statistics.median(ours) / statistics.median(theirs)
    with capsys.disabled():
        print(f"\nMAPPO on navigation, {ENVIRONMENTS} x {STEPS} frames, {epochs} epochs x {MINIBATCHES} minibatches")
        print(f"hmarl {[round(x) for x in ours]} frames/s, BenchMARL {[round(x) for x in theirs]}: ratio {ratio:.2f}")
        print(f"matrix product {matrix_product_gflops():.0f} GFLOP/s")
    assert ratio > 0.5


# JaxMARL's recurrent MAPPO on 2s3z, compiled, on a two-core AMD EPYC machine; its training scripts are in no package.
JAXMARL_FRAMES_PER_S = 2084.0
RECURRENT = {
    "recurrent": True,
    "memory_size": 128,
    "hidden_sizes": (128,),
    "epochs": 4,
    "minibatches": 4,
    "critic_epochs": 4,
    "critic_minibatches": 4,
}


@pytest.mark.parametrize("chunk_length", [16, 128])  # 128 is the whole rollout, JaxMARL's
def test_recurrent_mappo_on_smax(chunk_length: int, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(2)
    rollout, update, total = frames_per_second("mappo", "smax/2s3z", 64, 128, 2, **RECURRENT, chunk_length=chunk_length)
    with capsys.disabled():
        print(f"\nrecurrent MAPPO on smax/2s3z, 64 x 128 frames, chunks of {chunk_length}, frames/s")
        print(f"rollout {rollout:,.0f}, update {update:,.0f}, total {total:,.0f}: {total / JAXMARL_FRAMES_PER_S:.2f} x")
        print(f"matrix product {matrix_product_gflops():.0f} GFLOP/s")
    assert total > 0
