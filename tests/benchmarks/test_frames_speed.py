"""What an act costs by each way to an agent, paired in one run: in process, frames, gRPC; beside bare echoes.

    make benchmark PYTEST_ARGS='tests/benchmarks/test_frames_speed.py'
    HMARL_BENCHMARK_ROUNDS=30 ...      # on a quiet machine; 3 otherwise

All ways take turns, a second at each rate, again and again: whatever else the machine does meets all of them alike.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from agent_process import AgentProcess
from hmarl.sdk import AgentClient, LocalAgent, Zero, load_bundle
from processes import rss_mib
from toy_bundle import write_toy_bundle

pytestmark = pytest.mark.benchmark
RATES_HZ = (0, 50, 200, 500)  # 0: one act after the other
STRETCH_S = 1.0
MOST_ACTS = 2000
SIZE, HIDDEN = 18, (64, 64)
ROUNDS = int(os.environ.get("HMARL_BENCHMARK_ROUNDS", "3"))
# As many bytes as an act and its response have, as frames.
REQUEST_BYTES, RESPONSE_BYTES = 120, 30
ECHO_SOCKET = f"""
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("ready", flush=True)
stream = listener.accept()[0]
while stream.recv(4096):
    stream.sendall(bytes({RESPONSE_BYTES}))
"""
ECHO_GRPC = f"""
import sys, grpc
from concurrent.futures import ThreadPoolExecutor
class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: bytes({RESPONSE_BYTES}))
server = grpc.server(ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((Echo(),))
server.add_insecure_port("unix:" + sys.argv[1])
server.start()
print("ready", flush=True)
server.wait_for_termination()
"""


@dataclass
class Way:
    """One way to an action.

    Attributes:
        act: does it; says whether it was fresh.
        pid: of the process that answers; None for this one.
        times_us: of all acts by rate.
        misses: acts without a fresh action within their period, by rate.
        client_us: processor time of this process for each act, by rate.
        server_us: that of the other.
    """

    act: Callable[[float], bool]
    pid: int | None
    times_us: dict[int, list[float]] = field(default_factory=lambda: {rate: [] for rate in RATES_HZ})
    misses: dict[int, int] = field(default_factory=lambda: dict.fromkeys(RATES_HZ, 0))
    client_us: dict[int, list[float]] = field(default_factory=lambda: {rate: [] for rate in RATES_HZ})
    server_us: dict[int, list[float]] = field(default_factory=lambda: {rate: [] for rate in RATES_HZ})

    def stretch(self, rate_hz: int) -> None:
        """Act for a second, at times that were laid down before."""
        period_s = 1.0 / rate_hz if rate_hz else 0.0
        times_us, misses, clock = self.times_us[rate_hz], 0, time.perf_counter
        server_s, client_s = processor_s(self.pid), time.process_time()
        begin = clock()
        due, end, acts = begin, begin + STRETCH_S, 0
        while due < end and acts < MOST_ACTS:
            if period_s:
                time.sleep(max(due - clock(), 0.0))
            began = clock()
            fresh = self.act(period_s or STRETCH_S)
            took_s = clock() - began
            times_us.append(took_s * 1e6)
            misses += not fresh or bool(period_s and took_s > period_s)
            acts += 1
            due = due + period_s if period_s else clock()
        self.misses[rate_hz] += misses
        self.client_us[rate_hz].append((time.process_time() - client_s) / acts * 1e6)
        self.server_us[rate_hz].append((processor_s(self.pid) - server_s) / acts * 1e6)


def processor_s(pid: int | None) -> float:
    """Seconds that all threads of a process have run."""
    if pid is None:
        return 0.0
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


@contextlib.contextmanager
def echo(program: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that answers with as many bytes as an agent, and does nothing else."""
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def client_way(process: AgentProcess, observation: np.ndarray, clients: contextlib.ExitStack, **options: Any) -> Way:
    """By a client of the SDK."""
    client = clients.enter_context(AgentClient(process.address, fallback=Zero(), timeout_s=10.0, **options))
    client.reset(1)

    def act(limit_s: float) -> bool:
        client.timeout_s = limit_s
        return client.act(observation).fresh

    return Way(act, process.process.pid)


def test_what_an_act_costs_by_each_way(tmp_path: Path) -> None:
    path = write_toy_bundle(tmp_path / "b", observation_size=SIZE, sizes=HIDDEN, plain=True).path
    observation = np.random.default_rng(0).normal(size=SIZE).astype(np.float32)
    payload = bytes(REQUEST_BYTES)
    with contextlib.ExitStack() as held:
        tcp = held.enter_context(AgentProcess(path, "agent_0"))
        unix = held.enter_context(AgentProcess(path, "agent_0", f"unix:{tmp_path}/agent"))
        frames = held.enter_context(AgentProcess(path, "agent_0", door="frames"))
        plain = held.enter_context(echo(ECHO_SOCKET, tmp_path / "echo"))
        called = held.enter_context(echo(ECHO_GRPC, tmp_path / "call"))
        local = held.enter_context(LocalAgent(load_bundle(path), "agent_0"))
        local.reset(1)
        stream = held.enter_context(socket.socket(socket.AF_UNIX))
        stream.connect(str(tmp_path / "echo"))
        unary = held.enter_context(grpc.insecure_channel(f"unix:{tmp_path}/call")).unary_unary("/bare/Unary")

        def echoed(limit_s: float) -> bool:
            stream.sendall(payload)
            return bool(stream.recv(4096))

        ways = {
            "in process": Way(lambda limit_s: local.act(observation).fresh, None),
            "bare echo, Unix socket": Way(echoed, plain.pid),
            "frames": client_way(frames, observation, held),
            "frames, spin_s=0.0002": client_way(frames, observation, held, spin_s=0.0002),
            "bare echo, gRPC unary, Unix": Way(lambda limit_s: bool(unary(payload)), called.pid),
            "gRPC unary, Unix": client_way(unix, observation, held),
            "gRPC stream, Unix": client_way(unix, observation, held, stream=True),
            "gRPC unary, TCP": client_way(tcp, observation, held),
            "gRPC stream, TCP": client_way(tcp, observation, held, stream=True),
        }
        for way in ways.values():
            for _ in range(200):
                way.act(STRETCH_S)
        for _ in range(ROUNDS):
            for rate in RATES_HZ:
                for way in ways.values():
                    way.stretch(rate)
        report(ways)
        for name, process in {"frames, --no-grpc": frames, "gRPC, Unix": unix, "gRPC, TCP": tcp}.items():
            print(f"agent, {name}: resident {rss_mib(process.process.pid):.1f} MiB")


def report(ways: dict[str, Way]) -> None:
    """The table, and what of it has targets."""
    for rate in RATES_HZ:
        print(f"\n\n{f'{rate} Hz' if rate else 'one after the other'}, {ROUNDS} rounds\n")
        print("| way | p50 µs | p99 | p99.9 | max | processor µs an act: client | server | acts | misses |")
        print("|---|---|---|---|---|---|---|---|---|")
        for name, way in ways.items():
            times = way.times_us[rate]
            p50, p99, p999, most = np.percentile(times, [50, 99, 99.9, 100])
            client, server = np.median(way.client_us[rate]), np.median(way.server_us[rate])
            print(
                f"| {name} | {p50:.0f} | {p99:.0f} | {p999:.0f} | {most:.0f} | {client:.0f} | {server:.0f} "
                f"| {len(times)} | {way.misses[rate]} |"
            )
    print()
    for rate in RATES_HZ:
        of = {name: np.percentile(way.times_us[rate], [50, 99]) for name, way in ways.items()}
        ratio = of["frames"] / of["gRPC unary, Unix"]
        to_stream = of["frames"] / of["gRPC stream, Unix"]
        print(
            f"{rate} Hz: frames to gRPC unary: p50 {ratio[0]:.2f}, p99 {ratio[1]:.2f}; to gRPC stream: p50 "
            f"{to_stream[0]:.2f}, p99 {to_stream[1]:.2f}"
        )
