"""Speed of serving, each figure beside a bare reference measured alternately in the same run."""

from __future__ import annotations

import json
import queue
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
import pytest

from hmarl.agent.v1 import agent_pb2, agent_pb2_grpc
from hmarl.agent.v1.tensors import to_tensor
from hmarl.runtime.cores import available_cores
from hmarl.runtime.session import Policy
from hmarl.sdk.clients.client import AgentClient
from processes import rss_mib
from toy_bundle import write_toy_bundle

pytestmark = pytest.mark.benchmark
MLPS = {"18-64-64-5": (18, (64, 64)), "64-128-128-5": (64, (128, 128))}
# Two references: bytes for bytes, and the service's own messages (the least that any typed service must do). Both take
# and return as many bytes as the agent and are called as it is.
ECHO = """
import sys, grpc
from concurrent.futures import ThreadPoolExecutor
from hmarl.agent.v1 import agent_pb2 as pb, agent_pb2_grpc
ACTION = pb.Tensor(data_type=pb.DATA_TYPE_INT64, data=bytes(8))
REPLY = pb.ActResponse(step=1000, action=ACTION).SerializeToString()
class Typed(agent_pb2_grpc.AgentServiceServicer):
    def Act(self, request, context):
        return pb.ActResponse(step=request.step, action=ACTION)
    def StreamAct(self, requests, context):
        for request in requests:
            yield pb.StreamActResponse(act=self.Act(request.act, context))
class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        if details.method.endswith("Unary"):
            return grpc.unary_unary_rpc_method_handler(lambda request, context: REPLY)
        return grpc.stream_stream_rpc_method_handler(lambda requests, context: (REPLY for _ in requests))
server = grpc.server(ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((Echo(),))
agent_pb2_grpc.add_AgentServiceServicer_to_server(Typed(), server)
port = server.add_insecure_port(sys.argv[1])
server.start()
print(sys.argv[1] if sys.argv[1].startswith("unix:") else f"127.0.0.1:{port}", flush=True)
server.wait_for_termination()
"""


def each_alternating(functions: dict[str, Callable[[], object]], rounds: int, calls: int) -> dict[str, list[float]]:
    """Microseconds of every single call, over rounds in which all take turns; ascending."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            for _ in range(calls):
                started = time.perf_counter()
                function()
                times[name].append((time.perf_counter() - started) * 1e6)
    return {name: sorted(each) for name, each in times.items()}


def alternate(functions: dict[str, Callable[[], object]], rounds: int, calls: int) -> dict[str, float]:
    """Median microseconds a call of each function, over rounds in which all take turns."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            started = time.perf_counter()
            for _ in range(calls):
                function()
            times[name].append((time.perf_counter() - started) / calls * 1e6)
    return {name: statistics.median(each) for name, each in times.items()}


@pytest.mark.parametrize("name", list(MLPS))
def test_acting_in_process(tmp_path: Path, name: str) -> None:
    size, hidden = MLPS[name]
    policy = Policy(write_toy_bundle(tmp_path / "b", observation_size=size, sizes=hidden, plain=True), "agent_0")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    bare = onnxruntime.InferenceSession(policy.bundle.read(policy.agent.file), options, ["CPUExecutionProvider"])
    observation = np.random.default_rng(0).normal(size=size).astype(np.float32)
    feeds = {"observation": observation[None]}
    session = policy.session()
    session.reset(0)
    np.testing.assert_array_equal(session.act(observation).action, bare.run(["action"], feeds)[0][0])
    got = alternate(
        {"bare": lambda: bare.run(["action"], feeds), "act": lambda: session.act(observation)}, rounds=15, calls=2000
    )
    print(f"\n{name}: bare run {got['bare']:.2f} us, act {got['act']:.2f} us, ratio {got['act'] / got['bare']:.2f}")


@contextmanager
def process(*command: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process and the first line that it prints."""
    running = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert running.stdout is not None
    try:
        yield running, running.stdout.readline().strip()
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(20)


class Stream:
    """A bidirectional stream as a function from request to response."""

    def __init__(self, method: Callable[..., Iterator[object]]) -> None:
        self._requests: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._responses = method(iter(self._requests.get, None))

    def __call__(self, request: object) -> object:
        self._requests.put(request)
        return next(self._responses)

    def close(self) -> None:
        self._requests.put(None)


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_acting_over_grpc(tmp_path: Path, transport: str, pinned: bool) -> None:
    """``pinned``: the agent stays on one core, as ``--core`` and ``hmarl-fleet --pin`` make it; the echoes never do."""
    size, hidden = MLPS["18-64-64-5"]
    write_toy_bundle(tmp_path / "b", observation_size=size, sizes=hidden, plain=True)
    listen = ["127.0.0.1:0", "127.0.0.1:0"]
    if transport == "unix":
        listen = [f"unix:{tmp_path}/echo", f"unix:{tmp_path}/agent"]
    command = ("-m", "hmarl.runtime.commands.agent", str(tmp_path / "b"), "--agent", "agent_0", "--json")
    command += (f"--core={available_cores()[-1]}", "--listen") if pinned else ("--listen",)
    with process("-c", ECHO, listen[0]) as (_, echo), process(*command, listen[1]) as (_, ready):
        bare = grpc.insecure_channel(echo)
        address = json.loads(ready)["address"]
        channel = grpc.insecure_channel(address)
        stub = agent_pb2_grpc.AgentServiceStub(channel)
        array = np.random.default_rng(0).normal(size=size).astype(np.float32)
        observation = to_tensor(array)
        session_id = stub.StartEpisode(agent_pb2.StartEpisodeRequest(seed=1)).session_id
        request = agent_pb2.ActRequest(session_id=session_id, observation=observation)
        payload = request.SerializeToString()
        unary_echo, stream_echo = bare.unary_unary("/bare/Unary"), Stream(bare.stream_stream("/bare/Stream"))
        typed = agent_pb2_grpc.AgentServiceStub(bare)
        stream, stream_typed = Stream(stub.StreamAct), Stream(typed.StreamAct)
        client, stream_client = AgentClient(address), AgentClient(address, stream=True)
        client.reset(1)
        stream_client.reset(1)

        def act() -> None:
            request.step += 1
            stub.Act(request)

        def act_streaming() -> None:
            request.step += 1
            response = stream(agent_pb2.StreamActRequest(act=request))
            assert response.WhichOneof("result") == "act"  # type: ignore[attr-defined]

        functions: dict[str, Callable[[], object]] = {
            "unary echo": lambda: unary_echo(payload),
            "unary act": act,
            "unary typed echo": lambda: typed.Act(request),
            "stream echo": lambda: stream_echo(payload),
            "stream typed echo": lambda: stream_typed(agent_pb2.StreamActRequest(act=request)),
            "stream act": act_streaming,
            "unary client": lambda: client.act(array),
            "stream client": lambda: stream_client.act(array),
        }
        for function in functions.values():
            for _ in range(200):
                function()
        got = each_alternating(functions, rounds=30, calls=50)
        client.close()
        stream_client.close()
        stream.close()
        stream_echo.close()
        stream_typed.close()
        for kind in ("unary", "stream"):
            print(f"\n{transport} {kind}{', agent on one core' * pinned}, {len(payload)} bytes", end="")
            times = {each: got[f"{kind} {each}"] for each in ("echo", "typed echo", "act", "client")}
            medians = {each: statistics.median(of) for each, of in times.items()}
            for each, median_us in medians.items():
                p99_us = times[each][-len(times[each]) // 100]
                ratios = f"{median_us / medians['echo']:.2f} / {median_us / medians['typed echo']:.2f}"
                print(f"; {each} {median_us:.0f} us, p99 {p99_us:.0f}, to the echoes {ratios}", end="")


BARE = """
import sys, grpc, numpy, onnxruntime
from concurrent.futures import ThreadPoolExecutor
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, ["CPUExecutionProvider"])
session.run(None, {"observation": numpy.zeros((1, 18), numpy.float32)})
server = grpc.server(ThreadPoolExecutor(8))
health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
server.add_insecure_port("127.0.0.1:0")
server.start()
print("ready", flush=True)
server.wait_for_termination()
"""


def test_starting_and_memory(tmp_path: Path) -> None:
    write_toy_bundle(tmp_path / "b", observation_size=18, sizes=(64, 64), plain=True)
    agent = ("-m", "hmarl.runtime.commands.agent", str(tmp_path / "b"), "--agent", "agent_0", "--listen", "127.0.0.1:0")
    commands = {"bare": ("-c", BARE, str(tmp_path / "b" / "agents" / "agent_0.onnx")), "hmarl-agent": agent}
    times: dict[str, list[float]] = {name: [] for name in commands}
    sizes: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(5):
        for name, command in commands.items():
            started = time.perf_counter()
            with process(*command) as (running, ready):
                assert "ready" in ready or "127.0.0.1" in ready
                times[name].append(time.perf_counter() - started)
                sizes[name].append(rss_mib(running.pid))
    for name in commands:
        seconds, mib = statistics.median(times[name]), statistics.median(sizes[name])
        print(f"\n{name}: from exec to serving {seconds:.2f} s, resident {mib:.1f} MiB")
