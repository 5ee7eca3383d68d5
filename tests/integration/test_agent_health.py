"""Health and the watchdog tell whether acts get through: real servers whose policy fails, or hangs, and recovers."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.tensors import to_array, to_tensor
from hmarl.runtime import self_probe
from hmarl.runtime.server import AgentServer
from hmarl.runtime.session import Policy
from hmarl.runtime.settings import ServerSettings
from peers import Peer, peer
from picky import ACTIONS, picky_bundle


@pytest.fixture
def picky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[AgentServer, Peer]]:
    """A server of that policy, which looks after itself more often than usual, and a client."""
    monkeypatch.setattr(self_probe, "INTERVAL_S", 0.1)
    monkeypatch.setattr(self_probe, "TIMEOUT_S", 0.5)
    server = AgentServer(ServerSettings("127.0.0.1:0"))
    server.serve(Policy(picky_bundle(tmp_path / "b"), "agent_0"))
    with peer(server.address, 1, mask=False) as client:
        yield server, client
    server.stop(0.0)


def becomes(client: Peer, serving: bool) -> bool:
    """Whether health says so within a while."""
    deadline = time.monotonic() + 20
    while client.healthy() != serving:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def look_up(client: Peer, session: str, step: int, place: float) -> int:
    reply = client.act(session, step, observation=to_tensor(np.array([place], np.float32)))
    return int(to_array(reply.action, "action"))


def test_a_policy_that_keeps_failing_is_not_serving(
    picky: tuple[AgentServer, Peer], caplog: pytest.LogCaptureFixture
) -> None:
    server, client = picky
    session = client.start()
    assert [look_up(client, session, step, step) for step in range(3)] == ACTIONS
    assert client.healthy()
    time.sleep(1.1)  # an act that succeeded a moment ago speaks for the policy
    texts = set()
    for _ in range(20):
        with pytest.raises(grpc.RpcError) as failed:
            look_up(client, session, 3, 9)
        assert failed.value.code() == grpc.StatusCode.INTERNAL
        texts.add(failed.value.details())
    assert becomes(client, serving=False)
    assert server.alive  # the probe gets its actions: a client's observations restart no process
    assert len(texts) == 1
    tracebacks = [record for record in caplog.records if record.exc_info]
    assert len(tracebacks) == 1
    assert tracebacks[0].getMessage().split()[-1] in texts.pop()
    assert look_up(client, session, 3, 1) == ACTIONS[1]
    assert becomes(client, serving=True)


def test_one_clients_failures_are_not_the_others(picky: tuple[AgentServer, Peer]) -> None:
    server, client = picky
    session, other = client.start(), client.start()
    for step in range(30):
        for _ in range(10):
            with pytest.raises(grpc.RpcError):
                look_up(client, other, 0, 9)
        assert look_up(client, session, step, 2) == ACTIONS[2]
        assert client.healthy()
    assert server.alive


def test_acts_that_hang_turn_health_and_watchdog_until_they_go_on(
    picky: tuple[AgentServer, Peer], caplog: pytest.LogCaptureFixture
) -> None:
    server, client = picky
    caplog.set_level(logging.WARNING)
    watch = client.health.Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    probed = server.sessions.own()
    with probed._lock:  # as while the graph runs, and does not come back
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert not server.alive
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    assert server.alive
    watch.cancel()
    deadline = time.monotonic() + 10
    while len(caplog.records) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert caplog.messages == ["NOT_SERVING: 3 probes in a row got no action", "SERVING again"]


def test_the_probe_takes_no_session_and_does_not_keep_a_stopping_process(picky: tuple[AgentServer, Peer]) -> None:
    server, client = picky
    time.sleep(0.5)
    registry = server.sessions
    assert len(registry) == 0
    assert registry.quiet(3600.0)
    with pytest.raises(grpc.RpcError) as unknown:
        client.stub.EndEpisode(agent_pb2.EndEpisodeRequest(session_id=registry.own_id))
    assert unknown.value.code() == grpc.StatusCode.NOT_FOUND


def test_watching_unknown_services_remembers_nothing(picky: tuple[AgentServer, Peer]) -> None:
    _, client = picky
    for number in range(100):
        watch = client.health.Watch(health_pb2.HealthCheckRequest(service=f"no.such.Service{number}"))
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()
    assert becomes(client, serving=True)
