"""Percentiles of a control loop's times, counted in constant memory, against NumPy's of the times themselves."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from hmarl.sdk.control.histogram import QUANTILES, Histogram

GENERATOR = np.random.default_rng(0)
SAMPLES = {
    "log-normal, around 100 us": np.exp(GENERATOR.normal(np.log(1e-4), 1.0, 20_000)),
    "uniform, to 10 ms": GENERATOR.uniform(0.0, 0.01, 20_000),
    "two humps": np.concatenate([GENERATOR.normal(1e-3, 1e-5, 9_900), GENERATOR.normal(0.2, 1e-3, 100)]),
    "nine decades": 10.0 ** GENERATOR.uniform(-7, 2, 5_000),
    "all alike": np.full(100, 0.005),
    "one": np.array([0.123]),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_percentiles_are_those_of_the_times_to_one_in_a_hundred(name: str) -> None:
    times, histogram = SAMPLES[name], Histogram()
    for time_s in times.tolist():
        histogram.record(time_s)
    found = histogram.distribution()
    for quantile, share in QUANTILES.items():
        exact = float(np.quantile(times, share, method="inverted_cdf"))
        assert getattr(found, quantile) == pytest.approx(exact, rel=0.01, abs=1e-9), quantile
    assert (found.count, found.min_s, found.max_s) == (len(times), times.min(), times.max())
    assert found.mean_s == pytest.approx(times.mean())
    assert found.std_s == pytest.approx(times.std(), rel=1e-4, abs=1e-9)


def test_it_does_not_grow() -> None:
    histogram = Histogram()

    def size() -> int:
        return sys.getsizeof(histogram._counts) + len(histogram._counts)

    before = size()
    for time_s in 10.0 ** GENERATOR.uniform(-12, 9, 20_000):
        histogram.record(time_s)
    assert size() == before < 64 * 1024
    assert histogram.distribution().count == 20_000


def test_what_is_out_of_range_is_counted_at_its_end() -> None:
    histogram = Histogram()
    for time_s in (-1.0, 0.0, 1e9):
        histogram.record(time_s)
    found = histogram.distribution()
    assert (found.count, found.min_s, found.p50_s, found.max_s) == (3, 0.0, 0.0, 1e9)


def test_of_no_times_all_is_zero() -> None:
    assert set(Histogram().distribution().as_dict().values()) == {0}
