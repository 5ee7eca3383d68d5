"""Replies that are taken too late, streams that end, agents that are frozen, proxies in between, large replies."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from agent_process import AgentProcess
from agent_proxy import AgentProxy
from hmarl.runtime.authority import Authority
from hmarl.runtime.bundle import Bundle, write_bundle
from hmarl.sdk.clients import remote_episode
from hmarl.sdk.clients.async_client import AsyncAgentClient
from hmarl.sdk.clients.client import AgentClient
from hmarl.sdk.clients.security import Security
from hmarl.sdk.errors import AgentError
from hmarl.sdk.evaluation.deployed_teams import FleetTeam
from hmarl.sdk.fallback import Zero
from hmarl.sdk.faults.link import FaultyLink, LinkFaults
from hmarl.sdk.spaces import EnvironmentSpec
from toy_bundle import toy_manifest

MASK = np.ones(5, np.bool_)
SEEN = np.random.default_rng(3).normal(size=(80, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def served(toy_bundle: Bundle) -> Iterator[AgentProcess]:
    with AgentProcess(toy_bundle.path, "agent_0") as process:
        yield process


@pytest.mark.parametrize("scheme", ["plain", "tls"])
def test_nothing_that_is_found_out_takes_longer_than_connecting_may(scheme: str, tmp_path: Path) -> None:
    chosen = Security(ca=Authority.create(tmp_path / "keys").certificate) if scheme == "tls" else None
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections are made, and nothing is said
        begin = time.monotonic()
        with pytest.raises(AgentError, match=r"no answer within 1\.0 s"):
            AgentClient(f"127.0.0.1:{silent.getsockname()[1]}", connect_timeout_s=1.0, security=chosen)
        assert time.monotonic() - begin < 2.0


LATE_CLIENT = """
import asyncio, sys
import numpy as np
from hmarl.sdk.clients.async_client import AsyncAgentClient
from hmarl.sdk.clients.client import AgentClient
from hmarl.sdk.fallback import Zero

kind, stream = sys.argv[2], sys.argv[3] == "stream"
options = {"timeout_s": 0.2, "stream": stream, "fallback": Zero()}
observation, mask = np.ones(6, np.float32), np.ones(5, np.bool_)

def told(action):
    print('fresh' if action.fresh else 'stale', 'late' if action.latency_s > 0.3 else 'early', flush=True)

def synchronous():
    with AgentClient(sys.argv[1], **options) as agent:
        agent.reset(1)
        while sys.stdin.readline():
            print("acting", flush=True)
            told(agent.act(observation, mask))

async def asynchronous():
    async with AsyncAgentClient(sys.argv[1], **options) as agent:
        await agent.reset(1)
        while sys.stdin.readline():
            print("acting", flush=True)
            told(await agent.act(observation, mask))

synchronous() if kind == "sync" else asyncio.run(asynchronous())
"""


@pytest.mark.parametrize("mode", ["unary", "stream"])
@pytest.mark.parametrize("kind", ["sync", "asyncio"])
def test_a_reply_that_is_taken_after_the_deadline_is_not_fresh(served: AgentProcess, kind: str, mode: str) -> None:
    with FaultyLink(served.address, LinkFaults(delay_s=0.05)) as relay:
        command = [sys.executable, "-c", LATE_CLIENT, relay.address, kind, mode]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as client:
            assert client.stdin is not None
            assert client.stdout is not None
            outcomes = []
            for _ in range(3):
                client.stdin.write("go\n")
                assert client.stdout.readline() == "acting\n"
                time.sleep(0.02)  # the request has gone out; the reply takes 0.1 s
                client.send_signal(signal.SIGSTOP)  # it arrives in time, and is not taken
                time.sleep(0.4)
                client.send_signal(signal.SIGCONT)
                outcomes.append(client.stdout.readline().strip())
            client.stdin.close()
    assert "stale late" in outcomes
    assert "fresh late" not in outcomes


@pytest.mark.parametrize("end", ["OK", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED", "UNAVAILABLE"])
def test_a_stream_that_the_server_ends_is_opened_again_without_a_lost_act(served: AgentProcess, end: str) -> None:
    with AgentProxy(served.address) as proxy:
        proxy.stream_length, proxy.stream_end = 2, grpc.StatusCode[end]
        with AgentClient(proxy.address, timeout_s=10.0, fallback=Zero(), stream=True) as agent:
            agent.reset(7)
            actions = [agent.act(seen, MASK) for seen in SEEN[:9]]

        async def play() -> list[bool]:
            async with AsyncAgentClient(proxy.address, timeout_s=10.0, fallback=Zero(), stream=True) as agent:
                await agent.reset(7)
                return [(await agent.act(seen, MASK)).fresh for seen in SEEN[:9]]

        assert all(asyncio.run(play()))
    assert [(action.step, action.fresh, action.missed_steps) for action in actions] == [(n, True, 0) for n in range(9)]


def test_a_stream_takes_acts_again_as_soon_as_the_server_listens(toy_bundle: Bundle) -> None:
    with (
        AgentProcess(toy_bundle.path, "agent_0") as process,
        AgentClient(process.address, timeout_s=5.0, fallback=Zero(), stream=True) as agent,
    ):
        agent.reset(7)
        agent.act(SEEN[0], MASK)
        agent.timeout_s = 0.003
        process.freeze()
        assert not any(agent.act(seen, MASK).fresh for seen in SEEN[1:70])  # more than a stream lets out
        process.thaw()
        agent.timeout_s = 10.0
        assert agent.act(SEEN[70], MASK).fresh


def test_closing_and_connecting_do_not_wait_for_a_frozen_agent(toy_bundle: Bundle) -> None:
    with AgentProcess(toy_bundle.path, "agent_0") as process:
        with AgentClient(process.address) as client:
            spec = EnvironmentSpec("toy", (client.spec,), 6, None, "sum")
        team = FleetTeam({"agent_0": process.address}, spec)
        team.reset(np.arange(12))
        process.freeze()
        begin = time.monotonic()
        team.close()  # 12 clients
        with pytest.raises(AgentError, match=r"no answer within 0\.3 s"):
            AgentClient(process.address, connect_timeout_s=0.3)
        assert time.monotonic() - begin < 3


@pytest.fixture
def trap(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A proxy that all variables name and that answers nothing; non-blocking."""
    with socket.socket() as trap:
        trap.bind(("127.0.0.1", 0))
        trap.listen()
        trap.setblocking(False)
        for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
            for spelling in (name, name.upper()):
                monkeypatch.setenv(spelling, f"http://127.0.0.1:{trap.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield trap


def test_no_proxy_comes_between_agents_of_this_machine(
    served: AgentProcess, toy_bundle: Bundle, tmp_path: Path, trap: socket.socket
) -> None:
    port = served.address.rsplit(":", 1)[1]

    async def play(address: str) -> bool:
        async with AsyncAgentClient(address) as agent:
            await agent.reset(7)
            return (await agent.act(SEEN[0], MASK)).fresh

    with AgentProcess(toy_bundle.path, "agent_0", f"unix:{tmp_path}/agent.sock") as other:
        for address in (served.address, f"localhost:{port}", f"dns:///localhost:{port}", other.address):
            with AgentClient(address, stream=True) as agent:
                agent.reset(7)
                assert agent.act(SEEN[0], MASK).fresh
            assert asyncio.run(play(address))
    with pytest.raises(BlockingIOError):
        trap.accept()


def wide_bundle(path: Path, width: int) -> Bundle:
    """An agent whose diagnostics repeat its observation ``width`` times."""
    repeats = helper.make_tensor("repeats", TensorProto.INT64, [2], [1, width])
    graph = helper.make_graph(
        [
            helper.make_node("ArgMax", ["observation"], ["action"], axis=1, keepdims=0),
            helper.make_node("Tile", ["observation", "repeats"], ["wide"]),
        ],
        "wide",
        [helper.make_tensor_value_info("observation", TensorProto.FLOAT, ["batch", 6])],
        [
            helper.make_tensor_value_info("action", TensorProto.INT64, ["batch"]),
            helper.make_tensor_value_info("wide", TensorProto.FLOAT, ["batch", 6 * width]),
        ],
        [repeats],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    entry = {
        "id": "agent_0",
        "file": "agents/agent_0.onnx",
        "kind": "wide",
        "action_space": {"type": "discrete", "n": 6},
        "observation": {"name": "observation", "shape": [6], "dtype": "float32", "meaning": "seen"},
        "action": {"name": "action", "shape": [], "dtype": "int64", "meaning": "chosen"},
        "diagnostics": [{"name": "wide", "shape": [6 * width], "dtype": "float32", "meaning": "repeated"}],
    }
    return write_bundle(path, toy_manifest([entry]), {entry["file"]: model.SerializeToString(), "README.md": b"# A\n"})


@pytest.mark.parametrize("least_limit", [None, 2**20])
def test_large_replies_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least_limit: int | None) -> None:
    if least_limit is not None:  # the connection that is made first takes less than such a reply
        monkeypatch.setattr(remote_episode, "LEAST_RECEIVE_LIMIT_BYTES", least_limit)
    bundle = wide_bundle(tmp_path / "bundle", 250_000)  # 6 MB; gRPC takes 4 MiB by itself
    with AgentProcess(bundle.path, "agent_0") as process:
        for stream in (False, True):
            with AgentClient(process.address, timeout_s=20.0, diagnostics=True, stream=stream) as agent:
                agent.reset(7)
                action = agent.act(SEEN[0])
                np.testing.assert_array_equal(action.diagnostics["wide"], np.tile(SEEN[0], 250_000))
