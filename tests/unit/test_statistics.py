"""Interquartile mean and bootstrap intervals against numbers worked out by hand, and against rliable."""

from __future__ import annotations

import numpy as np
import pytest

from hmarl.sdk.errors import UsageError
from hmarl.sdk.evaluation.statistics import (
    aggregate_runs,
    iqm,
    iqm_interval,
    iqm_interval_of_runs,
    probability_of_improvement,
)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0], 3.0),
        ([1.0, 2.0, 9.0], 4.0),  # fewer than four: nothing is cut
        ([100.0, 1.0, 3.0, -50.0], 2.0),  # one at each end
        ([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1000.0], 5.5),  # two at each end: mean of 4, 5, 6, 7
        ([5.0, 1.0, 2.0, 3.0, 100.0], 10.0 / 3.0),  # floor(5/4) = 1: mean of 2, 3, 5
    ],
)
def test_iqm_hand_computed(values: list[float], expected: float) -> None:
    assert float(iqm(values)) == pytest.approx(expected, rel=1e-15)


def test_iqm_works_along_the_last_axis_and_refuses_nothing() -> None:
    np.testing.assert_allclose(iqm([[1.0, 2.0, 3.0, 9.0], [0.0, 0.0, 4.0, 4.0]]), [2.5, 2.0])
    with pytest.raises(UsageError, match="got no values"):
        iqm([])


def test_interval_of_a_constant_is_that_constant() -> None:
    assert iqm_interval([2.5] * 7) == (2.5, 2.5)


def test_interval_hand_computed_for_two_values() -> None:
    # Resamples of (0, 1) have the means 0, 1/2 and 1 with probability 1/4, 1/2 and 1/4.
    assert iqm_interval([0.0, 1.0]) == (0.0, 1.0)
    assert iqm_interval([0.0, 1.0], confidence=0.4) == (0.5, 0.5)


def test_the_interval_of_runs_is_over_runs_and_of_one_run_over_its_episodes() -> None:
    # Of two runs that came to 0 and 1 whatever the episode, a quarter of the draws holds the one alone.
    apart = [[0.0] * 40, [1.0] * 40]
    assert iqm_interval_of_runs(apart) == (0.0, 1.0)
    low, high = iqm_interval(np.ravel(apart))
    assert 0.0 < low < high < 1.0, "of 80 independent episodes"
    assert iqm_interval_of_runs(apart, confidence=0.4) == (0.5, 0.5)
    values = np.random.default_rng(1).normal(size=40)
    np.testing.assert_allclose(iqm_interval_of_runs([values]), iqm_interval(values), atol=0.05)


@pytest.mark.parametrize("returns", [[], [[1.0], [1.0, 2.0]]])
def test_runs_of_different_lengths_have_no_interval(returns: list[list[float]]) -> None:
    with pytest.raises(UsageError, match="expected equally many"):
        iqm_interval_of_runs(returns)


def test_interval_narrows_and_is_reproducible() -> None:
    values = np.random.default_rng(1).normal(size=4000)
    few, many = iqm_interval(values[:40]), iqm_interval(values)
    assert few[0] < many[0] < float(iqm(values)) < many[1] < few[1]
    assert iqm_interval(values) == many
    # The IQM of a normal sample has about 1.09 times the standard error of the mean.
    assert many[1] - many[0] == pytest.approx(2 * 1.96 * 1.09 / np.sqrt(4000), rel=0.1)


def test_iqm_equals_rliable() -> None:
    metrics = pytest.importorskip("rliable.metrics")
    values = np.random.default_rng(2).normal(size=(37, 1))
    assert float(iqm(values[:, 0])) == pytest.approx(float(metrics.aggregate_iqm(values)), rel=1e-12)


def test_runs_are_aggregated_per_algorithm() -> None:
    pytest.importorskip("rliable")
    scores = {"high": [[10.0, 20.0], [12.0, 22.0], [11.0, 21.0]], "low": [[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]}
    estimates = aggregate_runs(scores, resamples=50)
    assert estimates["high"].value == pytest.approx(16.0)  # of 10, 11, 12, 20, 21, 22 the middle four
    assert estimates["high"].low <= 16.0 <= estimates["high"].high
    assert (estimates["low"].value, estimates["low"].low, estimates["low"].high) == (1.5, 1.5, 1.5)


def test_probability_of_improvement_hand_computed() -> None:
    pytest.importorskip("rliable")
    # Of the six pairs of (1, 3) against (0, 1, 2), four are won and one is tied.
    estimate = probability_of_improvement([1.0, 3.0], [0.0, 1.0, 2.0], resamples=50)
    assert estimate.value == pytest.approx(4.5 / 6.0)
    assert estimate.low <= estimate.value <= estimate.high
