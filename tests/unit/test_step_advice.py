"""Advice on steps that have become too long: provoked, with its remedies, and silent where nothing is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from training_runs import new_algorithm

pytestmark = pytest.mark.usefixtures("single_thread")
ALGORITHMS = ("a2po", "haa2c", "happo", "ippo", "mappo")
# Small deviations, as long runs have them: the same change of the mean is a larger divergence.
LONG = {"learning_rate": 0.01, "epochs": 10, "initial_std": 0.01}


def updated(name: str, environment: str = "vmas/navigation", **settings: Any) -> str | None:
    """What is said of an update."""
    algorithm, rollout, collector = new_algorithm(name, environment, 4, 10, None, **settings)
    collector.collect(algorithm)
    return next(iter(algorithm.advice(algorithm.update(rollout, 0.0))), None)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_steps_that_are_too_long(name: str) -> None:
    advice = updated(name, **LONG)
    assert advice is not None
    assert advice.startswith("the agents' steps have become too long")
    for remedy in ("algorithm.learning_rate (now 0.01)", "algorithm.epochs (now 10)", "algorithm.learning_rate_decay"):
        assert remedy in advice
    # The remedy is one.
    assert updated(name, **LONG | {"learning_rate": 1e-5}) is None


@pytest.mark.parametrize("name", ALGORITHMS)
def test_nothing_is_said_of_an_ordinary_update(name: str) -> None:
    assert updated(name) is None


def test_remedies_are_those_that_the_settings_leave() -> None:
    advice = updated("happo", **LONG | {"epochs": 1, "learning_rate": 0.1}, learning_rate_decay="linear")
    assert advice is not None
    assert "algorithm.epochs" not in advice
    assert "learning_rate_decay" not in advice
