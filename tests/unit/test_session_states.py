"""Recurrent state from outside: a session goes on from what another one returned."""

from __future__ import annotations

import numpy as np
import pytest

from hmarl.runtime.bundle import Bundle
from hmarl.runtime.errors import ObservationError
from hmarl.runtime.session import Policy

LEGAL = np.ones(5, np.bool_)


def observation(step: int) -> np.ndarray:
    return np.random.default_rng(step).normal(size=6).astype(np.float32)


def test_a_session_for_each_step_is_one_for_all(toy_bundle: Bundle) -> None:
    policy = Policy(toy_bundle, "agent_0")
    whole = policy.session()
    whole.reset(3, sample=True)
    states: dict[str, np.ndarray] = {}
    for step in range(6):
        one = policy.session()
        one.reset(3, sample=True, first_step=step, states=states, next_states=True)
        got, wanted = one.act(observation(step), LEGAL), whole.act(observation(step), LEGAL)
        assert got.action == wanted.action
        states = {"state": got.diagnostics.pop("next_state")}
        assert got.diagnostics.keys() == wanted.diagnostics.keys()
        np.testing.assert_array_equal(got.diagnostics["action_logits"], wanted.diagnostics["action_logits"])


def test_only_the_next_states_can_be_asked_for(toy_bundle: Bundle) -> None:
    session = Policy(toy_bundle, "agent_0").session()
    session.reset(0, diagnostics=False, next_states=True)
    assert list(session.act(observation(0), LEGAL).diagnostics) == ["next_state"]
    session.reset(0)
    assert "next_state" not in session.act(observation(0), LEGAL).diagnostics


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ({"memory": np.zeros(8, np.float32)}, r"states: got unknown \['memory'\], agent 'agent_0' has \['state'\]"),
        ({"state": np.zeros(7, np.float32)}, r"state: got float32 \(7,\), expected float32 \(8,\)"),
        ({"state": np.zeros(8)}, r"state: got float64 \(8,\), expected float32 \(8,\)"),
        ({"state": np.full(8, np.nan, np.float32)}, "state: got NaN or infinity, expected finite numbers"),
    ],
)
def test_a_wrong_state_changes_nothing(toy_bundle: Bundle, states: dict[str, np.ndarray], said: str) -> None:
    policy = Policy(toy_bundle, "agent_0")
    session, other = policy.session(), policy.session()
    for each in (session, other):
        each.reset(1, sample=True)
        each.act(observation(0), LEGAL)
    with pytest.raises(ObservationError, match=said):
        session.reset(9, states=states)
    assert session.act(observation(1), LEGAL).action == other.act(observation(1), LEGAL).action
