"""Algorithms compared over tasks and runs, as rliable does: aggregates, profiles, curves, who improves on whom.

Scores are made comparable between tasks first: of each task one value counts as 0, another as 1. Intervals are 95 %
percentiles of the stratified bootstrap, which draws runs anew within each task.
Source: Agarwal et al. 2021, "Deep RL at the edge of the statistical precipice"; Gorsane et al. 2022 for MARL.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hmarl.sdk.evaluation.marl_eval import Results, RunCurve
from hmarl.sdk.evaluation.statistics import IntervalEstimate, interval_estimates, iqm, rliable_modules

RESAMPLES = 2000
_POINTS = 21  # of curves
_THRESHOLDS = np.linspace(0.0, 1.0, 51)
_SEED = 0

AGGREGATES = {"IQM": "aggregate_iqm", "median": "aggregate_median", "mean": "aggregate_mean",
              "optimality gap": "aggregate_optimality_gap"}  # fmt: skip


@dataclass(frozen=True)
class Band:
    """A curve with its interval, each [points]."""

    values: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """What algorithms come to over all tasks that they have in common.

    Attributes:
        algorithms: their names.
        tasks: that are counted.
        left_out: tasks that not all algorithms have a run on.
        runs: by algorithm, how many of each task are counted.
        aggregates: by algorithm, by name of the aggregate.
        thresholds: [points] of the profiles, in normalised scores.
        profiles: by algorithm, the share of runs above each threshold.
        shares: [points] of the curves, in shares of the tasks' budgets, from where all runs have been evaluated. A
            task's budget ends with the run that ends first; runs of unknown steps have been evaluated at its end.
        curves: by algorithm, IQM of the normalised scores.
        improvement: by pair, the probability that the first one's run is better than the second one's.
    """

    algorithms: tuple[str, ...]
    tasks: tuple[str, ...]
    left_out: tuple[str, ...]
    runs: Mapping[str, int]
    aggregates: Mapping[str, Mapping[str, IntervalEstimate]]
    thresholds: np.ndarray
    profiles: Mapping[str, Band]
    shares: np.ndarray
    curves: Mapping[str, Band]
    improvement: Mapping[tuple[str, str], IntervalEstimate]


def compare(
    results: Results, ranges: Mapping[str, tuple[float, float]] | None = None, resamples: int = RESAMPLES
) -> Comparison | None:
    """Compare all algorithms; None where no task is common to all of them.

    Args:
        results: curves of their runs. The last value of each counts.
        ranges: by task, the values that count as 0 and 1; where a task has none, its lowest and highest value in all
            evaluations of all runs.
        resamples: of the bootstrap.

    Raises:
        MissingExtraError: rliable is not installed.
    """
    algorithms = results.algorithms()
    tasks = [task for task, of in results.curves.items() if all(of.get(name) for name in algorithms)]
    if not tasks or not algorithms:
        return None
    scaled = {task: _Scaled.of(results.curves[task], (ranges or {}).get(task)) for task in tasks}
    runs = {name: min(len(results.curves[task][name]) for task in tasks) for name in algorithms}
    budgets = {task: _budget([c for of in results.curves[task].values() for c in of]) for task in tasks}
    first = max(_share(c, budgets[task]) for task in tasks for of in results.curves[task].values() for c in of)
    shares = np.linspace(min(1.0, float(first)), 1.0, _POINTS)
    scores: dict[str, np.ndarray] = {}  # [runs, tasks]
    series: dict[str, np.ndarray] = {}  # [runs, tasks, points]
    for name in algorithms:
        counted = {task: results.curves[task][name][: runs[name]] for task in tasks}
        scores[name] = np.array([[scaled[task](c.values[-1]) for c in counted[task]] for task in tasks]).T
        series[name] = np.array(
            [[scaled[task](held(c, shares * budgets[task])) for c in counted[task]] for task in tasks]
        ).transpose(1, 0, 2)
    return Comparison(
        algorithms=tuple(algorithms),
        tasks=tuple(tasks),
        left_out=tuple(task for task in results.curves if task not in tasks),
        runs=runs,
        aggregates=_aggregates(scores, resamples),
        thresholds=_THRESHOLDS,
        profiles=_profiles(scores, resamples),
        shares=shares,
        curves=_curves(series, resamples),
        improvement=_improvement(scores, resamples),
    )


def _budget(curves: Sequence[RunCurve]) -> float:
    """Steps of a task that all its runs have taken; 0 where those of none are known."""
    return float(min((curve.steps[-1] for curve in curves if curve.steps[-1]), default=0))


def _share(curve: RunCurve, budget: float) -> float:
    """The share of a budget from which a run has been evaluated; all of it where its steps are unknown."""
    return float(curve.steps[0] / budget) if curve.steps[-1] else 1.0


@dataclass(frozen=True)
class _Scaled:
    """Values of a task as scores: ``low`` is 0, ``high`` is 1."""

    low: float
    high: float

    @classmethod
    def of(cls, curves: Mapping[str, Sequence[RunCurve]], known: tuple[float, float] | None) -> _Scaled:
        if known is not None:
            return cls(*known)
        values = np.concatenate([curve.values for runs in curves.values() for curve in runs])
        return cls(float(values.min()), float(values.max()))

    def __call__(self, values: Any) -> Any:
        span = self.high - self.low
        return (np.asarray(values, np.float64) - self.low) / (span if span else 1.0)


def held(curve: RunCurve, steps: np.ndarray) -> np.ndarray:
    """[points] the value of the last evaluation at or before each number of steps; before the first one, its value."""
    at = np.searchsorted(curve.steps, steps + 1e-9, side="right") - 1
    return np.asarray(curve.values[np.maximum(at, 0)])


def _estimates(scores: Mapping[str, Any], function: Callable[..., Any], resamples: int) -> tuple[Any, Any]:
    library, _ = rliable_modules()
    return interval_estimates(
        library, dict(scores), function, reps=resamples, random_state=np.random.RandomState(_SEED)
    )


def _aggregates(scores: Mapping[str, np.ndarray], resamples: int) -> dict[str, dict[str, IntervalEstimate]]:
    _, metrics = rliable_modules()
    functions = [getattr(metrics, name) for name in AGGREGATES.values()]
    values, intervals = _estimates(scores, lambda x: np.array([function(x) for function in functions]), resamples)
    return {
        name: {
            aggregate: IntervalEstimate(float(values[name][at]), *map(float, intervals[name][:, at]))
            for at, aggregate in enumerate(AGGREGATES)
        }
        for name in scores
    }


def _bands(scores: Mapping[str, Any], function: Callable[..., Any], resamples: int) -> dict[str, Band]:
    values, intervals = _estimates(scores, function, resamples)
    return {name: Band(np.asarray(values[name]), intervals[name][0], intervals[name][1]) for name in scores}


def _profiles(scores: Mapping[str, np.ndarray], resamples: int) -> dict[str, Band]:
    """Share of all runs whose score is above each threshold."""
    return _bands(scores, lambda x: (x[..., None] > _THRESHOLDS).mean((0, 1)), resamples)


def _curves(series: Mapping[str, np.ndarray], resamples: int) -> dict[str, Band]:
    return _bands(series, lambda x: iqm(x.reshape(-1, x.shape[-1]), axis=0), resamples)


def _improvement(scores: Mapping[str, np.ndarray], resamples: int) -> dict[tuple[str, str], IntervalEstimate]:
    _, metrics = rliable_modules()
    found: dict[tuple[str, str], IntervalEstimate] = {}
    for first, second in itertools.combinations(scores, 2):
        pair = {"pair": (scores[first], scores[second])}
        values, intervals = _estimates(pair, metrics.probability_of_improvement, max(1, resamples // 4))
        value, (low, high) = float(np.squeeze(values["pair"])), map(float, np.ravel(intervals["pair"]))
        found[first, second] = IntervalEstimate(value, low, high)
        found[second, first] = IntervalEstimate(1 - value, 1 - high, 1 - low)
    return found
