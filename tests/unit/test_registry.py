"""The open sessions of a process, shared among peers; and tensors that are refused before anything is worked out."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.tensors import WireError, to_array
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.errors import DrainingError, SessionLimitError, UnknownSessionError
from hmarl.runtime.registry import SessionRegistry
from hmarl.runtime.session import Policy
from told_clock import Clock


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
