"""A run's directory: what may begin or go on in it, and what a kill left there."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch

from hmarl.runtime.bundle import remove_temporaries
from hmarl.sdk.errors import UsageError
from hmarl.trainer.records.checkpoint import Checkpoint, any_written, newest_checkpoint
from hmarl.trainer.runs.config import RunConfig


def checkpoint_folder(directory: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return directory / "checkpoints"


def resume_command(*directories: Path) -> str:
    """What to type to continue, with several at once."""
    return shlex.join(["hmarl-train", *(word for each in directories for word in ("--resume", str(each)))])


def resumable_checkpoint(directory: Path, device: torch.device) -> Checkpoint | None:
    """Where a run goes on; None where it was stopped before its first checkpoint.

    Raises:
        CheckpointError: it has had checkpoints, of which no whole one is left.
    """
    # Evaluations come after the first checkpoint, and show that there was one.
    if any_written(checkpoint_folder(directory)) or any(directory.glob("eval/*.json")):
        return newest_checkpoint(checkpoint_folder(directory), device)
    return None


def with_goal(config: RunConfig, steps: int | None, directory: Path, start: Checkpoint | None) -> RunConfig:
    """The configuration of a run that goes on, with another goal where one is given.

    Args:
        config: of the run.
        steps: the goal; None leaves it as it is.
        directory: of the run.
        start: where it goes on; None for the beginning.

    Raises:
        UsageError: the run has done more steps than that.
    """
    done = 0 if start is None else start.counters.steps
    # The last update may go beyond a goal, which can still be named again.
    if steps is None or steps == config.run["steps"]:
        return config
    if steps < done:
        raise UsageError(
            f"--steps: got {steps}, expected at least {done}, the steps that {directory} has done; leave --steps out, "
            f"or give {done} to end it where it stands"
        )
    return config.model_copy(update={"run": {**config.run, "steps": steps}})


def remove_leftovers(directory: Path) -> None:
    """Temporary files of a run that was killed; of the directory itself only those that are the run's own."""
    for name in ("config.json", "metrics.jsonl", "summary.json"):
        remove_temporaries(directory, name)
    for folder in ("checkpoints", "eval", "plots"):
        remove_temporaries(directory / folder)
