"""What a session takes as an array, and what it does when the policy computes numbers that are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gymnasium import spaces

from fragile_bundle import write_fragile_bundle
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.errors import HmarlError, InferenceError, NonFiniteError, StepOrderError, UsageError
from hmarl.runtime.session import Policy, PolicySession
from hmarl.sdk.clients.local_agent import LocalAgent
from hmarl.sdk.environment import Observation
from hmarl.sdk.evaluation.deployed_teams import BundleTeam
from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec
from toy_bundle import ActionType

LEGAL = np.ones(5, np.bool_)
TOO_LARGE = np.full(6, 3e38, np.float32)  # finite itself; a sum of such numbers is not


def observation(step: int) -> np.ndarray:
    return np.random.default_rng(step).normal(size=6).astype(np.float32)


class Special(np.ndarray):
    """As some simulators hand out: an array with an attribute more."""


def memory_map(array: np.ndarray, folder: Path) -> np.ndarray:
    file = folder / f"{len(list(folder.iterdir()))}.npy"
    np.save(file, array)
    return np.load(file, mmap_mode="r")


FORMS: dict[str, Callable[[np.ndarray, Path], np.ndarray]] = {
    "memory map": memory_map,
    "subclass": lambda array, _: array.view(Special),
    "read only": lambda array, _: memory_map(array, _)[...],
    "strided": lambda array, _: np.repeat(array, 2)[::2],
    "other byte order": lambda array, _: array.astype(array.dtype.newbyteorder()),
}


@pytest.mark.parametrize("form", FORMS)
def test_arrays_with_the_right_numbers_are_taken_in_every_form(toy_bundle: Bundle, tmp_path: Path, form: str) -> None:
    policy = Policy(toy_bundle, "agent_0")
    plain, other = policy.session(), policy.session()
    for each in (plain, other):
        each.reset(7, sample=True)
    mask = np.array([True, False, True, True, True])
    for step in range(4):
        want = plain.act(observation(step), mask)
        got = other.act(FORMS[form](observation(step), tmp_path), FORMS[form](mask, tmp_path))
        assert got.action == want.action
        np.testing.assert_array_equal(got.diagnostics["action_logits"], want.diagnostics["action_logits"])
    again = other.act(FORMS[form](observation(3), tmp_path), FORMS[form](mask, tmp_path), step=3)
    assert (again.replayed, again.action) == (True, want.action)


def test_a_local_agent_takes_them_too(toy_bundle: Bundle) -> None:
    with LocalAgent(toy_bundle, "agent_0") as plain, LocalAgent(toy_bundle, "agent_0") as other:
        plain.reset(7)
        other.reset(7)
        want = plain.act(observation(0), LEGAL)
        assert other.act(observation(0).astype(">f4"), LEGAL.view(Special)).action == want.action
        for seed in (1.5, None, "1", np.float64(2)):
            with pytest.raises(UsageError, match=r"seed: got .*expected an integer"):
                other.reset(seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("step", [1.0, "1", np.float32(1)])
def test_a_step_that_is_no_integer_is_refused(toy_bundle: Bundle, step: Any) -> None:
    session = Policy(toy_bundle, "agent_0").session()
    session.reset(7)
    session.act(observation(0), LEGAL)
    with pytest.raises(UsageError, match=r"step: got .*expected an integer"):
        session.act(observation(1), LEGAL, step=step)
    assert type(session.act(observation(1), LEGAL, step=np.int64(1)).step) is int  # type: ignore[arg-type]


def fragile_session(path: Path, action: ActionType, output: str) -> PolicySession:
    session = Policy(write_fragile_bundle(path, action, output), "agent_0").session()
    session.reset(7, sample=True)
    return session


@pytest.mark.parametrize(
    ("action", "output"),
    [("box", "action"), ("discrete", "next_state"), ("discrete", "action_logits")],
)
def test_numbers_that_are_not_finite_are_never_handed_out(tmp_path: Path, action: ActionType, output: str) -> None:
    session = fragile_session(tmp_path / "b", action, output)
    undisturbed = fragile_session(tmp_path / "c", action, output)
    mask = None if action == "box" else LEGAL
    for step in range(6):
        if step % 2:
            for _ in range(2):
                poison = observation(step)
                poison[0] = 2e38
                with pytest.raises(NonFiniteError) as caught:
                    session.act(poison, mask)
                assert f"agent 'agent_0': step {step}: the policy computed {output}[0] = nan" in str(caught.value)
                assert "2e+38" in str(caught.value)
        # The step is not used up, and the state is what it would be had the poison never come.
        got, want = session.act(observation(step), mask, step=step), undisturbed.act(observation(step), mask)
        np.testing.assert_array_equal(got.action, want.action)
        np.testing.assert_array_equal(got.diagnostics["action_logits"], want.diagnostics["action_logits"])
        assert (got.step, got.missed_steps) == (step, 0)
        assert session.act(observation(step), mask, step=step).replayed
    assert (session.steps, session.missed_steps) == (6, 0)


@pytest.mark.parametrize("before", [0, 1])
def test_a_step_whose_numbers_were_not_finite_is_not_replayed(tmp_path: Path, before: int) -> None:
    session = fragile_session(tmp_path / "b", "box", "action")
    for step in range(before + 1):
        session.act(observation(step))
    with pytest.raises(NonFiniteError):
        session.act(TOO_LARGE, step=before + 1)
    with pytest.raises(NonFiniteError):  # computed anew: no recorded reply is handed out
        session.act(TOO_LARGE, step=before + 1)
    with pytest.raises(StepOrderError):
        session.act(observation(before), step=before)
    with pytest.raises(StepOrderError):  # what lies in the buffers is no reply to the step before
        session.act(TOO_LARGE, step=before)
    assert session.act(observation(2), step=before + 2).missed_steps == 1


def test_a_graph_that_does_not_run_is_the_same_kind_of_error(toy_bundle: Bundle, monkeypatch: Any) -> None:
    session = Policy(toy_bundle, "agent_0").session()
    session.reset(7)
    monkeypatch.setattr(session, "_run", lambda: 1 / 0)
    with pytest.raises(InferenceError, match="agent 'agent_0': step 0: inference failed: division by zero"):
        session.act(observation(0), LEGAL)
    assert issubclass(NonFiniteError, InferenceError)


FRAGILE = EnvironmentSpec("toy/toy", (AgentSpec("agent_0", 6, spaces.Discrete(5), True),), 1, 9, "sum")


@pytest.mark.parametrize("output", ["next_state", "action_logits"])
def test_a_batch_with_a_row_that_is_no_number_is_refused_by_agent_row_and_output(tmp_path: Path, output: str) -> None:
    """Where that row matters: not that of an episode that has ended, nor of an agent that is away."""
    bundle = write_fragile_bundle(tmp_path / "bundle", "discrete", output)
    policy = Policy(bundle, "agent_0")
    rows = np.stack([observation(0), TOO_LARGE, observation(2)])
    named = rf"agent 'agent_0': row 1: the policy computed {output}\[0\] = nan, expected finite numbers"
    with pytest.raises(NonFiniteError, match=named):
        policy.run_batch({"observation": rows})
    without = np.array([True, False, True])
    got = policy.run_batch({"observation": rows}, finite=without)
    np.testing.assert_array_equal(got["action"][without], policy.run_batch({"observation": rows[without]})["action"])
    assert np.isnan(policy.run_batch({"observation": rows}, finite=False)[output]).any()

    def seen(active: npt.NDArray[np.bool_]) -> Observation:
        masks = (np.ones((3, 1, 5), np.bool_),)
        return Observation((rows[:, None],), masks, np.zeros((3, 1), np.float32), active[:, None])

    every, team = np.ones(3, np.bool_), BundleTeam(bundle, FRAGILE)
    team.reset(np.arange(3))
    team.act(seen(every), without)
    team.reset(np.arange(3))
    team.act(seen(without), every)
    rows[1] = observation(1)
    (after,) = team.act(seen(every), every)  # nothing of it was remembered
    session = policy.session()
    session.reset(1)
    assert after[1, 0] == session.act(observation(1), LEGAL).action
    rows[1] = TOO_LARGE
    with pytest.raises(NonFiniteError, match=named):
        team.act(seen(every), every)
    assert InferenceError.exit_code == HmarlError.exit_code
