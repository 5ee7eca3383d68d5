"""What a run recorded, read again: the metrics of its updates, and its evaluations."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from hmarl.trainer.records.checkpoint import read_object

MetricRows = list[dict[str, Any]]


def read_metrics(run: Path) -> MetricRows:
    """The lines of a run's metrics.jsonl, without one that a kill cut off."""
    path, rows = run / "metrics.jsonl", []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            continue
    return rows


def recorded_update(run: Path, update: int) -> dict[str, float]:
    """What an update recorded of itself, without its evaluation; NaN is what was not finite, empty what is not there.

    Args:
        run: its directory.
        update: its number, from 1 on.
    """
    row = next((row for row in read_metrics(run) if row.get("update") == update), {})
    return {
        key: math.nan if value is None else value
        for key, value in row.items()
        if key not in ("update", "steps") and not key.startswith("evaluation")
    }


def evaluation_path(run: Path, steps: int) -> Path:
    """Where a run keeps what it found when it evaluated after so many steps."""
    return run / "eval" / f"step-{steps:012d}.json"


def evaluation_metric(team: str, figure: str) -> str:
    """What metrics.jsonl calls a figure of a team's evaluation."""
    return f"evaluation/{team}/{figure}"


def read_evaluation(path: Path) -> dict[str, dict[str, Any]]:
    """By name what each way of playing came to in an evaluation, without the returns of single episodes.

    Raises:
        CheckpointError: damaged.
    """
    return {name: {k: v for k, v in row.items() if k != "returns"} for name, row in read_object(path).items()}
