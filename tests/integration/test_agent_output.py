"""Nothing reads what an agent or a fleet writes: they serve, restart and stop all the same."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from full_pipe import FullPipe
from hmarl.runtime.bundle import Bundle
from hmarl.sdk.clients.client import AgentClient
from hmarl.sdk.fallback import NoOp
from picky import picky_bundle
from processes import LIMIT_S, children, wait_for

LEGAL = np.ones(5, np.bool_)
AGENT = [sys.executable, "-m", "hmarl.runtime.commands.agent"]
FLEET = [sys.executable, "-m", "hmarl.runtime.commands.fleet"]


def act(address: str, times: int = 20) -> None:
    with AgentClient(address, timeout_s=LIMIT_S, connect_timeout_s=LIMIT_S) as agent:
        agent.reset(seed=1)
        for _ in range(times):
            assert agent.act(np.zeros(6, np.float32), LEGAL).fresh


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_an_agent_serves_and_stops_though_nothing_reads_it(toy_bundle: Bundle, tmp_path: Path, stream: str) -> None:
    options = ["--agent", "agent_0", "--listen", f"unix:{tmp_path}/s", "--log-level", "debug"]
    with FullPipe() as pipe:
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: pipe.writer}
        with subprocess.Popen([*AGENT, str(toy_bundle.path), *options], **streams) as process:  # type: ignore[call-overload]
            try:
                with grpc.insecure_channel(f"unix:{tmp_path}/s") as channel:
                    undecodable = channel.unary_unary("/hmarl.agent.v1.AgentService/Act")
                    for _ in range(200):
                        with contextlib.suppress(grpc.RpcError):
                            undecodable(b"\xff\xff", timeout=LIMIT_S, wait_for_ready=True)
                    act(f"unix:{tmp_path}/s")
                    check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=LIMIT_S)
                    assert check.status == health_pb2.HealthCheckResponse.SERVING
                process.send_signal(signal.SIGTERM)
                assert process.wait(LIMIT_S) == 0
            finally:
                process.kill()


def test_failures_of_onnx_runtime_are_told_by_nothing_that_waits_for_a_reader(tmp_path: Path) -> None:
    bundle = picky_bundle(tmp_path / "bundle")
    options = ["--agent", "agent_0", "--listen", f"unix:{tmp_path}/s", "--log-level", "debug"]
    with FullPipe() as pipe, subprocess.Popen([*AGENT, str(bundle.path), *options], stderr=pipe.writer) as process:
        try:
            with AgentClient(f"unix:{tmp_path}/s", timeout_s=5.0, connect_timeout_s=LIMIT_S, fallback=NoOp(2)) as agent:
                agent.reset(seed=1)
                for _ in range(3):
                    agent.act(np.array([9], np.float32))  # there is no such place
                assert agent.act(np.array([1], np.float32)).fresh
        finally:
            process.kill()


def test_an_error_ends_an_agent_though_nothing_reads_it(tmp_path: Path) -> None:
    with FullPipe() as pipe:
        command = [*AGENT, str(tmp_path / "nothing"), "--agent", "agent_0"]
        with subprocess.Popen(command, stderr=pipe.writer) as process:
            try:
                assert process.wait(LIMIT_S) == 3
            finally:
                process.kill()


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_an_agent_serves_without_a_stream(toy_bundle: Bundle, tmp_path: Path, closed: str) -> None:
    number = {"stdout": 1, "stderr": 2}[closed]
    options = ["--agent", "agent_0", "--listen", f"unix:{tmp_path}/s", "--log-level", "debug"]
    command = ["sh", "-c", f'exec "$@" {number}>&-', "sh", *AGENT, str(toy_bundle.path), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            act(f"unix:{tmp_path}/s")
            process.send_signal(signal.SIGTERM)
            assert process.wait(LIMIT_S) == 0
        finally:
            process.kill()


def test_a_fleet_restarts_and_stops_though_nothing_reads_it(toy_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "endpoints.json"
    command = [*FLEET, str(toy_bundle.path), "--out", str(out), "--log-level", "debug"]
    with FullPipe() as pipe, subprocess.Popen(command, stdout=pipe.writer, stderr=pipe.writer) as process:
        try:
            wait_for(out.exists, "serving")
            address = json.loads(out.read_text())["agents"]["agent_0"]
            act(address)
            os.kill(min(children(process.pid)), signal.SIGKILL)
            act(address)
            process.send_signal(signal.SIGTERM)
            assert process.wait(LIMIT_S) == 0
            assert not out.exists()
        finally:
            process.kill()


def test_what_is_logged_flows_again_and_tells_what_is_missing(toy_bundle: Bundle, tmp_path: Path) -> None:
    program = (
        "import sys, threading\n"
        "from hmarl.runtime.commands.agent import main\n"
        "from hmarl.runtime.server import LOGGER\n"
        "def log():\n"
        "    sys.stdin.readline()\n"
        "    for i in range(5000):\n"
        "        LOGGER.warning('line %d', i)\n"
        "    print('logged', flush=True)\n"
        "threading.Thread(target=log, daemon=True).start()\n"
        "main()"
    )
    options = ["--agent", "agent_0", "--listen", f"unix:{tmp_path}/s", "--json"]
    command = [sys.executable, "-c", program, str(toy_bundle.path), *options]
    with (
        FullPipe() as pipe,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=pipe.writer, text=True
        ) as process,
    ):
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline()
            act(f"unix:{tmp_path}/s")  # it has said all that it says by itself
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "logged\n"
            act(f"unix:{tmp_path}/s")
            os.set_blocking(pipe.reader, False)
            text = b""
            deadline = time.monotonic() + LIMIT_S
            while b"lines are missing here" not in text:
                assert time.monotonic() < deadline
                with contextlib.suppress(BlockingIOError):
                    text += os.read(pipe.reader, 2**20)
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            assert process.wait(LIMIT_S) == 0
        finally:
            process.kill()
    lines = text.decode().splitlines()
    kept = [line for line in lines if "WARNING hmarl-agent agent_0: line " in line]
    assert [line.rpartition(" ")[2] for line in kept] == [str(number) for number in range(len(kept))]
    missing = next(line for line in lines if "missing" in line)
    assert int(missing.split()[2]) == 5000 - len(kept)
