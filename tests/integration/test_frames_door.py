"""The door of frames, asked by raw sockets: the page's promises, and peers that keep none of theirs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent_process import AgentProcess
from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.frames_pb2 import CheckHealthRequest, FrameRequest, FrameResponse
from hmarl.agent.v1.framing import FrameReader, LengthError, framed
from hmarl.agent.v1.status import Code
from hmarl.agent.v1.tensors import to_tensor
from hmarl.runtime import frames_door, self_probe
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.errors import HmarlError, UsageError
from hmarl.runtime.server import AgentServer
from hmarl.runtime.session import Policy
from hmarl.runtime.settings import SecuritySettings, ServerSettings
from installed import ROOT
from processes import LIMIT_S, wait_for
from raw_frames import RawFrames

VECTORS = json.loads((ROOT / "proto" / "conformance" / "frames.json").read_text())
HEALTH = CheckHealthRequest()
OTHER_USER = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")


@pytest.fixture(scope="module")
def agent(toy_bundle: Bundle) -> Iterator[AgentProcess]:
    with AgentProcess(toy_bundle.path, "agent_0", door="frames") as process:
        yield process


@pytest.fixture
def client(agent: AgentProcess) -> Iterator[RawFrames]:
    with RawFrames(agent.address) as client:
        yield client


def serve(bundle: Bundle, folder: Path, **settings: Any) -> AgentServer:
    server = AgentServer(ServerSettings(frames=folder / "frames", grpc=False, **settings))
    server.serve(Policy(bundle, "agent_0"))
    return server


# --- what the page says -----------------------------------------------------------------------------------------------


def test_an_agent_without_grpc_does_not_load_it_and_its_socket_is_private(agent: AgentProcess) -> None:
    assert "cygrpc" not in Path(f"/proc/{agent.process.pid}/maps").read_text()
    assert stat.S_IMODE(os.stat(agent.address.removeprefix("frames:")).st_mode) == 0o600
    assert agent.ready == {"agent": "agent_0", "address": agent.address, "frames": agent.address}


def test_an_episode_over_one_connection(client: RawFrames, toy_bundle: Bundle) -> None:
    info = client.ask(get_agent_info=agent_pb2.GetAgentInfoRequest()).get_agent_info
    assert (info.agent_id, info.bundle_sha256) == ("agent_0", toy_bundle.sha256)
    session = client.start(seed=3)
    local = Policy(toy_bundle, "agent_0").session()
    local.reset(3)
    for step in range(5):
        observation = np.random.default_rng(step).normal(size=6).astype(np.float32)
        response = client.act(session, step)
        assert response.act.step == step
        assert (
            int.from_bytes(response.act.action.data, "little", signed=True)
            == local.act(observation, np.ones(5, np.bool_)).action
        )
    assert client.act(session, 4).act.replayed
    assert client.act(session, 9).act.missed_steps == 4
    ended = client.ask(end_episode=agent_pb2.EndEpisodeRequest(session_id=session)).end_episode
    assert (ended.steps, ended.missed_steps) == (6, 4)
    assert client.act(session, 10).error.code == Code.NOT_FOUND


@pytest.mark.parametrize("refused", VECTORS["refused"], ids=lambda refused: refused["name"])
def test_bytes_that_are_no_request_end_the_connection_with_the_reason(
    agent: AgentProcess, refused: dict[str, Any]
) -> None:
    with RawFrames(agent.address) as rude:
        rude.socket.sendall(bytes.fromhex(refused["hex"]))
        response = rude.receive()
        assert (response.id, response.error.code) == (0, refused["code"])
        assert rude.ended
    with RawFrames(agent.address) as polite:
        assert polite.ask(check_health=HEALTH).check_health.serving


def test_requests_that_arrive_byte_by_byte_or_all_at_once_are_answered_in_order(client: RawFrames) -> None:
    requests = [FrameRequest(id=number, check_health=HEALTH) for number in range(1, 200)]
    sent = b"".join(map(framed, requests))
    client.socket.sendall(sent)
    assert [client.receive().id for _ in requests] == list(range(1, 200))
    for byte in b"".join(map(framed, requests[:3])):
        client.socket.sendall(bytes([byte]))
        time.sleep(0.001)
    assert [client.receive().id for _ in range(3)] == [1, 2, 3]


def test_frames_are_found_however_a_stream_is_cut() -> None:
    for stream in VECTORS["streams"]:
        data = bytes.fromhex(stream["hex"])
        by_name = {vector["name"]: vector for vector in VECTORS["frames"]}
        wanted = [bytes.fromhex(by_name[name]["hex"]) for name in stream["frames"]]
        for size in (1, 2, 3, 7, 100, len(data)):
            reader, found = FrameReader(1000), []
            for begin in range(0, len(data), size):
                found += reader.take(data[begin : begin + size])
            assert [len(body) for body in found] == [len(each) - (1 if each[0] < 0x80 else 2) for each in wanted]
            assert all(each.endswith(body) for body, each in zip(found, wanted, strict=True))
            assert not reader.begun
    with pytest.raises(LengthError, match="got a message of 1001 bytes, expected at most 1000"):
        FrameReader(1000).take(framed(FrameRequest(metadata={"a": "b" * 992})))


def test_errors_of_requests_have_their_ids_and_the_connection_goes_on(client: RawFrames) -> None:
    assert "get_agent_info" in client.ask().error.message
    assert client.ask().error.code == Code.UNIMPLEMENTED
    session = client.start()
    wrong = client.request(session, 0)
    wrong.observation.CopyFrom(to_tensor(np.zeros(7, np.float32)))
    response = client.ask(act=wrong)
    assert (response.error.code, "observation: got" in response.error.message) == (Code.INVALID_ARGUMENT, True)
    assert client.act(session, 0).act.step == 0
    assert client.act(session, 0, metadata={"x-request-id": "a"}).act.replayed
    client.act(session, 5)
    assert client.act(session, 2).error.code == Code.FAILED_PRECONDITION
    unknown = client.ask(check_health=CheckHealthRequest(service="no.such.Service"))
    assert unknown.error.code == Code.NOT_FOUND
    for service in ("", "hmarl.agent.v1.AgentService", "hmarl.agent.v1.Process"):
        assert client.ask(check_health=CheckHealthRequest(service=service)).check_health.serving


def test_one_session_a_connection_which_outlives_it(agent: AgentProcess) -> None:
    with RawFrames(agent.address) as first, RawFrames(agent.address) as second:
        one = first.start()
        first.act(one, 0)
        other = first.start()
        assert first.act(one, 1).error.code == Code.NOT_FOUND
        first.act(other, 0)
        first.close()
        assert second.act(other, 1).act.step == 1
        second.start()  # that session is not the second one's to end
        assert second.act(other, 2).act.missed_steps == 0


def test_a_request_whose_deadline_is_over_is_not_done(client: RawFrames) -> None:
    session = client.start()
    late = client.act(session, 0, deadline_ns=time.monotonic_ns() - 1)
    assert late.error.code == Code.DEADLINE_EXCEEDED
    in_time = client.act(session, 1, deadline_ns=time.monotonic_ns() + 10**10)
    assert in_time.act.missed_steps == 1


@as_root
def test_another_user_is_let_in_when_that_is_said_and_not_otherwise(toy_bundle: Bundle) -> None:
    """Whatever the socket's mode is: who connects, the kernel says."""
    for users, allowed in (([], False), (["--frames-allow-uid", str(OTHER_USER)], True)):
        with AgentProcess(toy_bundle.path, "agent_0", door="frames", options=users) as process:
            path = Path(process.address.removeprefix("frames:"))
            if not allowed:
                assert b"PermissionError" in as_another_user(path)
            path.chmod(0o666)
            path.parent.chmod(0o755)
            said = as_another_user(path)
            assert (b"serving: true" in said) == allowed, said
            assert (b"user: got 65534, expected one of [0]" in said) == (not allowed), said


def as_another_user(path: Path) -> bytes:
    """What a process of another user, with nothing of ours, is answered when it asks for health."""
    program = (
        "import contextlib, os, socket, sys\n"
        f"s = socket.socket(socket.AF_UNIX); os.setgroups([]); os.setgid({OTHER_USER}); os.setuid({OTHER_USER})\n"
        "s.connect(sys.argv[1])\n"
        "with contextlib.suppress(BrokenPipeError):\n"  # who is refused may be told so before it has asked
        "    s.send(bytes.fromhex(sys.argv[2]))\n"
        "sys.stdout.buffer.write(s.recv(4096))"
    )
    request = framed(FrameRequest(id=1, check_health=HEALTH)).hex()
    command = [sys.executable, "-c", program, str(path), request]
    done = subprocess.run(command, check=False, capture_output=True, timeout=LIMIT_S)
    if not done.stdout:
        return done.stderr
    (body,) = FrameReader(4096).take(done.stdout)
    return str(FrameResponse.FromString(body)).encode()


# --- peers that keep none of their promises ---------------------------------------------------------------------------


def test_silent_connections_are_ended_and_keep_no_one_out(
    toy_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames_door, "SILENT_FOR_S", 0.5)
    server = serve(toy_bundle, tmp_path)
    try:
        address = server.address
        silent = [RawFrames(address) for _ in range(20)]
        partial = RawFrames(address)
        partial.ask(check_health=HEALTH)
        partial.socket.sendall(b"\x20\x08")
        with RawFrames(address) as honest:
            session = honest.start()
            assert honest.act(session, 0).act.step == 0
            assert all(each.ended for each in [*silent, partial])
            assert honest.act(session, 1).act.step == 1
    finally:
        server.stop(0.0)


def test_a_crowd_of_silent_connections_gives_way(toy_bundle: Bundle, tmp_path: Path) -> None:
    server = serve(toy_bundle, tmp_path)
    stop = threading.Event()

    def crowd() -> None:
        held: list[RawFrames] = []
        while not stop.wait(0.002):
            held.append(RawFrames(server.address))
            if len(held) > 200:
                held.pop(0).close()

    thread = threading.Thread(target=crowd)
    thread.start()
    try:
        acted = 0
        deadline = time.monotonic() + LIMIT_S
        while acted < 20 and time.monotonic() < deadline:
            with RawFrames(server.address) as honest, contextlib.suppress(EOFError, OSError):
                acted += honest.act(honest.start(), 0).HasField("act")
        assert acted == 20
        assert len(server._frames._open) < 200
    finally:
        stop.set()
        thread.join()
        server.stop(0.0)


def test_one_that_does_not_read_is_let_go_and_holds_up_no_one(
    toy_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames_door, "_SEND_LIMIT_S", 1.0)
    server = serve(toy_bundle, tmp_path)
    try:
        with RawFrames(server.address) as rude, RawFrames(server.address) as honest:
            session = honest.start()
            rude.socket.settimeout(0.5)
            with pytest.raises(OSError, match=r"timed out|Broken pipe|reset"):
                keep_asking(rude)
            assert honest.act(session, 0).act.step == 0
            wait_for(lambda: len(server._frames._open) <= 2, "letting it go")  # the honest one, and the probe
            assert honest.act(session, 1).act.step == 1
    finally:
        server.stop(0.0)


def keep_asking(client: RawFrames) -> None:
    """And read nothing."""
    while True:
        client.send(get_agent_info=agent_pb2.GetAgentInfoRequest())


def test_connections_are_bounded_and_idle_ones_give_way(
    toy_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames_door, "_GIVES_WAY_AFTER_S", 2.0)
    server = serve(toy_bundle, tmp_path, max_sessions=2)
    try:
        held = [RawFrames(server.address) for _ in range(2)]
        for each in held:
            each.ask(get_agent_info=agent_pb2.GetAgentInfoRequest())
        assert server.open_streams == 2
        with RawFrames(server.address) as third:
            response = third.ask(get_agent_info=agent_pb2.GetAgentInfoRequest())
            assert (response.id, response.error.code) == (0, Code.RESOURCE_EXHAUSTED)
            assert "--max-sessions" in response.error.message
            assert third.ended
        with RawFrames(server.address) as looking:  # health is answered all the same
            assert looking.ask(check_health=HEALTH).check_health.serving
        time.sleep(2.1)
        with RawFrames(server.address) as later:
            assert later.ask(get_agent_info=agent_pb2.GetAgentInfoRequest()).HasField("get_agent_info")
            assert held[0].ended
    finally:
        server.stop(0.0)


def test_quotas_of_one_client_are_those_of_grpc(toy_bundle: Bundle, tmp_path: Path) -> None:
    server = serve(toy_bundle, tmp_path, security=SecuritySettings(client_rate=5.0, client_sessions=2))
    try:
        with contextlib.ExitStack() as held:
            client, second, third = (held.enter_context(RawFrames(server.address)) for _ in range(3))
            codes = [each.ask(start_episode={}).error.code for each in (client, second, third)]
            assert codes == [Code.OK, Code.OK, Code.RESOURCE_EXHAUSTED]
            said = {client.ask(check_health=HEALTH).error.message.partition(":")[0] for _ in range(60)}
            assert said == {"", "requests"}
            assert server.access.guard.rejected["quota"] >= 1
        wait_for(lambda: server.alive, "its own probe, which no quota holds up")
    finally:
        server.stop(0.0)


def test_acts_that_hang_are_seen_by_the_probe(
    toy_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_probe, "INTERVAL_S", 0.1)
    monkeypatch.setattr(self_probe, "TIMEOUT_S", 0.3)
    server = serve(toy_bundle, tmp_path)
    try:
        with RawFrames(server.address) as client:
            with server.sessions.own()._lock:  # as while the graph runs, and does not come back
                wait_for(lambda: not server.alive, "seeing it")
                assert not client.ask(check_health=HEALTH).check_health.serving
            wait_for(lambda: client.ask(check_health=HEALTH).check_health.serving, "seeing that it goes on")
            assert server.alive
    finally:
        server.stop(0.0)


# --- beginning and end ------------------------------------------------------------------------------------------------


def test_while_loading_and_draining_no_episode_starts_and_running_ones_go_on(
    toy_bundle: Bundle, tmp_path: Path
) -> None:
    server = AgentServer(ServerSettings(frames=tmp_path / "frames", grpc=False))
    with RawFrames(server.address) as client:
        assert client.ask(start_episode={}).error.code == Code.UNAVAILABLE
        assert not client.ask(check_health=HEALTH).check_health.serving
        server.serve(Policy(toy_bundle, "agent_0"))
        session = client.start()
        client.act(session, 0)
        stopping = threading.Thread(target=server.stop, args=(5.0,))
        stopping.start()
        wait_for(lambda: not client.ask(check_health=HEALTH).check_health.serving, "draining")
        assert client.act(session, 1).act.step == 1
        assert client.ask(start_episode={}).error.code == Code.UNAVAILABLE
        stopping.join(LIMIT_S)
        assert not stopping.is_alive()
        assert client.ended
    assert not (tmp_path / "frames").exists()


def test_an_agent_ends_within_bounds_beside_silent_connections(toy_bundle: Bundle) -> None:
    with AgentProcess(toy_bundle.path, "agent_0", door="frames", options=["--grace-s", "0.5"]) as process:
        with RawFrames(process.address) as idle, RawFrames(process.address) as partial:
            idle.start()
            partial.socket.sendall(b"\x20")
            process.process.send_signal(signal.SIGTERM)
            assert process.process.wait(LIMIT_S) == 0
        assert not Path(process.address.removeprefix("frames:")).exists()


@pytest.mark.parametrize(
    ("program", "options", "said"),
    [
        ("agent", ["--no-grpc"], "--no-grpc: got it without --frames, expected one way in: give --frames"),
        ("fleet", ["--no-grpc"], "--no-grpc: got it without --frames-dir, expected one way in: give --frames-dir"),
        ("agent", ["--frames-allow-uid", "7"], "--frames-allow-uid: got it without --frames, expected both"),
        ("agent", ["--frames", "f", "--no-grpc", "--token-file", "t"], "--no-grpc and --token-file: got both"),
        ("agent", ["--frames", "f", "--no-grpc", "--allow-client", "a"], "--no-grpc and --allow-client: got both"),
        ("fleet", ["--frames-dir", "f", "--no-grpc", "--tls", "keys"], "--no-grpc and --tls: got both"),
        ("fleet", ["--frames-dir", "f", "--no-grpc", "--tcp"], "--tcp and --no-grpc: got both"),
        ("agent", ["--frames", "f", "--no-grpc", "--oip"], "--no-grpc and --oip: got both"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    program: str, options: list[str], said: str, toy_bundle: Bundle, tmp_path: Path
) -> None:
    agent = ["--agent", "agent_0"] if program == "agent" else []
    command = [sys.executable, "-m", f"hmarl.runtime.commands.{program}", str(toy_bundle.path), *agent, *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=LIMIT_S, cwd=tmp_path)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_used_is_said(toy_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    server = serve(toy_bundle, tmp_path)
    try:
        for path, kind, said in (
            (tmp_path / "file", UsageError, r"frames: '.*file' is there already and is no socket"),
            (tmp_path / "none" / "frames", UsageError, "frames: there is no directory"),
            (tmp_path / ("x" * 120), UsageError, "frames: got a socket path of"),
            (tmp_path / "frames", HmarlError, "cannot listen on frames:.*in use; choose another with --frames"),
        ):
            with pytest.raises(kind, match=said):
                AgentServer(ServerSettings(listen="127.0.0.1:0", frames=path))
        assert (tmp_path / "file").read_text() == "mine"
    finally:
        server.stop(0.0)
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "left"))
    left.close()  # as a process that was killed leaves it
    AgentServer(ServerSettings(frames=tmp_path / "left", grpc=False)).stop(0.0)
    with pytest.raises(UsageError, match="--no-grpc: got it without --frames"):
        AgentServer(ServerSettings(grpc=False))
