"""What is an action of an agent, and what a session, a control loop and fallbacks make of what is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmarl.runtime.actions import ActionCheck
from hmarl.runtime.errors import InferenceError
from hmarl.runtime.manifest import ActionSpaceModel, BoxSpace, DiscreteSpace, MultiDiscreteSpace
from hmarl.sdk.clients.local_agent import LocalAgent
from hmarl.sdk.control.limits import ActionFilter, ActionLimits
from hmarl.sdk.fallback import Hold, NoOp, Situation, is_legal
from hmarl.sdk.spaces import AgentSpec
from literal_bundle import write_literal_bundle
from toy_bundle import ActionType

FIVE, BRANCHES, BOX = DiscreteSpace(n=5), MultiDiscreteSpace(n=[3, 2]), BoxSpace(low=[-1.0, 0.0], high=[1.0, 10.0])
MASK = np.array([True, True, False, True, True])

ACTIONS: list[tuple[ActionSpaceModel, Any]] = [
    (FIVE, 0), (FIVE, 4), (FIVE, np.int64(3)), (FIVE, np.array(3)), (FIVE, np.array(3, np.uint8)),
    (BRANCHES, np.array([0, 1])), (BRANCHES, np.array([1, 0])),
    (BOX, np.array([0.0, 5.0], np.float32)), (BOX, np.array([3.0, -5.0], np.float32)), (BOX, np.array([1, 2])),
    (BOX, np.array([1e308, 1e308])),
]  # fmt: skip
NONE: list[tuple[ActionSpaceModel, Any, str]] = [
    (FIVE, 5, "action: got 5, expected a choice from 0 to 4"),
    (FIVE, -1, "action: got -1, expected a choice from 0 to 4"),
    (FIVE, 2**62, f"action: got {2**62}, expected a choice from 0 to 4"),
    (FIVE, np.array(-1), "action: got -1, expected a choice from 0 to 4"),
    (FIVE, 2, "action: got 2, expected a choice that the action mask allows"),
    (FIVE, np.array(2.0), "action: got float64 (), expected integers ()"),
    (FIVE, True, "action: got bool (), expected integers ()"),
    (FIVE, None, "action: got object (), expected integers ()"),
    (FIVE, np.array([1]), "action: got int64 (1,), expected integers ()"),
    (BRANCHES, np.array([3, 0]), "action[0]: got 3, expected a choice from 0 to 2"),
    (BRANCHES, np.array([0, -1]), "action[1]: got -1, expected a choice from 0 to 1"),
    (BRANCHES, np.array([2, 0]), "action[0]: got 2, expected a choice that the action mask allows"),
    (BRANCHES, 1, "action: got int64 (), expected integers (2,)"),
    (BOX, np.array([0.0, np.nan], np.float32), "action[1]: got nan, expected finite numbers"),
    (BOX, np.array([-np.inf, 0.0], np.float32), "action[0]: got -inf, expected finite numbers"),
    (BOX, np.array([0.0], np.float32), "action: got float32 (1,), expected numbers (2,)"),
    (BOX, np.array(["a", "b"]), "action: got <U1 (2,), expected numbers (2,)"),
]


def mask_of(space: ActionSpaceModel) -> np.ndarray | None:
    return None if isinstance(space, BoxSpace) else MASK


@pytest.mark.parametrize(("space", "action"), ACTIONS)
def test_what_is_an_action_is_taken_everywhere(space: ActionSpaceModel, action: Any) -> None:
    mask = mask_of(space)
    assert ActionCheck(space).problem(action, mask) is None
    assert ActionCheck(space).problem(action) is None
    assert ActionFilter(ActionLimits(), AgentSpec("a", 1, space), 0.1).usable(action, mask)
    held = Situation(step=1, action_space=space, action_mask=mask, last_action=np.asarray(action), age_steps=1)
    assert Hold(expires_after_steps=1).decide(held) is held.last_action


@pytest.mark.parametrize(("space", "action", "said"), NONE)
def test_what_is_none_is_refused_everywhere_by_name(space: ActionSpaceModel, action: Any, said: str) -> None:
    mask = mask_of(space)
    assert ActionCheck(space).problem(action, mask) == said
    assert not ActionFilter(ActionLimits(), AgentSpec("a", 1, space), 0.1).usable(action, mask)
    assert not is_legal(action, space, mask)
    other = NoOp((1.0, 1.0) if isinstance(space, BoxSpace) else (1, 1) if isinstance(space, MultiDiscreteSpace) else 1)
    held = Situation(step=1, action_space=space, action_mask=mask, last_action=np.asarray(action), age_steps=1)
    np.testing.assert_array_equal(Hold(expires_after_steps=1, then=other).decide(held), other.action)
    unmasked = ActionCheck(space).problem(action)
    assert (unmasked is None) == said.endswith("the action mask allows")


@pytest.mark.parametrize(
    ("kind", "first", "said"),
    [
        ("discrete", [99, 0], "action: got 99, expected a choice from 0 to 4"),
        ("discrete", [2, 0], "action: got 2, expected a choice that the action mask allows"),
        ("multi_discrete", [0, 2], r"action\[1\]: got 2, expected a choice from 0 to 1"),
    ],
)
def test_a_policy_that_computes_no_action_of_its_own_is_not_obeyed(
    kind: ActionType, first: list[int], said: str, tmp_path: Path
) -> None:
    wrong, right = np.zeros(6, np.float32), np.zeros(6, np.float32)
    wrong[:2], right[:2] = first, 1
    with LocalAgent(write_literal_bundle(tmp_path / "b", kind), "agent_0") as agent:
        agent.reset(1)
        assert np.all(np.asarray(agent.act(right, MASK).action) == 1)
        for _ in range(2):
            with pytest.raises(
                InferenceError, match=rf"agent 'agent_0': step 1: .* no action that it has: {said}; none"
            ):
                agent.act(wrong, MASK)
        following = agent.act(right, MASK)
        assert (following.step, following.missed_steps, following.replayed) == (1, 0, False)


def test_numbers_past_a_bound_are_handed_on(tmp_path: Path) -> None:
    with LocalAgent(write_literal_bundle(tmp_path / "b", "box"), "agent_0") as agent:
        agent.reset(1)
        assert np.asarray(agent.act(np.full(6, -7.0, np.float32)).action).tolist() == [-7.0, -7.0]
