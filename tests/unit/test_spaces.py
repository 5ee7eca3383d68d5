"""Spaces of agents: which are equal, and Boxes as float32 has them."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec, check_bounds, float32_box

RANDOM = np.random.default_rng(0)


def spec_of(*actions: spaces.Space) -> EnvironmentSpec:
    agents = tuple(AgentSpec(f"a{index}", 3, space) for index, space in enumerate(actions))
    return EnvironmentSpec("toy/toy", agents, 3, None, "sum")


def test_agents_with_unlike_bounds_are_no_group() -> None:
    """Also where the text of their spaces is the same: it leaves the middle of many bounds out."""
    wide = np.arange(1.0, 2001.0, dtype=np.float32)
    odd = wide.copy()
    odd[1000] = 2.0
    one, other = spaces.Box(-wide, wide), spaces.Box(-wide, odd)
    assert [group.agents for group in spec_of(one, other, one).groups] == [(0, 2), (1,)]
    many = [2] * 2000
    other_many = [*many[:1000], 3, *many[1001:]]
    choices = spec_of(spaces.MultiDiscrete(many), spaces.MultiDiscrete(other_many), spaces.Discrete(2))
    assert len(choices.groups) == 3


def test_float32_bounds_lie_within_the_environments_own() -> None:
    low = RANDOM.uniform(-5.0, 0.0, (20, 50))
    high = low + RANDOM.uniform(0.1, 5.0, (20, 50))
    box = float32_box("a", spaces.Box(low, high, dtype=np.float64))
    assert (box.dtype, box.shape) == (np.float32, (1000,))
    assert (box.low >= low.reshape(-1)).all()
    assert (box.high <= high.reshape(-1)).all()
    np.testing.assert_allclose(box.low, low.reshape(-1), rtol=1.2e-7)
    np.testing.assert_allclose(box.high, high.reshape(-1), rtol=1.2e-7)


def test_a_component_without_a_float32_between_its_bounds_gets_the_nearest() -> None:
    box = float32_box("a", spaces.Box(np.array([0.1, -1.0]), np.array([0.1, 1.0]), dtype=np.float64))
    np.testing.assert_array_equal(box.low, np.float32([0.1, -1.0]))
    np.testing.assert_array_equal(box.high, np.float32([0.1, 1.0]))


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (np.nan, 1.0, "unbounded action space .*low.0. is nan"),
        (-np.inf, 1.0, "unbounded action space .*low.0. is -inf"),
        (0.0, 1.8e38, "unbounded action space .*high.0. is 1.8e.38"),
        (2.0, 1.0, "low.0. is 2 and high.0. 1, expected low <= high"),
    ],
)
def test_bounds_between_which_nothing_can_be_scaled_are_named(low: float, high: float, message: str) -> None:
    box = spaces.Box(-1.0, 1.0, (1,), np.float64)
    box.low, box.high = np.array([low]), np.array([high])
    with pytest.raises(UsageError, match=f"agent 'arm': .*{message}"):
        check_bounds("arm", box)
