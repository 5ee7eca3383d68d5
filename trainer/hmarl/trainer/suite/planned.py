"""A run that is planned: what it is called, what it shows, and how it is trained."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hmarl.trainer.records.checkpoint import read_object


@dataclass(frozen=True)
class PlannedRun:
    """One run of many.

    Attributes:
        name: of its directory, its log and its record; what determines the run determines the name.
        label: of whoever learns: an algorithm, perhaps with settings.
        task: what is learnt, as pages call it.
        seed: of the run.
        steps: environment steps.
        words: of hmarl-train, but for ``--out``.
    """

    name: str
    label: str
    task: str
    seed: int
    steps: int
    words: tuple[str, ...]


def slug(text: str) -> str:
    """A text as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_.=+-]+", "-", text).strip("-")


def training_words(planned: PlannedRun, directory: Path) -> list[str]:
    """Of hmarl-train: a run from its last checkpoint, or from the start."""
    if (directory / "config.json").exists():
        return resuming_words(directory, planned.steps)
    return [*planned.words, "--out", str(directory)]


def resuming_words(directory: Path, steps: int) -> list[str]:
    """Of hmarl-train: go on until there are so many steps."""
    return ["--resume", str(directory), "--steps", str(steps)]


def ended_at(directory: Path) -> int | None:
    """After how many steps a run in that directory came to its end; None where it did not.

    Raises:
        CheckpointError: its summary is damaged.
    """
    path = directory / "summary.json"
    return int(read_object(path)["steps"]) if path.exists() else None


def has_ended(directory: Path) -> bool:
    """Whether a run in that directory came to an end."""
    return ended_at(directory) is not None
