"""How far a run is, as the files in its directory say."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmarl.trainer.records.checkpoint import described_steps
from hmarl.trainer.runs.directory import checkpoint_folder

_TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        steps: that are done.
        steps_per_s: environment steps a second since it was started or resumed, None where that is not known.
        value: mean return of its recent episodes, None where none has ended.
    """

    steps: int = 0
    steps_per_s: float | None = None
    value: float | None = None


def progress_of(directory: Path) -> Progress:
    """How far the run in a directory is."""
    row = _last_row(directory / "metrics.jsonl")
    return Progress(int(row.get("steps", 0)), row.get("steps_per_s"), row.get("return"))


def steps_done(directory: Path) -> int:
    """After how many steps a run goes on. The update whose evaluation was cut off has a checkpoint, and no line yet."""
    return max(progress_of(directory).steps, described_steps(checkpoint_folder(directory)))


def _last_row(path: Path) -> dict[str, Any]:
    """The last whole line of a run's metrics; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError):
            continue
    return {}
