"""Action spaces in two forms: Gymnasium's and the manifest's, which clients and fallbacks get by with."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from hmarl.runtime.bundle import BoxSpace, DiscreteSpace, MultiDiscreteSpace
from hmarl.sdk import AgentSpec, Call, NoOp, Situation, UsageError
from hmarl.sdk.spaces import ActionSpaceModel, gymnasium_space, space_model

FORMS: list[tuple[spaces.Space[Any], ActionSpaceModel, tuple[int, ...], int]] = [
    (spaces.Discrete(4), DiscreteSpace(n=4), (), 4),
    (spaces.MultiDiscrete([3, 2]), MultiDiscreteSpace(n=[3, 2]), (2,), 5),
    (
        spaces.Box(np.float32([-1.0, 0.1]), np.float32([0.5, 3.0])),
        BoxSpace(low=[-1.0, float(np.float32(0.1))], high=[0.5, 3.0]),
        (2,),
        0,
    ),
]


@pytest.mark.parametrize(("space", "model", "shape", "mask_size"), FORMS)
def test_an_agent_is_the_same_whatever_form_its_space_is_given_in(
    space: Any, model: ActionSpaceModel, shape: tuple[int, ...], mask_size: int
) -> None:
    assert (space_model(space), gymnasium_space(model)) == (model, space)
    first, second = AgentSpec("a", 3, space), AgentSpec("a", 3, model)
    for spec in (first, second, replace(second, id="a"), pickle.loads(pickle.dumps(second))):
        assert spec == first
        assert (spec.action_space, spec.action_space_model) == (space, model)
        assert (spec.action_shape, spec.mask_size) == (shape, mask_size)
    assert first.action_space is space
    assert second.action_space is second.action_space


def test_an_agent_needs_an_action_space() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'action_space'"):
        AgentSpec("a", 3)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'action_space'"):
        Situation(3)


@pytest.mark.parametrize(
    "space", [spaces.Discrete(3, start=1), spaces.MultiDiscrete([2, 2], start=[0, 1]), spaces.MultiBinary(3)]
)
def test_a_space_in_which_no_policy_can_act_is_named(space: spaces.Space[Any]) -> None:
    with pytest.raises(
        UsageError, match=r"agent 'a': action space: got .*, expected Discrete or MultiDiscrete that start at 0"
    ):
        _ = AgentSpec("a", 3, space).mask_size  # type: ignore[arg-type]


@pytest.mark.parametrize(("space", "model"), [form[:2] for form in FORMS])
@pytest.mark.parametrize("fallback", [NoOp, lambda action: Call(lambda situation: action)])
def test_a_fallback_takes_what_gymnasium_takes(
    space: Any, model: ActionSpaceModel, fallback: Callable[..., Any]
) -> None:
    """Numbers in and around the space, and shapes near its own; Gymnasium says which of them are actions."""
    generator = np.random.default_rng(0)
    kind = np.float32 if isinstance(space, spaces.Box) else np.int64
    candidates = [generator.uniform(-2.0, 4.0, space.shape).round(1).astype(kind) for _ in range(200)]
    candidates += [np.zeros((3,), kind), np.zeros((1,), kind), np.zeros((), kind), np.zeros((2, 1), kind)]
    if kind is np.float32:
        candidates += [np.float32([np.nan, 1.0]), space.low, space.high]
    taken = 0
    for candidate in candidates:
        situation = Situation(0, model)
        if space.contains(candidate if candidate.shape or kind is np.float32 else candidate[()]):
            np.testing.assert_array_equal(fallback(candidate).decide(situation), candidate)
            taken += 1
        else:
            with pytest.raises(UsageError, match="expected an action of"):
                fallback(candidate).decide(situation)
    assert 0 < taken < len(candidates)
