"""What a study keeps of its finished runs, in small files: its page can be drawn from them without the runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hmarl.sdk.files import write_text
from hmarl.trainer.records.checkpoint import read_object
from hmarl.trainer.records.metrics import evaluation_path, read_metrics

_PLAYERS = ("local", "guider", "hierarchy")


@dataclass(frozen=True)
class Record:
    """The figures of a finished run.

    Attributes:
        steps_per_s: environment steps a second over the whole run, its evaluations included.
        metrics: of every update that ended in an evaluation: "steps", what the evaluation measured, the instructions'
            entropy.
        returns: [E] of the last evaluation's episodes, by who played.
        choices: [E] returns by how agents chose their instructions, where a comparison asks for it.
    """

    steps_per_s: float
    metrics: list[dict[str, Any]]
    returns: dict[str, list[float]]
    choices: dict[str, list[float]] = field(default_factory=dict)

    @property
    def judged_by(self) -> str:
        """Whose returns count: those of the deployed policies; of the whole team where nothing is deployed as it is."""
        return next((player for player in _PLAYERS if player in self.returns), next(iter(self.returns)))

    @property
    def final_returns(self) -> np.ndarray:
        """[E] returns of the last evaluation, of ``judged_by``."""
        return np.array(self.returns[self.judged_by])

    def measured(self, measure: str) -> str:
        """The name in ``metrics`` of a measure of ``judged_by``."""
        return f"evaluation/{self.judged_by}/{measure}"


def record_of(run: Path) -> Record:
    """Reads the figures of a finished run from its directory.

    Raises:
        CheckpointError: a file of the run is damaged.
    """
    rows = [{key: value for key, value in row.items() if _kept(key)} for row in read_metrics(run)]
    summary = read_object(run / "summary.json")
    evaluation = read_object(evaluation_path(run, summary["steps"]))
    return Record(
        steps_per_s=summary["steps_per_s"],
        metrics=[row for row in rows if any(key.startswith("evaluation/") for key in row)],
        returns={player: row["returns"] for player, row in evaluation.items()},
    )


def _kept(key: str) -> bool:
    return key in ("steps", "instruction_entropy") or key.endswith(("/return_mean", "/success_rate"))


def write_record(record: Record, path: Path) -> None:
    """Writes a record atomically."""
    write_text(path, json.dumps(asdict(record), separators=(",", ":")) + "\n")


def read_record(path: Path) -> Record:
    """Reads a record.

    Raises:
        CheckpointError: damaged.
    """
    return Record(**read_object(path))


def curve(records: Sequence[Record], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [E] and the metric [records, E] at the evaluations that all records have."""
    series = [{row["steps"]: row[key] for row in record.metrics if row.get(key) is not None} for record in records]
    steps = sorted(set.intersection(*(set(points) for points in series)))
    return np.array(steps), np.array([[points[step] for step in steps] for points in series])
