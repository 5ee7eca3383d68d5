"""Environments that cannot be saved begin anew at every checkpoint: episodes that never end are warned of."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from training_runs import tiny_config, train

WARNING = "begin anew at every checkpoint, after 4 steps; their episodes have up to 5"


@pytest.mark.parametrize(
    ("environment", "run", "warnings"),
    [
        ("toy_environments:one_stream", {"rollout_length": 2, "checkpoint_interval": 2}, 1),
        ("toy_environments:one_stream", {"rollout_length": 2, "checkpoint_interval": 9, "evaluation_interval": 12}, 1),
        ("toy_environments:one_stream", {"rollout_length": 5, "checkpoint_interval": 1}, 0),
        ("toy_environments:masked_discrete", {"rollout_length": 2, "checkpoint_interval": 2}, 0),
    ],
)
def test_episodes_that_never_end_are_warned_of(
    environment: str, run: dict[str, int], warnings: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Four environments; an evaluation comes with a checkpoint."""
    config = tiny_config("mappo", environment, {}, {"evaluation_interval": 40, "environments": 4, **run})
    with caplog.at_level(logging.WARNING):
        train(config, tmp_path / "run")
    assert caplog.text.count(WARNING) == warnings
    if warnings:
        assert "run.checkpoint_interval" in caplog.text
