"""What counts as equal between two computations of a policy: in the outputs' own units, no looser than it has to be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hmarl.runtime.manifest import AgentModel, from_plain
from hmarl.runtime.parity import compare_outputs
from toy_bundle import toy_agent

RANGES = [
    (-1e-6, 1e-6), (-1.0, 1.0), (-100.0, 100.0), (-180.0, 180.0), (-1e4, 1e4), (-1e8, 1e8), (0.0, 0.1), (10.0, 1000.0),
]  # fmt: skip
TOLERANCE = 1e-5


def box_agent(*bounds: tuple[float, float]) -> AgentModel:
    """Acts in a Box; its mean is a diagnostic."""
    low, high = zip(*bounds, strict=True)
    entry = toy_agent("arm", observation_size=6, action="box", sizes=(8,), plain=True)
    shape = [len(bounds)]
    entry["action_space"] = {"type": "box", "low": list(low), "high": list(high)}
    entry["action"] |= {"shape": shape}
    entry["diagnostics"] = [{"name": "action_mean", "shape": shape, "dtype": "float32", "meaning": ""}]
    return from_plain(AgentModel, entry)


def choosing_agent(observation_size: int = 6) -> AgentModel:
    """Chooses one of five, by logits that are a diagnostic."""
    shape: dict[str, Any] = {"observation_size": observation_size, "action": "discrete", "sizes": (8,)}
    diagnostics = [
        each for each in toy_agent("a", **shape, plain=False)["diagnostics"] if each["name"] == "action_logits"
    ]
    return from_plain(AgentModel, {**toy_agent("a", **shape, plain=True), "diagnostics": diagnostics})


def scaled(bounds: tuple[float, float], x: np.ndarray) -> np.ndarray:
    return (sum(bounds) / 2 + (bounds[1] - bounds[0]) / 2 * x).astype(np.float32)


def outputs(agent: AgentModel, x: np.ndarray) -> dict[str, np.ndarray]:
    """Action and mean [rows, D] of x in [-1, 1]."""
    space: Any = agent.action_space
    columns = [scaled(each, x[:, d]) for d, each in enumerate(zip(space.low, space.high, strict=True))]
    return {"action": np.stack(columns, axis=1), "action_mean": x.astype(np.float32)}


@pytest.mark.parametrize("bounds", RANGES)
def test_an_action_is_judged_by_its_range(bounds: tuple[float, float]) -> None:
    agent = box_agent(bounds, bounds)
    x = np.random.default_rng(0).uniform(-1.0, 1.0, (50, 2))
    expected = outputs(agent, x)
    rounded = compare_outputs(agent, {}, outputs(agent, x + 4e-6), expected, TOLERANCE)
    assert rounded.problems == []
    assert 2e-6 < rounded.error <= TOLERANCE
    wrong = {
        "a thousandth of the range": outputs(agent, x + 2e-3),
        "a few tolerances": outputs(agent, x + 5e-5),
        "swapped": outputs(agent, x[:, ::-1]),
        "not a number": outputs(agent, np.where(x == x[7, 1], np.nan, x)),
    }
    for what, got in wrong.items():
        for kept in ("action", "action_mean"):
            found = compare_outputs(agent, {}, {**expected, kept: got[kept]}, expected, TOLERANCE)
            assert found.problems, f"{what}: {kept}"
            assert found.error > TOLERANCE


def test_the_same_wrong_share_of_unlike_ranges_is_the_same_error() -> None:
    """One component's range is no excuse for another's."""
    agent = box_agent((-1e8, 1e8), (-1e-6, 1e-6))
    x = np.random.default_rng(0).uniform(-1.0, 1.0, (50, 2))
    expected = outputs(agent, x)
    errors = []
    for component in (0, 1):
        shifted = x.copy()
        shifted[:, component] += 1e-3
        got = {**expected, "action": outputs(agent, shifted)["action"]}
        found = compare_outputs(agent, {}, got, expected, TOLERANCE)
        assert len(found.problems) == 1
        errors.append(found.error)
    np.testing.assert_allclose(errors, 1e-3, rtol=0.15)


def test_bounds_far_off_zero_are_judged_by_the_float32s_that_are_there() -> None:
    """Between 1e6 and 1e6 + 1 lie sixteen steps: one is a rounding, two are not."""
    agent = box_agent((1e6, 1e6 + 1.0))
    expected = outputs(agent, np.zeros((1, 1)))
    for steps, problems in ((1, 0), (2, 1)):
        got = {**expected, "action": expected["action"] + np.float32(steps * 0.0625)}
        assert len(compare_outputs(agent, {}, got, expected, TOLERANCE).problems) == problems


def test_an_action_without_a_range_is_exact() -> None:
    agent = box_agent((0.5, 0.5))
    expected = outputs(agent, np.zeros((1, 1)))
    assert compare_outputs(agent, {}, expected, expected, TOLERANCE).error == 0.0
    got = {**expected, "action": expected["action"] + np.float32(1e-6)}
    assert compare_outputs(agent, {}, got, expected, TOLERANCE).problems


@pytest.mark.parametrize("size", [1.0, 50.0, 1e4, 1e6])
def test_a_near_tie_is_as_wide_as_scores_of_that_size_are_sure(size: float) -> None:
    agent = choosing_agent()
    scores = np.tile(np.array([[0.0, -size, size, size, 0.0]]), (2, 1))
    scores[0, 3] -= 1e-6 * size  # not to be told apart, summed in another order
    scores[1, 3] -= 1e-3 * size
    expected = {"action": np.array([2, 2]), "action_logits": scores.astype(np.float32)}
    got = {"action": np.array([3, 2]), "action_logits": scores.astype(np.float32)}
    tied = compare_outputs(agent, {}, got, expected, TOLERANCE)
    assert (tied.near_ties, tied.problems) == (1, [])
    apart = compare_outputs(agent, {}, {**got, "action": np.array([2, 3])}, expected, TOLERANCE)
    assert apart.near_ties == 0
    assert len(apart.problems) == 1


def test_long_sums_round_further() -> None:
    """An observation of a million numbers, summed in two orders."""
    agent = choosing_agent(2**20)
    terms = np.random.default_rng(0).normal(size=(2**20, 5)).astype(np.float32)
    one, other = np.cumsum(terms, axis=0)[-1:], np.cumsum(terms[::-1], axis=0)[-1:]
    assert np.abs(one - other).max() > 1e-5 + 1e-6 * np.abs(one).max()
    expected = {"action": one.argmax(1), "action_logits": one}
    assert compare_outputs(agent, {}, {**expected, "action_logits": other}, expected, TOLERANCE).problems == []
    wrong = {**expected, "action_logits": one * np.float32(1.001)}
    assert compare_outputs(agent, {}, wrong, expected, TOLERANCE).problems
