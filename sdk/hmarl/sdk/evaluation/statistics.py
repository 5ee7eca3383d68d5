"""The figures of an evaluation: interquartile mean, bootstrap intervals, and comparisons of several runs.

The base install computes IQM and intervals of one evaluation in NumPy; comparisons over several runs and algorithms
come from rliable (the ``eval`` extra), whose interquartile mean is the same one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.sdk.errors import MissingExtraError, UsageError

RESAMPLES = 2000
_CHUNK = 4_000_000  # numbers held at once while bootstrapping


def iqm(values: npt.ArrayLike, axis: int = -1) -> npt.NDArray[np.float64]:
    """Interquartile mean: the mean of the middle half.

    The floor(n/4) smallest and as many of the largest values are left out, as in rliable and ``scipy.stats.trim_mean``.

    Args:
        values: [..., n, ...].
        axis: the axis of length n, at least 1.

    Returns:
        float64, the axis removed.

    Raises:
        UsageError: there are no values.
    """
    ordered = np.sort(np.asarray(values, np.float64), axis=axis)
    count = ordered.shape[axis]
    if count == 0:
        raise UsageError("iqm: got no values, expected at least one")
    cut = count // 4
    middle = np.take(ordered, np.arange(cut, count - cut), axis=axis)
    return np.asarray(middle.mean(axis=axis))


def iqm_interval(
    values: npt.ArrayLike, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile-bootstrap confidence interval of the interquartile mean; see ``_interval``."""
    return _interval(iqm, values, confidence, resamples, seed)


def iqm_interval_of_runs(
    returns: Sequence[npt.ArrayLike], confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile-bootstrap confidence interval of the interquartile mean over the episodes of several trainings.

    Episodes of one training are no samples of what another one would have come to: runs are drawn anew, and of each run
    that was drawn its episodes. Of one run, the interval is over its episodes alone.

    Args:
        returns: per run [E], of equally many episodes.
        confidence: in (0, 1).
        resamples: bootstrap resamples.
        seed: of the resampling, so that equal values give an equal interval.

    Returns:
        (low, high).

    Raises:
        UsageError: runs of different numbers of episodes, or none.
    """
    if len({np.shape(of_run) for of_run in returns}) != 1:
        sizes = [np.size(of_run) for of_run in returns]
        raise UsageError(f"returns: got runs of {sizes} episodes, expected equally many")
    values = np.asarray(returns, np.float64)
    generator = np.random.default_rng(seed)
    runs, episodes = values.shape
    rows = generator.integers(0, runs, (resamples, runs, 1))
    columns = generator.integers(0, episodes, (resamples, runs, episodes))
    return _middle(iqm(values[rows, columns].reshape(resamples, -1)), confidence)


def mean_interval(
    values: npt.ArrayLike, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile-bootstrap confidence interval of the mean; see ``_interval``.

    Of the differences between two teams in the same episodes it is that of the paired difference.
    """
    return _interval(_mean, values, confidence, resamples, seed)


def _mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(values.mean(axis=-1))


def _interval(
    statistic: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]],
    values: npt.ArrayLike,
    confidence: float,
    resamples: int,
    seed: int,
) -> tuple[float, float]:
    """Percentile-bootstrap confidence interval of a statistic.

    Args:
        statistic: of the last axis.
        values: [n], one per episode, n at least 1.
        confidence: in (0, 1).
        resamples: bootstrap resamples.
        seed: of the resampling, so that equal values give an equal interval.

    Returns:
        (low, high).
    """
    array = np.asarray(values, np.float64)
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // array.size)
    found = [
        statistic(array[generator.integers(0, array.size, (min(rows, resamples - start), array.size))])
        for start in range(0, resamples, rows)
    ]
    return _middle(np.concatenate(found), confidence)


def _middle(found: npt.NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """Where that share of the resampled figures begins and ends."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(found, [tail, 1.0 - tail])
    return float(low), float(high)


@dataclass(frozen=True)
class IntervalEstimate:
    """A figure with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def aggregate_runs(
    scores: Mapping[str, npt.ArrayLike], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, IntervalEstimate]:
    """IQM over runs and tasks, with stratified bootstrap intervals (rliable).

    Args:
        scores: per algorithm [runs, tasks], e.g. the final return of every training seed on every task.
        resamples: bootstrap resamples.
        seed: of the resampling.

    Raises:
        MissingExtraError: rliable is not installed.
    """
    library, metrics = rliable_modules()
    values, intervals = interval_estimates(
        library,
        {name: np.asarray(score, np.float64) for name, score in scores.items()},
        lambda score: np.array([metrics.aggregate_iqm(score)]),
        reps=resamples,
        random_state=np.random.RandomState(seed),
    )
    return {name: IntervalEstimate(float(values[name][0]), *map(float, intervals[name][:, 0])) for name in scores}


def probability_of_improvement(
    better: npt.ArrayLike, worse: npt.ArrayLike, resamples: int = RESAMPLES, seed: int = 0
) -> IntervalEstimate:
    """Probability that a random run of the one scores higher than one of the other; ties count half (rliable).

    Args:
        better: [runs] or [runs, tasks].
        worse: the same for the other, any number of runs.
        resamples: bootstrap resamples.
        seed: of the resampling.

    Raises:
        MissingExtraError: rliable is not installed.
    """
    library, metrics = rliable_modules()
    pair = tuple(np.asarray(score, np.float64).reshape(len(np.asarray(score)), -1) for score in (better, worse))
    values, intervals = interval_estimates(
        library,
        {"pair": pair},
        metrics.probability_of_improvement,
        reps=resamples,
        random_state=np.random.RandomState(seed),
    )
    return IntervalEstimate(float(np.squeeze(values["pair"])), *map(float, np.ravel(intervals["pair"])))


def interval_estimates(library: Any, *arguments: Any, **options: Any) -> tuple[Any, Any]:
    """Rliable's estimates and intervals, without the warning of its bootstrap about rliable's own way to seed it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        values, intervals = library.get_interval_estimates(*arguments, **options)
    return values, intervals


def rliable_modules() -> tuple[Any, Any]:
    """Rliable's modules ``library`` and ``metrics``."""
    try:
        from rliable import library, metrics  # noqa: PLC0415 - part of the eval extra
    except ImportError as error:
        raise MissingExtraError(error.name or "rliable", "eval", "comparing runs") from error
    return library, metrics
