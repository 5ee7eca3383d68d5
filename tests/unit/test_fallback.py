"""Fallbacks: what they decide, when they expire, and that they never leave the mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from hmarl.sdk.errors import StaleActionError, UsageError
from hmarl.sdk.fallback import Call, Fail, Hold, NoOp, Situation, Zero

FIVE = spaces.Discrete(5)
BRANCHES = spaces.MultiDiscrete([3, 2])
BOX = spaces.Box(np.array([-1.0, 2.0], np.float32), np.array([1.0, 10.0], np.float32))

BELOW = spaces.Box(-3.0, -1.0, (1,), np.float32)


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
    ("mask", "got"),
    [([True] * 5, "a list"), (np.ones(5, np.int64), r"int64 \(5,\)"), (np.ones(4, np.bool_), r"bool \(4,\)")],
)
def test_a_mask_that_is_none_of_the_space_is_refused(mask: Any, got: str) -> None:
    for space in (FIVE, BRANCHES):
        with pytest.raises(UsageError, match=rf"action_mask: got {got}, expected a NumPy array of bool \(5,\)"):
            Situation(step=1, action_space=space, action_mask=mask)
    assert Situation(step=1, action_space=BOX, action_mask=mask).action_mask is mask  # a Box has none to be wrong


@pytest.mark.parametrize(
    ("space", "mask", "expected"),
    [
        (FIVE, None, 0),
        (FIVE, [False, False, True, True, False], 2),
        (BRANCHES, None, [0, 0]),
        (BRANCHES, [False, True, True, True, False], [1, 0]),
        (BOX, None, [0.0, 2.0]),  # zero lies outside of the second component's bounds
        (BELOW, None, [-1.0]),
    ],
)
def test_zero_is_the_nearest_action_that_is_allowed(space: Any, mask: list[bool] | None, expected: Any) -> None:
    action = Zero().decide(situation(space, mask))
    np.testing.assert_array_equal(action, expected)
    assert action.shape == (space.shape or ())
    assert action.dtype == (np.float32 if isinstance(space, spaces.Box) else np.int64)


def test_no_op_gives_way_only_where_it_is_illegal() -> None:
    assert NoOp(4).decide(situation()) == 4
    assert NoOp(4).decide(situation(mask=[False, True, True, True, False])) == 1
    legal_second = [True, True, False, True, True]
    np.testing.assert_array_equal(NoOp((2, 1)).decide(situation(BRANCHES, legal_second)), [0, 1])
    with pytest.raises(UsageError, match=r"NoOp\.action: got 5, expected an action of"):
        NoOp(5).decide(situation())


def test_a_fixed_action_of_a_box_keeps_its_fractions() -> None:
    action = NoOp((0.5, 2.25)).decide(situation(BOX))
    assert (action.tolist(), action.dtype) == ([0.5, 2.25], np.float32)
    with pytest.raises(UsageError, match=r"NoOp\.action: got \[0\.5, 11\.0\], expected an action of"):
        NoOp((0.5, 11.0)).decide(situation(BOX))


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


def test_an_action_that_the_mask_allows_is_held_and_answered() -> None:
    hold = Hold(expires_after_steps=3)
    assert hold.decide(held(3, mask=[False, True, False, True, True])) == 3
    # Branches of three and two: the choices (2, 1) are at 2 and 4, (1, 0) at 1 and 3.
    only = [False, False, True, False, True]
    np.testing.assert_array_equal(hold.decide(held([2, 1], space=BRANCHES, mask=only)), [2, 1])
    np.testing.assert_array_equal(Call(lambda now: (2, 1)).decide(situation(BRANCHES, only)), [2, 1])
    with pytest.raises(StaleActionError):
        hold.decide(held([1, 1], space=BRANCHES, mask=only))
    with pytest.raises(StaleActionError):
        hold.decide(held([2, 0], space=BRANCHES, mask=only))


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
    for no_integer in (2.7, "left", [1.0]):
        with pytest.raises(UsageError, match=r"Call.function: got .*, expected an action of Discrete\(5\)"):
            Call(lambda now, answer=no_integer: answer).decide(situation())
    assert Call(lambda now: np.uint8(3)).decide(situation()) == 3
    assert Call(lambda now: [1, 3]).decide(situation(BOX)).dtype == np.float32
    with pytest.raises(StaleActionError, match="which the action mask excludes"):
        Call(lambda now: 0).decide(situation(mask=[False, True, True, True, True]))
