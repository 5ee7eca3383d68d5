"""The open sessions of a process, shared among peers; and tensors that are refused before anything is worked out."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.tensors import WireError, to_array
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.errors import BundleNotHeldError, DrainingError, SessionLimitError, UnknownSessionError
from hmarl.runtime.registry import SessionRegistry
from hmarl.runtime.session import Policy
from told_clock import Clock
from toy_bundle import write_toy_bundle


@pytest.fixture
def policy(toy_bundle: Bundle) -> Policy:
    return Policy(toy_bundle, "agent_0")


def test_a_peer_that_opens_all_it_can_locks_no_other_out(policy: Policy) -> None:
    clock = Clock()
    registry = SessionRegistry(policy, 16, 600.0, clock)
    greedy = [registry.add(policy.session(), "greedy") for _ in range(16)]
    with pytest.raises(SessionLimitError, match="16 sessions are open"):
        registry.add(policy.session(), "greedy")
    others = [registry.add(policy.session(), f"other {number}") for number in range(2)]
    for gone in greedy[:2]:
        with pytest.raises(UnknownSessionError):
            registry.get(gone)
    with pytest.raises(SessionLimitError, match="until one has been idle for 5 s"):
        registry.add(policy.session(), "too early")
    clock.now += 6
    registry.get(greedy[2])
    registry.add(policy.session(), "late")
    with pytest.raises(UnknownSessionError):
        registry.get(greedy[3])
    for kept in (greedy[2], *greedy[4:], *others):
        registry.get(kept)
    assert len(registry) == 16


def test_ended_and_idle_sessions_are_unknown(policy: Policy) -> None:
    clock = Clock()
    registry = SessionRegistry(policy, 4, 10.0, clock)
    session = policy.session()
    ended, idle = registry.add(session, "a"), registry.add(policy.session(), "a")
    assert registry.remove(ended) is session
    clock.now += 11
    registry.add(policy.session(), "a")
    for gone in (ended, idle, "x" * 100_000):
        for method in (registry.get, registry.remove):
            with pytest.raises(UnknownSessionError) as unknown:
                method(gone)
            assert len(str(unknown.value)) < 400
    registry.drain()
    with pytest.raises(DrainingError):
        registry.add(policy.session(), "a")


@pytest.mark.parametrize("shape", [[2**62] * 1000, [1] * 65, [0, 2**62], [2**62], [-1], [2**62, 0], [3, -2]])
@pytest.mark.parametrize("expected", [None, [6], [2, 3]])
def test_impossible_shapes_are_refused(shape: list[int], expected: list[int] | None) -> None:
    tensor = agent_pb2.Tensor(data_type=agent_pb2.DATA_TYPE_INT64, shape=shape)
    with pytest.raises(WireError, match="x"):
        to_array(tensor, "x", expected)


def test_a_tensor_of_the_expected_shape_is_taken() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = agent_pb2.Tensor(data_type=agent_pb2.DATA_TYPE_FLOAT32, shape=[2, 3], data=array.tobytes())
    np.testing.assert_array_equal(to_array(tensor, "x", [2, 3]), array)
    with pytest.raises(WireError, match=r"got float32 \(2, 3\), expected the shape \(3, 2\)"):
        to_array(tensor, "x", [3, 2])


def test_a_session_that_is_over_frees_its_memory_at_once(policy: Policy) -> None:
    """Not when cycles are collected, which a process that serves rarely does: ended, refused, idle, given way."""
    clock = Clock()
    registry = SessionRegistry(policy, 2, 600.0, clock)
    gc.collect()
    gc.disable()
    try:
        sessions = [policy.session() for _ in range(4)]
        kept = [weakref.ref(session) for session in sessions]
        ended = registry.add(sessions[0], "one")
        registry.remove(ended)
        registry.add(sessions[1], "one")
        registry.add(sessions[2], "one")
        with pytest.raises(SessionLimitError):
            registry.add(sessions[3], "one")
        clock.now += 6
        registry.add(policy.session(), "two")  # the first of the others gives way
        sessions.clear()
        assert [each() is None for each in kept] == [True, True, False, True]
    finally:
        gc.enable()


def test_another_policy_is_for_new_sessions_and_the_old_one_goes_with_its_last(
    toy_bundle: Bundle, tmp_path: Path
) -> None:
    clock = Clock()
    held = [Policy(toy_bundle, "agent_0")]
    registry = SessionRegistry(held[0], 4, 10.0, clock)
    old, new = toy_bundle.sha256, Policy(write_toy_bundle(tmp_path / "b", sizes=(9,)), "agent_0")
    running = registry.add(held[0].session(), "a")
    assert registry.own().policy is held[0]
    assert registry.switch(new) is held[0]
    assert registry.own().policy is new
    assert registry.policy_of("") is registry.policy_of(new.bundle.sha256) is new
    assert registry.policy_of(old) is registry.get(running).policy is held[0]
    gone = weakref.ref(held[0])
    clock.now += 11
    registry.sweep()
    with pytest.raises(UnknownSessionError):
        registry.get(running)
    held.clear()
    assert gone() is None, "without a collection of cycles"
    with pytest.raises(BundleNotHeldError):
        registry.policy_of(old)


def test_a_bundle_that_is_not_held_is_refused_and_says_which_is(policy: Policy) -> None:
    registry = SessionRegistry(policy, 4, 10.0, Clock())
    with pytest.raises(BundleNotHeldError) as refused:
        registry.policy_of("x" * 100_000)
    assert policy.bundle.sha256 in str(refused.value)
    assert len(str(refused.value)) < 400


def test_a_process_that_stops_takes_no_other_bundle(policy: Policy, toy_bundle: Bundle) -> None:
    registry = SessionRegistry(policy, 4, 10.0, Clock())
    registry.drain()
    with pytest.raises(DrainingError, match="takes no other bundle"):
        registry.switch(Policy(toy_bundle, "agent_0"))
    assert registry.policy is policy
