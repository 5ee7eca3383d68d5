"""The algorithms learn: small budgets, several seeds, thresholds far from what a broken one reaches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hmarl.trainer.algorithms import ALGORITHMS
from hmarl.trainer.training import Run, make_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def final_return(algorithm: str, environment: str, steps: int, seed: int, folder: Path, **run: int) -> float:
    settings = {"steps": steps, "seed": seed, "evaluation_interval": steps, **run}
    training = Run.create(make_config(algorithm, environment, {}, settings, {}), folder / f"{algorithm}-{seed}")
    try:
        return float(training.train()["final"]["local"]["return_mean"])
    finally:
        training.close()


# Off-policy learning takes as many gradient steps as it is given: few here.
SPREAD_RETURNS = {"maven": -67.0}


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_simple_spread_improves_far_beyond_random_play(algorithm: str, tmp_path: Path) -> None:
    """Random play scores about -80, standing still about -74; nearly every algorithm passes -60 within 300k frames."""
    returns = [
        final_return(algorithm, "mpe/simple_spread", 300_000, seed, tmp_path, environments=64) for seed in (1, 2, 3)
    ]
    assert np.median(returns) > SPREAD_RETURNS.get(algorithm, -60.0), returns


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_sum_to_ten_is_solved(algorithm: str, tmp_path: Path) -> None:
    """Two agents must break a symmetry: every greedy team that has settled on one solution scores 1."""
    returns = [
        final_return(algorithm, "coordsum/sum-to-10", 100_000, seed, tmp_path, environments=64, rollout_length=8)
        for seed in (1, 2, 3)
    ]
    assert np.median(returns) == 1.0, returns
