"""A run that is planned: what it is called, what it shows, and how it is trained."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hmarl.trainer.records.checkpoint import read_object
from hmarl.trainer.records.problems import CheckpointError


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
        threads: that it computes with.
        at_once: how many runs that differ in their seeds alone one process may train, this one among them.
    """

    name: str
    label: str
    task: str
    seed: int
    steps: int
    words: tuple[str, ...]
    threads: int = 1
    at_once: int = 1

    @property
    def shared_words(self) -> tuple[str, ...]:
        """Its words without the seed: those of all runs that differ in their seeds alone."""
        at = self.words.index("--seed")
        return self.words[:at] + self.words[at + 2 :]


def slug(text: str) -> str:
    """A text as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_.=+-]+", "-", text).strip("-")


def has_begun(directory: Path) -> bool:
    """Whether there is a run in that directory which can be gone on with."""
    return (directory / "config.json").exists()


def training_words(runs: Sequence[PlannedRun], directories: Sequence[Path]) -> list[str]:
    """Of hmarl-train: one run, or several that differ in their seeds alone, from the start or their last checkpoints.

    Args:
        runs: which either have all begun, or none of them.
        directories: theirs.
    """
    first = runs[0]
    if has_begun(directories[0]):
        return resuming_words(directories, first.steps)
    outs = [word for directory in directories for word in ("--out", str(directory))]
    if len(runs) == 1:
        return [*first.words, *outs]
    return [*first.shared_words, "--seeds", ",".join(str(run.seed) for run in runs), *outs]


def resuming_words(directories: Sequence[Path], steps: int) -> list[str]:
    """Of hmarl-train: go on until there are so many steps."""
    return [*(word for directory in directories for word in ("--resume", str(directory))), "--steps", str(steps)]


def ended_at(directory: Path) -> int | None:
    """After how many steps a run in that directory came to its end; None where it did not, or its summary is damaged:
    the run is gone on with, and writes it anew.
    """
    try:
        steps = read_object(directory / "summary.json").get("steps")
    except CheckpointError:
        return None
    return steps if type(steps) is int else None


def has_ended(directory: Path) -> bool:
    """Whether a run in that directory came to an end."""
    return ended_at(directory) is not None
