"""What the safety filter of a control loop lets through, and when it says that it acted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hmarl.runtime.manifest import BoxSpace, DiscreteSpace, MultiDiscreteSpace
from hmarl.sdk import ActionLimits, AgentSpec, UsageError
from hmarl.sdk.control.limits import ActionFilter

ARM = AgentSpec("arm", 3, BoxSpace(low=[-1.0, 0.0], high=[1.0, 10.0]))
PERIOD_S = 0.1


def filtered(spec: AgentSpec = ARM, **limits: Any) -> ActionFilter:
    return ActionFilter(ActionLimits(**limits), spec, PERIOD_S)


def enforced(actions: ActionFilter, action: list[float], now_s: float) -> tuple[list[float], tuple[str, ...]]:
    allowed, limited = actions.enforce(np.array(action, np.float32), now_s)
    assert allowed.dtype == np.float32
    return [round(float(each), 5) for each in allowed], limited


def test_the_action_spaces_bounds_hold_without_being_asked_for() -> None:
    actions = filtered()
    assert enforced(actions, [0.5, 9.0], 0.0) == ([0.5, 9.0], ())
    assert enforced(actions, [-3.0, 11.0], 0.1) == ([-1.0, 10.0], ("bounds",))


def test_narrower_bounds_hold_and_wider_ones_do_not_widen() -> None:
    actions = filtered(low=[-0.5, -7.0], high=4.0)
    assert enforced(actions, [-1.0, 9.0], 0.0) == ([-0.5, 4.0], ("bounds",))
    assert enforced(actions, [1.0, 0.0], 0.1) == ([1.0, 0.0], ())
    assert enforced(actions, [2.0, -1.0], 0.2) == ([1.0, 0.0], ("bounds",))


def test_a_rate_is_in_units_per_second() -> None:
    actions = filtered(max_rate=[2.0, 10.0])
    assert enforced(actions, [0.0, 5.0], 0.0) == ([0.0, 5.0], ())  # the first one is free
    assert enforced(actions, [1.0, 5.5], 0.1) == ([0.2, 5.5], ("rate",))
    assert enforced(actions, [1.0, 0.0], 0.2) == ([0.4, 4.5], ("rate",))
    assert enforced(actions, [0.5, 4.0], 0.3) == ([0.5, 4.0], ())
    assert enforced(actions, [-7.0, 4.0], 0.4) == ([0.3, 4.0], ("bounds", "rate"))


def test_a_loop_that_was_held_up_makes_no_leap_and_one_that_hurries_no_faster_steps() -> None:
    actions = filtered(max_rate=2.0)
    enforced(actions, [0.0, 5.0], 0.0)
    assert enforced(actions, [1.0, 5.0], 60.0) == ([0.2, 5.0], ("rate",))
    assert enforced(actions, [1.0, 5.0], 60.01) == ([0.22, 5.0], ("rate",))
    assert enforced(actions, [1.0, 5.0], 60.01) == ([0.22, 5.0], ("rate",))


def test_the_first_action_goes_as_far_from_the_command_in_force_as_a_period_allows() -> None:
    actions = filtered(max_rate=2.0, initial=[1.0, 2.0])
    assert enforced(actions, [-1.0, 2.1], 0.0) == ([0.8, 2.1], ("rate",))
    outside = filtered(max_rate=2.0, high=0.5, initial=[1.0, 0.0])
    assert enforced(outside, [0.5, 0.0], 0.0) == ([0.8, 0.0], ("rate",))


def test_the_last_action_is_bounded_but_not_slowed_down() -> None:
    actions = filtered(max_rate=0.1, high=[1.0, 4.0])
    enforced(actions, [1.0, 0.0], 0.0)
    last, limited = actions.release(np.array([-1.0, 9.0], np.float32), 0.1)
    assert (last.tolist(), limited) == ([-1.0, 4.0], ("bounds",))
    assert enforced(actions, [-1.0, 4.0], 0.2) == ([-1.0, 4.0], ())  # and is what the next run goes on from


def test_what_is_no_action_is_not_usable() -> None:
    actions = filtered()
    assert actions.usable(np.array([5.0, 5.0], np.float32))
    for bad in ([np.nan, 0.0], [0.0, np.inf], [0.0], 0.0):
        assert not actions.usable(np.array(bad, np.float32))


@pytest.mark.parametrize("space", [DiscreteSpace(n=5), MultiDiscreteSpace(n=[3, 2])])
def test_discrete_actions_are_left_alone(space: Any) -> None:
    spec = AgentSpec("walker", 3, space)
    actions = filtered(spec)
    action = np.full(spec.action_shape, 1, np.int64)
    assert actions.usable(action)
    assert actions.enforce(action, 0.0) == (action, ())
    assert actions.release(action, 0.0) == (action, ())
    with pytest.raises(UsageError, match="agent 'walker': max_rate: got a limit, expected none: its actions are discr"):
        filtered(spec, max_rate=1.0)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"low": [1.0, 2.0, 3.0]}, r"agent 'arm': low: got \[1\.0, 2\.0, 3\.0\], expected a number or 2 of them"),
        ({"high": "fast"}, "agent 'arm': high: got 'fast', expected a number or 2 of them"),
        ({"low": float("nan")}, "agent 'arm': low: got nan"),
        ({"low": 2.0, "high": 1.0}, r"agent 'arm': limits: got low \[2\.0, 2\.0\] and high \[1\.0, 1\.0\]"),
        ({"high": -2.0}, r"agent 'arm': limits: got low \[-1\.0, 0\.0\] and high \[-2\.0, -2\.0\]"),
        ({"max_rate": [1.0, 0.0]}, r"agent 'arm': max_rate: got \[1\.0, 0\.0\], expected positive numbers"),
    ],
)
def test_limits_that_fit_nothing_are_refused(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        filtered(**limits)
