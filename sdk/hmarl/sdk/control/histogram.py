"""Times counted in buckets: any number of them in constant memory, percentiles to within one in a hundred.

Buckets are those of HdrHistogram: as wide as one 64th to one 128th of what they hold, whatever its size. Smallest,
largest, sum and sum of squares are exact.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

_SUB_BITS = 7
_SUB_BUCKETS = 1 << _SUB_BITS  # of the first octave; the others have half as many
_HALF = _SUB_BUCKETS // 2
_LARGEST_NS = (1 << 50) - 1  # 13 days
_BUCKETS = (50 - _SUB_BITS) * _HALF + _SUB_BUCKETS
QUANTILES = {"p50_s": 0.5, "p90_s": 0.9, "p99_s": 0.99, "p999_s": 0.999}


@dataclass(frozen=True, slots=True)
class Distribution:
    """Many times in few numbers, in seconds; all zero where there were none.

    Attributes:
        count: how many.
        mean_s: their mean.
        std_s: their standard deviation.
        min_s: the smallest.
        p50_s: half of them are at most so long, to within one in a hundred; the others likewise.
        p90_s: nine in ten.
        p99_s: 99 in a hundred.
        p999_s: 999 in a thousand.
        max_s: the largest.
    """

    count: int
    mean_s: float
    std_s: float
    min_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    p999_s: float
    max_s: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


class Histogram:
    """Counts times; shorter than 0 is 0."""

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self._count = 0
        self._sum_s = 0.0
        self._squares = 0.0
        self._min_s = math.inf
        self._max_s = 0.0

    def record(self, seconds: float) -> None:
        """Count one."""
        seconds = seconds if seconds > 0.0 else 0.0
        self._counts[_bucket(int(seconds * 1e9))] += 1
        self._count += 1
        self._sum_s += seconds
        self._squares += seconds * seconds
        self._min_s = seconds if seconds < self._min_s else self._min_s
        self._max_s = seconds if seconds > self._max_s else self._max_s

    def distribution(self) -> Distribution:
        """What has been counted so far."""
        count = self._count
        if not count:
            return Distribution(0, *(0.0,) * 8)
        mean = self._sum_s / count
        std = math.sqrt(max(self._squares / count - mean * mean, 0.0))
        cumulative = np.cumsum(self._counts)
        return Distribution(
            count=count,
            mean_s=mean,
            std_s=std,
            min_s=self._min_s,
            max_s=self._max_s,
            **{name: self._quantile(cumulative, share) for name, share in QUANTILES.items()},
        )

    def _quantile(self, cumulative: np.ndarray, share: float) -> float:
        """The middle of the bucket in which the time lies that ``share`` of all do not exceed."""
        rank = max(1, math.ceil(share * int(cumulative[-1])))
        middle_s = _middle_ns(int(np.searchsorted(cumulative, rank))) / 1e9
        return min(max(middle_s, self._min_s), self._max_s)


def _bucket(ns: int) -> int:
    """Where a time is counted."""
    if ns < _SUB_BUCKETS:
        return ns
    if ns > _LARGEST_NS:
        return _BUCKETS - 1
    octave = ns.bit_length() - _SUB_BITS
    return octave * _HALF + (ns >> octave)


def _middle_ns(bucket: int) -> float:
    """The middle of a bucket."""
    if bucket < _SUB_BUCKETS:
        return float(bucket)
    octave = bucket // _HALF - 1
    low = (bucket - octave * _HALF) << octave
    return low + ((1 << octave) - 1) / 2.0
