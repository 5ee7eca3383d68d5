"""What it is worth that a run keeps the memory of tensors that are gone (``run.keep_freed_memory``).

The same run with and without, in turn, each a process of its own that starts from its preset: seconds of an update,
and the most memory that it held. What is learnt is the same, bit for bit.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from training_speed import matrix_product_gflops

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

ALL_HEAR_ALL = "--set env.agents=30 --set algorithm.graph=all --set run.environments=32 --set run.rollout_length=50"
# Algorithm, task, what else is typed, frames of some updates.
CASES = (
    ("hcpo", "mpe/simple_speaker_listener", "--preset paper-mpe", 32_000),
    ("hatrpo", "mpe/simple_spread", "", 12_800),
    ("mappo", "mpe/simple_spread", "", 12_800),
    ("hcpo", "mamujoco/HalfCheetah-2x3", "", 32_000),
    ("magpo", "coordsum/3x10-30", "", 64_000),
    ("mappo", "smax/5m_vs_6m", "", 32_768),
    ("himpo", "lbfws/easy", ALL_HEAR_ALL, 4_800),
)
ROUNDS = 3
CHILD = """
from hmarl.trainer.commands.train import train_main
from training_speed import peak_gigabytes

try:
    train_main()
finally:
    print(peak_gigabytes())
"""


@dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        update_s: median of its updates after the first.
        gigabytes: the most that it held.
        learnt: what its updates said of themselves, times aside.
    """

    update_s: float
    gigabytes: float
    learnt: list[dict[str, float]]


def one_run(out: Path, name: str, task: str, more: str, steps: int, *, keep: bool) -> Measured:
    """A run in a fresh process."""
    quiet = ("run.threads=1", "run.evaluation_interval=1000000000", "run.evaluation_episodes=1", "run.loggers=none")
    settings = (*quiet, f"run.keep_freed_memory={str(keep).lower()}")
    command = [sys.executable, "-c", CHILD, name, "--env", task, "--steps", str(steps), "--seed", "7"]
    command += ["--out", str(out), *more.split(), *(part for setting in settings for part in ("--set", setting))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    updates = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    seconds = statistics.median(update["update_s"] for update in updates[1:])
    learnt = [{key: value for key, value in update.items() if not key.endswith("_s")} for update in updates]
    return Measured(seconds, float(done.stdout.splitlines()[-1]), learnt)


@pytest.mark.parametrize(("name", "task", "more", "steps"), CASES, ids=[f"{case[0]}-{case[1]}" for case in CASES])
def test_memory_speed(
    name: str,
    task: str,
    more: str,
    steps: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))
    kept: list[Measured] = []
    returned: list[Measured] = []
    for number in range(ROUNDS):
        for keep, runs in ((True, kept), (False, returned)):
            runs.append(one_run(tmp_path / f"{keep}{number}", name, task, more, steps, keep=keep))
    for run in (*kept, *returned):
        assert run.learnt == kept[0].learnt
    said = [
        f"{statistics.median(run.update_s for run in runs):.3f} s, "
        f"{statistics.median(run.gigabytes for run in runs):.2f} GB"
        for runs in (kept, returned)
    ]
    ratios = [f"{before.update_s / after.update_s:.2f}" for after, before in zip(kept, returned, strict=True)]
    with capsys.disabled():
        print(
            f"\n{name} on {task}: an update {said[0]}; returned {said[1]}; ratios {', '.join(ratios)} "
            f"at {matrix_product_gflops():.0f} GFLOP/s"
        )
