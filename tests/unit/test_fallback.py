"""Fallbacks: what they decide, when they expire, and that they never leave the mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from hmarl.sdk.clients.fallback import Call, Fail, Hold, NoOp, Situation, Zero
from hmarl.sdk.errors import StaleActionError, UsageError

FIVE = spaces.Discrete(5)
BRANCHES = spaces.MultiDiscrete([3, 2])
BOX = spaces.Box(np.array([-1.0, 2.0], np.float32), np.array([1.0, 10.0], np.float32))


def situation(space: Any = FIVE, mask: list[bool] | None = None, **values: Any) -> Situation:
    return Situation(
        step=7, action_space=space, action_mask=None if mask is None else np.array(mask), reason="gone", **values
    )


def held(action: Any, age_s: float = 0.1, age_steps: int = 1, **values: Any) -> Situation:
    return situation(last_action=np.asarray(action), age_s=age_s, age_steps=age_steps, **values)


def test_fail_says_which_step_and_why() -> None:
    with pytest.raises(StaleActionError, match="step 7: gone; the last fresh action is missing"):
        Fail().decide(situation())
    with pytest.raises(StaleActionError, match=r"the last fresh action is 0\.100 s old"):
        Fail().decide(held(3))


@pytest.mark.parametrize(
    ("space", "mask", "expected"),
    [
        (FIVE, None, 0),
        (FIVE, [False, False, True, True, False], 2),
        (BRANCHES, None, [0, 0]),
        (BRANCHES, [False, True, True, True, False], [1, 0]),
        (BOX, None, [0.0, 2.0]),  # zero lies outside of the second component's bounds
    ],
)
def test_zero_is_the_nearest_action_that_is_allowed(space: Any, mask: list[bool] | None, expected: Any) -> None:
    action = Zero().decide(situation(space, mask))
    np.testing.assert_array_equal(action, expected)
    assert action.shape == (space.shape or ())
    assert action.dtype == (np.float32 if space is BOX else np.int64)


def test_no_op_gives_way_only_where_it_is_illegal() -> None:
    assert NoOp(4).decide(situation()) == 4
    assert NoOp(4).decide(situation(mask=[False, True, True, True, False])) == 1
    legal_second = [True, True, False, True, True]
    np.testing.assert_array_equal(NoOp((2, 1)).decide(situation(BRANCHES, legal_second)), [0, 1])
    with pytest.raises(UsageError, match=r"NoOp\.action: got 5, expected an action of"):
        NoOp(5).decide(situation())


def test_hold_expires_by_seconds_and_by_steps() -> None:
    hold = Hold(expires_after_s=0.5, expires_after_steps=3)
    assert hold.decide(held(3, age_s=0.5, age_steps=3)) == 3
    for old in (held(3, age_s=0.51, age_steps=1), held(3, age_s=0.1, age_steps=4)):
        assert hold.expired(old)
        with pytest.raises(StaleActionError):
            hold.decide(old)
        assert Hold(expires_after_s=0.5, expires_after_steps=3, then=NoOp(1)).decide(old) == 1


def test_hold_has_nothing_to_repeat_at_first_and_never_an_illegal_action() -> None:
    hold = Hold(expires_after_steps=3, then=Zero())
    assert hold.decide(situation()) == 0
    assert hold.decide(held(3, mask=[False, True, False, False, True])) == 1


def test_only_an_expired_hold_that_ends_in_failure_forbids_rejoining() -> None:
    old = held(3, age_steps=9)
    assert not Hold(expires_after_steps=3).may_rejoin(old)
    assert Hold(expires_after_steps=3).may_rejoin(held(3, age_steps=3))
    assert Hold(expires_after_steps=3).may_rejoin(situation())
    assert Hold(expires_after_steps=3, then=Zero()).may_rejoin(old)
    assert not Hold(expires_after_steps=3, then=Hold(expires_after_steps=5)).may_rejoin(old)
    assert Fail().may_rejoin(old)


@pytest.mark.parametrize("limits", [{}, {"expires_after_s": 0.0}, {"expires_after_steps": -1}])
def test_hold_without_a_positive_limit_is_refused(limits: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="Hold"):
        Hold(**limits)


def test_call_is_checked() -> None:
    assert Call(lambda now: now.step - 4).decide(situation()) == 3
    with pytest.raises(UsageError, match=r"Call.function: got \[1, 2\], expected an action of"):
        Call(lambda now: [1, 2]).decide(situation())
    with pytest.raises(StaleActionError, match="which the action mask excludes"):
        Call(lambda now: 0).decide(situation(mask=[False, True, True, True, True]))
