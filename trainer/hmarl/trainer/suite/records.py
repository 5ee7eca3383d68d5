"""What is kept of finished runs, in small files: pages and comparisons are drawn from them without the runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from hmarl.sdk.evaluation.marl_eval import check_figure
from hmarl.sdk.files import write_text
from hmarl.trainer.records.checkpoint import read_object
from hmarl.trainer.records.metrics import evaluation_path, read_metrics
from hmarl.trainer.records.problems import CheckpointError

_PLAYERS = ("local", "guider", "hierarchy")
_MODES = ("greedy", "sampled")


@dataclass(frozen=True)
class Best:
    """The evaluation of the checkpoint that evaluated best.

    Attributes:
        steps: after which it was written.
        returns: [E] of the episodes by which it was chosen, by who played.
        otherwise: mean return in the other mode, by who played in both.
    """

    steps: int
    returns: dict[str, list[float]]
    otherwise: dict[str, float]


@dataclass(frozen=True)
class Record:
    """The figures of a finished run. What records did not hold at first is empty in old ones.

    Attributes:
        steps_per_s: environment steps a second over the whole run, its evaluations included; None where it was resumed
            when no step was left to do.
        metrics: of every update that ended in an evaluation: "steps", what the evaluation measured, the instructions'
            entropy.
        returns: [E] of the last evaluation's episodes, by who played.
        choices: [E] returns by how agents chose their instructions, where a comparison asks for it.
        actions: how actions were chosen in them: greedy, sampled, or "" where that is not known.
        otherwise: mean return of the last evaluation in the other mode, by who played in both.
        best: of the best checkpoint, None where that is not known.
    """

    steps_per_s: float | None
    metrics: list[dict[str, Any]]
    returns: dict[str, list[float]]
    choices: dict[str, list[float]] = field(default_factory=dict)
    actions: str = ""
    otherwise: dict[str, float] = field(default_factory=dict)
    best: Best | None = None

    @property
    def judged_by(self) -> str:
        """Whose returns count: those of the deployed policies; of the whole team where nothing is deployed as it is."""
        return next((player for player in _PLAYERS if player in self.returns), next(iter(self.returns)))

    @property
    def final_returns(self) -> np.ndarray:
        """[E] returns of the last evaluation, of ``judged_by``."""
        return np.array(self.returns[self.judged_by])

    @property
    def other_mode(self) -> str:
        """What the mode is called in which the run is not judged, "" where it is not known."""
        return next((mode for mode in _MODES if self.actions and mode != self.actions), "")

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
    last = read_object(evaluation_path(run, summary["steps"]))
    return Record(
        steps_per_s=summary["steps_per_s"],
        metrics=[row for row in rows if any(key.startswith("evaluation/") for key in row)],
        returns=_returns(last),
        actions=next((row["actions"] for row in last.values() if "actions" in row), ""),
        otherwise=_otherwise(last),
        best=_best(run, summary),
    )


def _best(run: Path, summary: dict[str, Any]) -> Best | None:
    """The best checkpoint's evaluation, where the summary names it."""
    steps = (summary.get("best") or {}).get("steps")
    if steps is None or not (path := evaluation_path(run, steps)).exists():
        return None
    evaluation = read_object(path)
    return Best(steps, _returns(evaluation), _otherwise(evaluation))


def _returns(evaluation: dict[str, Any]) -> dict[str, list[float]]:
    """By who played, the returns of an evaluation."""
    return {player: row["returns"] for player, row in evaluation.items()}


def _otherwise(evaluation: dict[str, Any]) -> dict[str, float]:
    """By who played in both modes, the mean return in the one in which an evaluation does not judge."""
    return {player: row[mode]["return_mean"] for player, row in evaluation.items() for mode in _MODES if mode in row}


def _kept(key: str) -> bool:
    return key in ("steps", "instruction_entropy") or key.endswith(("/return_mean", "/success_rate"))


def write_record(record: Record, path: Path) -> None:
    """Writes a record atomically."""
    write_text(path, json.dumps(asdict(record), separators=(",", ":")) + "\n")


def read_record(path: Path) -> Record:
    """Reads a record, an old one too.

    Raises:
        CheckpointError: damaged, or no record, or a return of it is no finite number.
    """
    content = read_object(path)
    try:
        best = content.pop("best", None)
        record = Record(**content, best=None if best is None else Best(**best))
        _check_figures(record)
        return record
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (TypeError, AttributeError) as error:
        known = ", ".join(each.name for each in fields(Record))
        raise CheckpointError(f"{path}: {error}; expected a record with {known}") from error


def _check_figures(record: Record) -> None:
    """Refuse returns of which no figure can be made, by a ValueError that names the place."""
    parts = {"returns": record.returns, "choices": record.choices}
    if record.best is not None:
        parts["best: returns"] = record.best.returns
    for part, rows in parts.items():
        for player, returns in rows.items():
            for at, value in enumerate(returns):
                check_figure(value, f"{part}: {player}[{at}]")
    for at, row in enumerate(record.metrics):
        for key, value in row.items():
            if key.startswith("evaluation/") and value is not None:
                check_figure(value, f"metrics[{at}]: {key}")


def curve(records: Sequence[Record], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [E] and the metric [records, E] at the evaluations that all records have."""
    series = [{row["steps"]: row[key] for row in record.metrics if row.get(key) is not None} for record in records]
    steps = sorted(set.intersection(*(set(points) for points in series)))
    return np.array(steps), np.array([[points[step] for step in steps] for points in series])
