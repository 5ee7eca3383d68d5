"""What a peer sends, or leaves unsent, costs others nothing: real agents, spoken to by gRPC and by bare HTTP/2."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

import raw_http2
from agent_process import AgentProcess
from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.tensors import to_tensor
from hmarl.runtime import door, grpc_door
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.errors import UsageError
from hmarl.runtime.message_limits import reply_limit_bytes, request_limit_bytes
from hmarl.runtime.registry import GIVES_WAY_AFTER_S
from hmarl.runtime.server import AgentServer
from hmarl.runtime.session import Policy
from hmarl.runtime.settings import ServerSettings
from peers import Peer, peer
from processes import rss_mib
from raw_http2 import (
    ACT,
    GOAWAY,
    PING,
    acknowledge_settings,
    frame,
    headers,
    raw_connections,
)
from toy_bundle import write_toy_bundle

FLOAT32 = agent_pb2.DATA_TYPE_FLOAT32
INVALID = grpc.StatusCode.INVALID_ARGUMENT
HUGE = 2**62
OPEN = {
    "acts": ACT,
    "streams": "/hmarl.agent.v1.AgentService/StreamAct",
    "checks": "/grpc.health.v1.Health/Check",
    "watches": "/grpc.health.v1.Health/Watch",
    "reflection": "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
}
InProcess = Callable[..., AgentServer]


@pytest.fixture(scope="module")
def agent(toy_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    with AgentProcess(toy_bundle.path, "agent_0", log=tmp_path_factory.mktemp("agent") / "log") as running:
        yield running


@pytest.fixture
def client(agent: AgentProcess) -> Iterator[Peer]:
    with peer(agent.address) as one:
        yield one


@pytest.fixture
def in_process(toy_bundle: Bundle) -> Iterator[InProcess]:
    """Makes servers in this process, for tests that shorten their times."""
    servers: list[AgentServer] = []

    def start(**settings: Any) -> AgentServer:
        servers.append(AgentServer(ServerSettings("127.0.0.1:0", **settings)))
        servers[-1].serve(Policy(toy_bundle, "agent_0"))
        return servers[-1]

    yield start
    for each in servers:
        each.stop(0.0)


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def tensor(shape: list[int], data: bytes = b"", data_type: int = FLOAT32) -> agent_pb2.Tensor:
    return agent_pb2.Tensor(data_type=data_type, shape=shape, data=data)


BAD_SHAPES = {
    "3,000 huge sizes": tensor([HUGE] * 3000),
    "7,000 huge sizes": tensor([HUGE] * 7000),
    "65 sizes of 1": tensor([1] * 65, bytes(4)),
    "65 sizes of 0": tensor([0] * 65),
    "nothing times too much": tensor([0, HUGE]),
    "too much": tensor([HUGE]),
    "overflow": tensor([HUGE, 4]),
    "negative": tensor([-6]),
    "as many, but in two dimensions": tensor([2, 3], bytes(24)),
    "of integers": tensor([0, HUGE], data_type=agent_pb2.DATA_TYPE_INT64),
}


@pytest.mark.parametrize("kind", list(BAD_SHAPES))
@pytest.mark.parametrize("field", ["observation", "action_mask"])
def test_shapes_are_checked_before_anything_is_worked_out(client: Peer, kind: str, field: str) -> None:
    session = client.start()
    code, details = refused(lambda: client.act(session, 0, **{field: BAD_SHAPES[kind]}))
    assert (code, field in details, len(details) < 500) == (INVALID, True, True), details
    assert client.act(session, 0).step == 0


def test_texts_of_errors_are_short_whatever_was_asked(client: Peer) -> None:
    endless = "x" * 60_000
    for call in (
        lambda: client.stub.EndEpisode(agent_pb2.EndEpisodeRequest(session_id=endless)),
        lambda: client.act(endless, 0),
        lambda: client.health.Check(health_pb2.HealthCheckRequest(service=endless)),
    ):
        code, details = refused(call)
        assert (code, len(details) < 500) == (grpc.StatusCode.NOT_FOUND, True)


def test_bytes_that_are_no_message_are_refused_and_leave_nothing_behind(agent: AgentProcess, client: Peer) -> None:
    stream = client.channel.stream_stream("/hmarl.agent.v1.AgentService/StreamAct")
    methods = ("Act", "StartEpisode", "EndEpisode", "GetAgentInfo")

    def send(count: int) -> Counter[grpc.StatusCode]:
        return Counter(client.raw(methods[number % 4], b"\xff\xff\xff") for number in range(count))

    send(200)
    before = rss_mib(agent.process.pid)
    assert send(1500) == {INVALID: 1500}
    replies = [agent_pb2.StreamActResponse.FromString(each) for each in stream(iter([b"\xff\xff"] * 500), timeout=20)]
    assert Counter(reply.error.code for reply in replies) == {INVALID.value[0]: 500}
    assert rss_mib(agent.process.pid) - before < 8
    assert "no hmarl.agent.v1.ActRequest" in agent.log
    assert "Traceback" not in agent.log
    assert len(agent.log) < 3000
    assert client.raw("GetAgentInfo", b"") == grpc.StatusCode.OK


def test_the_largest_message_follows_from_the_manifest(agent: AgentProcess, toy_bundle: Bundle, client: Peer) -> None:
    entry = toy_bundle.agent("agent_0")
    limit = request_limit_bytes(entry)
    assert limit == 4 * 6 + 5 + 64 * 1024
    assert 8 + 8 + 4 * 5 < reply_limit_bytes(entry) - 64 * 1024 < 1024  # with the outputs' names
    assert client.raw("Act", b"\xff" * limit) == INVALID
    assert client.raw("Act", bytes(limit + 1)) == grpc.StatusCode.RESOURCE_EXHAUSTED
    before = rss_mib(agent.process.pid)
    with ThreadPoolExecutor(16) as pool:
        codes = set(pool.map(lambda _: client.raw("Act", bytes(4 * 2**20 - 100)), range(200)))
    assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert rss_mib(agent.process.pid) - before < 40


def test_observations_of_several_megabytes_are_acted_upon(tmp_path: Path) -> None:
    size = 1_500_000
    write_toy_bundle(tmp_path / "b", agents=("agent_0",), observation_size=size, sizes=(1,), plain=True)
    with (
        AgentProcess(tmp_path / "b", "agent_0", log=tmp_path / "log") as running,
        peer(running.address, size, mask=False) as one,
    ):
        session = one.start()
        for step in range(3):
            assert one.act(session, step).step == step
        stream = one.stub.StreamAct(iter([agent_pb2.StreamActRequest(act=one.request(session, 3))]), timeout=20)
        assert next(stream).act.step == 3


def test_a_server_made_for_smaller_requests_says_so(tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "b", observation_size=2_000_000, sizes=(1,), plain=True)
    too_small = AgentServer(ServerSettings("127.0.0.1:0"))
    try:
        with pytest.raises(UsageError, match="needs more than 8000000"):
            too_small.serve(Policy(bundle, "agent_0"))
    finally:
        too_small.stop(0.0)


@pytest.mark.parametrize("kind", list(OPEN))
def test_calls_that_stay_silent_starve_nothing(agent: AgentProcess, client: Peer, kind: str) -> None:
    session = client.start()
    steps = itertools.count()
    with raw_connections(agent.address, 4) as connections:
        for number in range(200):
            connections[number % 4].send(headers(OPEN[kind], 1 + 2 * (number // 4)))
        for _ in range(20):
            assert client.act(session, next(steps), timeout=5)
            assert client.healthy(timeout=5)
        with peer(agent.address) as new:
            assert new.act(new.start(timeout=5), 0, timeout=5).step == 0
    assert agent.process.poll() is None


@pytest.mark.parametrize("kind", ["acts", "checks", "watches", "streams", "reflection"])
def test_silent_calls_are_ended(in_process: InProcess, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(door, "SILENT_FOR_S", 0.3)
    monkeypatch.setattr(grpc_door, "_STREAM_IDLE_S", 0.3)
    monkeypatch.setattr(grpc_door, "_REFLECTION_IDLE_S", 0.3)
    running = in_process()
    with raw_connections(running.address, 1) as [connection]:
        connection.send(acknowledge_settings() + headers(OPEN[kind], 1))
        connection.socket.settimeout(12)  # sooner than the pings, which it does not answer, end the connection
        assert connection.ended_stream() == 1


def test_one_peer_cannot_take_all_sessions_or_streams(toy_bundle: Bundle, tmp_path: Path) -> None:
    over = threading.Event()

    def first_reply(client: Peer, session: str, step: int) -> int:
        """Of a stream that stays open."""

        def requests() -> Iterator[agent_pb2.StreamActRequest]:
            yield agent_pb2.StreamActRequest(act=client.request(session, step))
            over.wait(20)

        streams.append(client.stub.StreamAct(requests()))
        return int(next(streams[-1]).act.step)

    streams: list[Any] = []
    options = ("--max-sessions", "16", "--max-streams", "8")
    with (
        AgentProcess(toy_bundle.path, "agent_0", log=tmp_path / "log", options=options) as running,
        peer(running.address) as greedy,
        peer(running.address) as modest,
    ):
        sessions = [greedy.start() for _ in range(16)]
        code, details = refused(greedy.start)
        assert (code, "--max-sessions" in details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
        other = modest.start()
        assert refused(lambda: greedy.act(sessions[0], 0))[0] == grpc.StatusCode.NOT_FOUND  # it gave way
        assert [first_reply(greedy, sessions[1], step) for step in range(8)] == list(range(8))
        code, details = refused(lambda: first_reply(greedy, sessions[1], 8))
        assert (code, "--max-streams" in details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
        assert first_reply(modest, other, 0) == 0
        assert refused(lambda: next(streams[0]))[0] == grpc.StatusCode.CANCELLED
        over.set()


def test_sessions_that_peers_left_behind_give_way_while_another_acts(toy_bundle: Bundle, tmp_path: Path) -> None:
    few = AgentProcess(toy_bundle.path, "agent_0", options=["--max-sessions", "4"], log=tmp_path / "log")
    with few as agent, peer(agent.address) as active:
        session = active.start()
        for _ in range(3):
            with peer(agent.address) as gone:
                gone.start()
        with peer(agent.address) as fresh:
            assert refused(fresh.start)[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
            for step in range(int((GIVES_WAY_AFTER_S + 0.5) / 0.1)):
                active.act(session, step)
                time.sleep(0.1)
            fresh.act(fresh.start(), 0)
        active.act(session, 1000)


def test_clients_may_ping_as_often_as_they_like(agent: AgentProcess) -> None:
    with raw_connections(agent.address, 1) as [connection]:
        connection.send(acknowledge_settings() + headers(OPEN["streams"], 1))
        for number in range(30):
            connection.send(frame(PING, 0, 0, number.to_bytes(8, "big")))
            time.sleep(0.01)
        kinds = connection.kinds_until(PING, payload=(29).to_bytes(8, "big"))
    assert GOAWAY not in kinds


def test_a_peer_that_has_vanished_is_noticed(in_process: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_KEEPALIVE_S", 1)
    monkeypatch.setattr(door, "_KEEPALIVE_TIMEOUT_S", 1)
    running = in_process()
    with raw_connections(running.address, 2) as [vanished, idle]:
        vanished.send(acknowledge_settings() + headers(OPEN["streams"], 1))  # and no ping is ever answered
        idle.send(acknowledge_settings())
        assert vanished.closed_within(30)
        assert idle.closed_within(30)


def test_idle_connections_end_though_they_answer(in_process: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_IDLE_CONNECTION_S", 1)
    running = in_process()
    with peer(running.address) as one:
        session = one.start()
        seen: list[grpc.ChannelConnectivity] = []
        one.channel.subscribe(seen.append)
        deadline = time.monotonic() + 20
        while grpc.ChannelConnectivity.IDLE not in seen[1:] and time.monotonic() < deadline:
            time.sleep(0.05)
        assert grpc.ChannelConnectivity.IDLE in seen[1:]
        assert one.act(session, 0).step == 0  # on a new connection, by itself


RESETS = """
import sys, time
from raw_http2 import ACT, RawConnection, headers, reset
connection, until = RawConnection(sys.argv[1]), time.monotonic() + 3
for first in range(1, 4_000_000, 100):
    calls = b"".join(headers(ACT, stream) + reset(stream) for stream in range(first, first + 100, 2))
    if time.monotonic() > until or not connection.send(calls):
        break
print(first // 2)
"""


def test_calls_reset_in_masses_cost_a_healthy_client_nothing(agent: AgentProcess, client: Peer) -> None:
    session = client.start()
    before = rss_mib(agent.process.pid)
    answered = Counter[bool]()
    command = [sys.executable, "-c", RESETS, agent.address]
    environment = {**os.environ, "PYTHONPATH": str(Path(raw_http2.__file__).parent)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as attacker:
        for step in itertools.count():
            try:
                answered[client.act(session, step, timeout=1).step == step] += 1
            except grpc.RpcError:
                answered[False] += 1
            if attacker.poll() is not None:
                break
            time.sleep(0.005)
        assert attacker.stdout is not None
        assert int(attacker.stdout.read()) > 20_000
    assert answered[True] > 50
    assert answered[False] <= answered[True] // 50
    assert rss_mib(agent.process.pid) - before < 40


def test_more_idle_connections_than_files_are_survived(toy_bundle: Bundle, tmp_path: Path) -> None:
    few_files = ["bash", "-c", 'ulimit -n 256; exec "$@"', "bash"]
    with (
        AgentProcess(toy_bundle.path, "agent_0", log=tmp_path / "log", before=few_files) as running,
        peer(running.address) as old,
    ):
        session = old.start()
        with raw_connections(running.address, 300):
            assert old.act(session, 0, timeout=5).step == 0
            deadline = time.monotonic() + 60
            while True:
                with peer(running.address) as new:
                    try:
                        assert new.act(new.start(timeout=2), 0, timeout=2).step == 0
                        break
                    except grpc.RpcError:
                        assert time.monotonic() < deadline
                        time.sleep(0.2)
            assert old.act(session, 1, timeout=5).step == 1


def test_masks_are_only_taken_where_there_is_one(tmp_path: Path) -> None:
    write_toy_bundle(tmp_path / "b", plain=True)
    with (
        AgentProcess(tmp_path / "b", "agent_0", log=tmp_path / "log") as running,
        peer(running.address, mask=False) as one,
    ):
        session = one.start()
        code, details = refused(lambda: one.act(session, 0, action_mask=to_tensor(np.ones(5, np.bool_))))
        assert (code, "no mask input" in details) == (INVALID, True)
        assert one.act(session, 0).step == 0
