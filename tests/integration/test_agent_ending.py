"""An agent's process ends when it is asked to, whatever holds it up, and takes away only what is its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from agent_process import AgentProcess
from hmarl.runtime.bundle import Bundle
from hmarl.sdk.clients.client import AgentClient
from raw_http2 import ACT, headers, raw_connections

LIMIT_S = 30.0  # of an end that takes a second or two on a quiet machine
LEGAL = np.ones(5, np.bool_)

# Programs that run before the agent's own, in its process.
STUCK_LOADING = """
import os, sys, hmarl.runtime.bundle
def load(path, trust=None):
    fifo = sys.argv[-1].removeprefix("unix:") + ".fifo"
    os.mkfifo(fifo)
    print("loading", flush=True)
    open(fifo)  # nothing ever writes there
hmarl.runtime.bundle.load_bundle = load
"""
STUCK_IN_GRPC = """
import grpc._server, threading
grpc._server._Server.stop = lambda self, grace: threading.Event()
"""
STUCK_BEFORE_GRPC_WAITS = """
import grpc._server, threading
grpc._server._Server.stop = lambda self, grace: threading.Event().wait()
"""
STUCK_IN_HEALTH = """
import threading
from hmarl.runtime import health_service
health_service.HealthService.enter_graceful_shutdown = lambda self: threading.Event().wait()
"""
THREAD_THAT_NEVER_ENDS = """
import threading
threading.Thread(target=threading.Event().wait).start()
"""


@contextmanager
def agent_with(
    program: str, bundle: Bundle, path: Path, *options: str, ready: str = "serving"
) -> Iterator[subprocess.Popen[str]]:
    """An agent at a Unix socket in whose process ``program`` has run first; it has printed a line with ``ready``."""
    code = f"{program}\nfrom hmarl.runtime.commands.agent import main\nmain()"
    arguments = [str(bundle.path), "--agent", "agent_0", *options, "--listen", f"unix:{path}"]
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert ready in process.stdout.readline()
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_agent_that_is_still_loading(toy_bundle: Bundle, tmp_path: Path, number: int) -> None:
    with agent_with(STUCK_LOADING, toy_bundle, tmp_path / "s", ready="loading") as process:
        process.send_signal(number)
        assert process.wait(LIMIT_S) == 0


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(STUCK_IN_GRPC, id="gRPC never says that it has stopped"),
        pytest.param(STUCK_BEFORE_GRPC_WAITS, id="gRPC never comes back"),
        pytest.param(STUCK_IN_HEALTH, id="health never comes back"),
        pytest.param(THREAD_THAT_NEVER_ENDS, id="a thread that the interpreter waits for"),
    ],
)
def test_one_signal_ends_an_agent_whose_libraries_do_not_stop(toy_bundle: Bundle, tmp_path: Path, program: str) -> None:
    with agent_with(program, toy_bundle, tmp_path / "s", "--grace-s", "0.2") as process:
        assert (tmp_path / "s").exists()
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0
        assert not (tmp_path / "s").exists()


def test_a_second_signal_ends_an_agent_whose_main_thread_is_stuck(toy_bundle: Bundle, tmp_path: Path) -> None:
    with agent_with(STUCK_IN_HEALTH, toy_bundle, tmp_path / "s", "--grace-s", "1000") as process:
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_S) == 0
        assert not (tmp_path / "s").exists()


def test_a_second_signal_ends_running_episodes(toy_bundle: Bundle) -> None:
    with (
        AgentProcess(toy_bundle.path, "agent_0", options=["--grace-s", "1000"]) as served,
        AgentClient(served.address, timeout_s=LIMIT_S) as agent,
    ):
        agent.reset(seed=1)
        served.process.send_signal(signal.SIGTERM)
        for _ in range(10):  # the episode goes on
            assert agent.act(np.zeros(6, np.float32), LEGAL).fresh
            time.sleep(0.05)
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(LIMIT_S) == 0


def test_silent_calls_do_not_end_running_episodes_early(toy_bundle: Bundle) -> None:
    with (
        AgentProcess(toy_bundle.path, "agent_0", options=["--grace-s", "1000"]) as served,
        AgentClient(served.address, timeout_s=LIMIT_S) as agent,
    ):
        agent.reset(seed=1)
        agent.act(np.zeros(6, np.float32), LEGAL)
        served.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        with raw_connections(served.address, 8) as connections:
            for number in range(8 * 30):
                connections[number % 8].send(headers(ACT, 1 + 2 * (number // 8)))
            for _ in range(30):
                assert agent.act(np.zeros(6, np.float32), LEGAL).fresh
                time.sleep(0.05)
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(LIMIT_S) == 0


def test_an_agent_that_was_frozen_in_mid_stream_stops(toy_bundle: Bundle) -> None:
    with AgentProcess(toy_bundle.path, "agent_0") as served, grpc.insecure_channel(served.address) as channel:
        stream = channel.stream_stream("/hmarl.agent.v1.AgentService/StreamAct")
        for _ in range(3):
            with contextlib.suppress(grpc.RpcError):
                list(stream(iter([b"\xff\xff\xff"]), timeout=0.5))
            served.freeze()
            time.sleep(0.2)
            served.thaw()
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(LIMIT_S) == 0


def test_nohup_is_respected(toy_bundle: Bundle) -> None:
    with AgentProcess(toy_bundle.path, "agent_0", before=["nohup"]) as served:
        served.process.send_signal(signal.SIGHUP)
        with AgentClient(served.address, timeout_s=LIMIT_S) as agent:
            agent.reset(seed=1)
            assert agent.act(np.zeros(6, np.float32), LEGAL).fresh
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(LIMIT_S) == 0


def something(kind: str, path: Path) -> None:
    if kind == "file":
        path.write_text("precious")
    elif kind == "link":
        path.with_suffix(".target").write_text("precious")
        path.symlink_to(path.with_suffix(".target"))
    elif kind == "dangling link":
        path.symlink_to(path.with_suffix(".target"))
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()


def state(path: Path) -> tuple[object, ...]:
    found = os.lstat(path)
    return found.st_ino, found.st_mtime_ns, found.st_mode


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "pipe", "folder"])
def test_what_is_no_socket_is_not_taken_for_one(toy_bundle: Bundle, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    something(kind, path)
    before = state(path)
    command = [sys.executable, "-m", "hmarl.runtime.commands.agent", str(toy_bundle.path), "--agent", "agent_0"]
    done = subprocess.run(
        [*command, "--listen", f"unix:{path}"], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert (done.returncode, state(path)) == (2, before), done.stderr
    assert f"listen: '{path}' is there already and is no socket" in done.stderr


def test_a_file_that_took_the_place_of_the_socket_stays(toy_bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with AgentProcess(toy_bundle.path, "agent_0", f"unix:{path}") as served:
        path.unlink()
        path.write_text("precious")
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(LIMIT_S) == 0
        assert path.read_text() == "precious"


def test_a_socket_whose_owner_is_frozen_is_in_use(toy_bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as owner, socket.socket(socket.AF_UNIX) as first:
        owner.bind(str(path))
        owner.listen(0)
        first.connect(str(path))  # its queue is full, and it accepts nothing
        command = [sys.executable, "-m", "hmarl.runtime.commands.agent", str(toy_bundle.path), "--agent", "agent_0"]
        done = subprocess.run(
            [*command, "--listen", f"unix:{path}"], capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        assert (done.returncode, "the address is in use" in done.stderr) == (4, True), done.stderr
        assert path.exists()
