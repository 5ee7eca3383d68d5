"""Results as the MARL libraries exchange them: marl-eval's JSON, environment → task → algorithm → run → step.

Source: https://github.com/instadeepai/marl-eval, "Data Structure for Raw Experiment data". BenchMARL and Mava write it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hmarl.runtime.plain_json import read_json
from hmarl.sdk.errors import UsageError
from hmarl.sdk.files import write_text

Document = dict[str, dict[str, dict[str, dict[str, dict[str, Any]]]]]
"""environment → task → algorithm → run → step_k or absolute_metrics → metric → values; "step_count" of a step."""

ABSOLUTE = "absolute_metrics"
STEP_COUNT = "step_count"
# What a measure is called elsewhere; "success" by hmarl-eval up to 0.2.
NAMES: Mapping[str, tuple[str, ...]] = {
    "return": ("return", "mean_episode_return", "episode_return"),
    "success_rate": ("success_rate", "win_rate", "success"),
}

_COMPARED = frozenset(name for names in NAMES.values() for name in names)
_LARGEST = 1e100  # whose sums and differences are still finite


@dataclass(frozen=True)
class RunCurve:
    """A run by one measure.

    Attributes:
        steps: [E] environment steps of its evaluations, rising; 0 alone where they are unknown.
        values: [E] means of their episodes.
    """

    steps: np.ndarray
    values: np.ndarray


@dataclass
class Results:
    """Curves of runs, by task and algorithm, in the order in which they were added.

    Attributes:
        curves: task → algorithm → runs.
    """

    curves: dict[str, dict[str, list[RunCurve]]] = field(default_factory=dict)

    def add(self, document: Document, measures: Mapping[str, str], suffix: str = "") -> None:
        """Add what a document holds.

        Args:
            document: see ``read_marl_eval``.
            measures: by task the measure, "return" where a task is not named; tasks are called ``environment/task``.
            suffix: behind algorithms of a name that is there already, on whatever task and with or without a run.
        """
        before = {name for task in self.curves.values() for name in task}
        for environment, tasks in document.items():
            for name, algorithms in tasks.items():
                task = self._known(f"{environment}/{name}")
                known = self.curves.setdefault(task, {})
                for algorithm, runs in algorithms.items():
                    label = f"{algorithm}{suffix}" if algorithm in before else algorithm
                    found = [run_curve(run, measures.get(task, "return")) for run in runs.values()]
                    known.setdefault(label, []).extend(curve for curve in found if curve is not None)

    def _known(self, task: str) -> str:
        """The task as it is called already: some write all names in lower case."""
        return next((known for known in self.curves if known.lower() == task.lower()), task)

    def algorithms(self) -> list[str]:
        """All that have a run, in order."""
        return list(dict.fromkeys(name for task in self.curves.values() for name, runs in task.items() if runs))


def run_curve(run: Mapping[str, Any], measure: str) -> RunCurve | None:
    """A run's curve; None where it has no evaluation by that measure. A step_count of 0 says that it is unknown."""
    points: dict[int, float] = {}
    for name, step in run.items():
        values = next((step[known] for known in NAMES[measure] if step.get(known)), None)
        if name != ABSOLUTE and values is not None:
            points[int(step[STEP_COUNT])] = float(np.mean(values))
    if not points:
        return None
    steps = sorted(points)
    return RunCurve(np.array(steps), np.array([points[step] for step in steps]))


def read_marl_eval(path: Path, named: str) -> Document:
    """Read a document, and check that it has the shape.

    Args:
        path: of the file.
        named: how the user named it, e.g. ``--beside others.json``.

    Raises:
        UsageError: it cannot be read, is of another shape, or a step_count or a figure that is compared is no finite
            number; names the place.
    """
    try:
        document = read_json(path.read_bytes())
        _check(document, ())
    except OSError as error:
        raise UsageError(f"{named}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError) as error:
        expected = "expected marl-eval's JSON: environment, task, algorithm, run, step_k with step_count and metrics"
        raise UsageError(f"{named}: {error}; {expected}") from error
    return document  # type: ignore[no-any-return]


def _check(value: Any, place: Sequence[str]) -> None:
    """Refuse what has another shape, by a ValueError that names the place."""
    where = " / ".join(place) or "the document"
    if not isinstance(value, dict):
        raise ValueError(f"{where}: got {str(value)[:40]!r}, which is no object")
    if len(place) < 5:
        for name, each in value.items():
            _check(each, (*place, name))
        return
    if place[-1] != ABSOLUTE:
        _check_step_count(value.get(STEP_COUNT), where)
    for name, each in value.items():
        if name == STEP_COUNT:
            continue
        if not _are_numbers(each):
            raise ValueError(f"{where}: {name}: got {str(each)[:40]!r}, which is no list of numbers")
        for at, figure in enumerate(each) if name in _COMPARED else ():
            check_figure(figure, f"{where}: {name}[{at}]")


def check_figure(value: Any, where: str) -> None:
    """Refuse what no mean and no comparison can be made of.

    Args:
        value: that others wrote.
        where: it stands, for the message.

    Raises:
        ValueError: it is no number, NaN, infinite or too large.
    """
    if not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise ValueError(f"{where}: got {str(value)[:40]}, expected a finite number of at most {_LARGEST:g} in size")


def _check_step_count(count: Any, where: str) -> None:
    if not isinstance(count, int | float):
        raise ValueError(f"{where}: got no {STEP_COUNT}")
    if isinstance(count, bool) or not 0 <= count <= _LARGEST:
        raise ValueError(
            f"{where}: {STEP_COUNT}: got {str(count)[:40]}, expected a number from 0 to {_LARGEST:g} (0: unknown)"
        )


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(each, int | float) for each in values)


def write_marl_eval(path: Path, document: Document) -> None:
    """Write a document, whole or not at all."""
    write_text(path, json.dumps(document, indent=1) + "\n")
