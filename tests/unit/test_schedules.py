"""A run tells its algorithm how far it has come, and schedules act on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hmarl.trainer.runs.run import Run
from training_runs import tiny_config

pytestmark = pytest.mark.usefixtures("single_thread")


def test_an_update_is_told_the_share_of_the_training_that_is_done(tmp_path: Path) -> None:
    run = Run.create(tiny_config("happo", "mpe/simple_spread"), tmp_path / "run")
    told, inner = [], run.algorithm.update

    def recording(rollout: Any, progress: float) -> dict[str, float]:
        told.append(progress)
        return inner(rollout, progress)

    run.algorithm.update = recording  # type: ignore[method-assign]
    run.train()
    run.close()
    assert told == [0.0, 0.25, 0.5, 0.75]


def test_a_linear_schedule_shrinks_the_steps_of_a_run(tmp_path: Path) -> None:
    """The first update is the same; later ones are not."""
    thetas = []
    for decay in ("none", "linear"):
        for steps in (40, 160):
            config = tiny_config(
                "happo", "mpe/simple_spread", {"learning_rate_decay": decay}, {"steps": steps, "evaluation_episodes": 1}
            )
            run = Run.create(config, tmp_path / f"{decay}-{steps}")
            run.train()
            thetas.append(run.algorithm.policies[0].theta.clone())
            run.close()
    constant_first, constant_last, linear_first, linear_last = thetas
    assert torch.equal(constant_first, linear_first)
    assert not torch.equal(constant_last, linear_last)
