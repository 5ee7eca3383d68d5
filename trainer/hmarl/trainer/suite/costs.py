"""What a suite's runs cost, as far as runs that are done tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hmarl.trainer.suite.planned import PlannedRun
from hmarl.trainer.suite.records import read_record
from hmarl.trainer.suite.results import record_path


@dataclass(frozen=True)
class Cost:
    """Of the runs of one label on one task.

    Attributes:
        label, task: whose they are.
        runs, done: how many there are, and how many have a record.
        steps: environment steps of each.
        left_s: seconds that the others take, one process after the other; None where none is done.
    """

    label: str
    task: str
    runs: int
    done: int
    steps: int
    left_s: float | None


def costs_of(runs: Sequence[PlannedRun], kept: Path) -> list[Cost]:
    """Of all labels and tasks, in order.

    Raises:
        CheckpointError: a record is damaged.
    """
    groups: dict[tuple[str, str], list[PlannedRun]] = {}
    for run in runs:
        groups.setdefault((run.label, run.task), []).append(run)
    costs = []
    for (label, task), group in groups.items():
        paths = [record_path(kept, run.name) for run in group]
        rates = [read_record(path).steps_per_s for path in paths if path.exists()]
        missing = [run for run, path in zip(group, paths, strict=True) if not path.exists()]
        known = [rate for rate in rates if rate]
        left_s = time_left(missing, sum(run.steps for run in missing), sum(known) / len(known) if known else None)
        costs.append(Cost(label, task, len(group), len(rates), group[0].steps, left_s))
    return costs


def time_left(runs: Sequence[PlannedRun], steps: int, rate: float | None) -> float | None:
    """Seconds that runs of one label on one task still take, one process after the other.

    Args:
        runs: that have not ended.
        steps: that they lack, in all.
        rate: steps/s of one of them, as it goes on beside those that the same process trains; None: not known.
    """
    if not steps:
        return 0.0
    return None if rate is None else steps / (rate * min(len(runs), runs[0].at_once))


def total_s(costs: Sequence[Cost]) -> float | None:
    """Of all together; None where that of one is not known."""
    left = [cost.left_s for cost in costs]
    return None if None in left else sum(each for each in left if each is not None)
