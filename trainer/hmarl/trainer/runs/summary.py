"""What is said of a run in the end."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hmarl.runtime.bundle import replace_file
from hmarl.trainer.records.checkpoint import Counters, best_steps
from hmarl.trainer.records.metrics import evaluation_path, read_evaluation
from hmarl.trainer.records.problems import Problems, storing
from hmarl.trainer.runs.config import RunConfig


@dataclass(frozen=True)
class Began:
    """When training was started, or resumed.

    Attributes:
        steps: that had been done by then.
        at: on the monotonic clock, seconds.
    """

    steps: int
    at: float

    def elapsed_s(self) -> float:
        """How long it has gone on since."""
        return time.monotonic() - self.at


def _evaluated(directory: Path, steps: int | None) -> dict[str, Any]:
    """After how many steps, and by name what each way of playing came to; empty where that is not known."""
    if steps is None or not (path := evaluation_path(directory, steps)).exists():
        return {}
    return {"steps": steps, "teams": read_evaluation(path)}


def write_summary(
    directory: Path,
    config: RunConfig,
    counters: Counters,
    began: Began,
    wall_s: float,
    problems: Problems,
    rollouts: Mapping[str, Any],
) -> dict[str, Any]:
    """Write summary.json.

    Args:
        directory: of the run.
        config: of the run.
        counters: where it stands.
        began: whence its times are counted.
        wall_s: how long it went on since.
        problems: what failed beside training.
        rollouts: what is said of the workers that collected; empty without them.

    Returns:
        The summary.

    Raises:
        StorageError: it could not be written.
    """
    steps, final = counters.steps - began.steps, evaluation_path(directory, counters.steps)
    summary = {
        "algorithm": config.algorithm,
        "environment": config.environment,
        "seed": config.run_settings().seed,
        "steps": counters.steps,
        "updates": counters.update,
        "episodes": counters.episodes,
        "best_return": counters.best_return,
        "best": _evaluated(directory, best_steps(directory / "checkpoints")),
        "final": read_evaluation(final) if final.exists() else {},
        "problems": problems.told(),
        "resumed_at": began.steps,
        "wall_s": wall_s,
        "steps_per_s": steps / wall_s if wall_s > 0 and steps else None,
        **({"rollouts": dict(rollouts)} if rollouts else {}),
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "torch": torch.__version__,
    }
    with storing():
        replace_file(directory / "summary.json", (json.dumps(summary, indent=1, default=str) + "\n").encode())
    return summary
