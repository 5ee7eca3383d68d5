"""Sessions under ids that are given: one that is begun again ends the one before, and takes its place."""

from __future__ import annotations

import pytest

from hmarl.runtime.bundle import Bundle
from hmarl.runtime.errors import UnknownSessionError
from hmarl.runtime.registry import SessionRegistry
from hmarl.runtime.session import Policy
from told_clock import Clock


@pytest.fixture(scope="module")
def policy(toy_bundle: Bundle) -> Policy:
    return Policy(toy_bundle, "agent_0")


def test_the_id_is_kept(policy: Policy) -> None:
    registry, session = SessionRegistry(policy, 2, 10.0), policy.session()
    assert registry.add(session, "peer", session_id="a") == "a"
    assert registry.get("a") is session
    assert registry.remove("a") is session
    with pytest.raises(UnknownSessionError):
        registry.get("a")


def test_the_one_before_gives_its_place(policy: Policy) -> None:
    registry = SessionRegistry(policy, 2, 10.0)
    other = policy.session()
    registry.add(other, "peer", session_id="b")
    for _ in range(5):
        session = policy.session()
        registry.add(session, "peer", session_id="a")
        assert registry.get("a") is session
    assert len(registry) == 2
    assert registry.get("b") is other


def test_forgetting_the_one_before_leaves_the_one_that_came_after(policy: Policy) -> None:
    """A session may be taken away while another one under its id begins."""
    clock = Clock()
    registry = SessionRegistry(policy, 4, 10.0, clock)
    registry.add(policy.session(), "peer", session_id="a")
    before, after = registry._entries["a"], policy.session()
    registry.add(after, "peer", session_id="a")
    registry._forget(before)
    assert registry.get("a") is after
