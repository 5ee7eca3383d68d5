"""A fleet whose members freeze, fail or do not stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from hmarl.agent.v1.tensors import to_tensor
from hmarl.runtime import fleet_member, health_probe
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.commands.agent import SHA256_VARIABLE
from hmarl.runtime.fleet import Fleet
from hmarl.sdk.clients.client import AgentClient
from hmarl.sdk.errors import HmarlError
from hmarl.sdk.fallback import NoOp
from peers import peer
from picky import picky_bundle
from processes import LIMIT_S, alive, children, fleet_process, wait_for

LEGAL = np.ones(5, np.bool_)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions in quicker succession than in service."""
    monkeypatch.setattr(health_probe, "CHECK_EVERY_S", 0.2)
    monkeypatch.setattr(fleet_member, "CHECK_EVERY_S", 0.2)
    monkeypatch.setattr(health_probe, "CHECK_LIMIT_S", 1.0)
    monkeypatch.setattr(fleet_member, "FROZEN_AFTER", 3)


@contextmanager
def acting(address: str) -> Iterator[list[bool]]:
    """An episode that goes on all the time, with whatever answers at the address; whether each act was fresh."""
    fresh: list[bool] = []
    done = threading.Event()

    def go_on() -> None:
        with AgentClient(address, timeout_s=0.5, fallback=NoOp(0)) as agent:
            agent.reset(seed=1)
            while not done.wait(0.05):
                fresh.append(agent.act(np.zeros(6, np.float32), LEGAL).fresh)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        wait_for(lambda: fresh, "the first act")
        yield fresh
    finally:
        done.set()
        thread.join()


@pytest.mark.usefixtures("impatient")
def test_a_frozen_member_is_started_again_and_the_others_go_on(toy_bundle: Bundle) -> None:
    with Fleet(toy_bundle) as fleet:
        address = fleet.endpoints["agent_0"]
        with acting(address) as fresh, acting(fleet.endpoints["agent_1"]) as others:
            frozen, killed = fleet.process_ids["agent_0"], fleet.process_ids["agent_1"]
            os.kill(frozen, signal.SIGSTOP)
            os.kill(killed, signal.SIGKILL)  # another one dies meanwhile, and is looked after
            wait_for(lambda: fleet.process_ids.get("agent_1", killed) != killed, "the restart of the other")
            wait_for(lambda: fleet.process_ids.get("agent_0", frozen) != frozen, "the restart")
            wait_for(lambda: fleet.serving, "serving again")
            assert not alive(frozen)
            count, counts = len(fresh), len(others)
            wait_for(lambda: any(fresh[count:]) and any(others[counts:]), "a fresh act")
        assert fleet.endpoints["agent_0"] == address


@pytest.mark.usefixtures("impatient")
def test_a_member_that_keeps_saying_that_it_does_not_serve_is_started_again(toy_bundle: Bundle) -> None:
    # A member that drains for ever: it answers, and says NOT_SERVING.
    with Fleet(toy_bundle, options=["--grace-s", "1000"], grace_s=2.0) as fleet:
        draining = fleet.process_ids["agent_0"]
        with acting(fleet.endpoints["agent_0"]) as fresh:
            os.kill(draining, signal.SIGTERM)
            wait_for(lambda: fleet.process_ids.get("agent_0", draining) != draining, "the restart")
            count = len(fresh)
            wait_for(lambda: any(fresh[count:]), "a fresh act")
        assert not alive(draining)


@pytest.mark.usefixtures("impatient")
def test_a_client_at_whose_observations_the_policy_fails_restarts_nothing(tmp_path: Path) -> None:
    with Fleet(picky_bundle(tmp_path / "bundle"), options=["--log-level", "error"], grace_s=2.0) as fleet:
        address, process = fleet.endpoints["agent_0"], fleet.process_ids["agent_0"]
        with peer(address, 1, mask=False) as client, peer(address, 1, mask=False) as idle:
            mine, others = client.start(), idle.start()
            idle.act(others, 0)
            failing_until = time.monotonic() + 8.0
            while time.monotonic() < failing_until:
                with pytest.raises(grpc.RpcError):
                    client.act(mine, 0, observation=to_tensor(np.array([9], np.float32)))
                time.sleep(0.05)
            assert not client.healthy()
            idle.act(others, 1)
        assert fleet.process_ids["agent_0"] == process


def test_a_member_that_finds_another_bundle_in_the_place_of_its_own_does_not_join(
    toy_bundle: Bundle, tmp_path: Path
) -> None:
    """A fleet on Linux starts it with the copy that it keeps (test_fleet_reload); what has none to give refuses."""
    environment = {**os.environ, SHA256_VARIABLE: "0" * 64}
    command = [sys.executable, "-m", "hmarl.runtime.commands.agent", str(toy_bundle.path), "--agent", "agent_0"]
    done = subprocess.run(
        [*command, "--listen", f"unix:{tmp_path}/s"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env=environment,
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert f"got another one, {toy_bundle.sha256}, expected {'0' * 64}" in done.stderr


def test_a_supervisor_that_was_frozen_itself_blames_no_one(toy_bundle: Bundle) -> None:
    impatient = (
        "from hmarl.runtime import fleet_member, health_probe\n"
        "health_probe.CHECK_EVERY_S, health_probe.CHECK_LIMIT_S, fleet_member.FROZEN_AFTER = 0.2, 0.5, 3\n"
        "from hmarl.runtime.commands.fleet import main\n"
        "main()"
    )
    command = [sys.executable, "-c", impatient, str(toy_bundle.path), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            members = children(process.pid)
            for pid in (process.pid, *members):
                os.kill(pid, signal.SIGSTOP)
            time.sleep(3.0)
            for pid in (*members, process.pid):
                os.kill(pid, signal.SIGCONT)
            time.sleep(0.5)
            assert children(process.pid) == members
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(LIMIT_S) == 0


@pytest.mark.usefixtures("impatient")
def test_a_member_that_freezes_again_and_again_ends_the_fleet(
    toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_member, "MAX_FAILURES", 2)
    with Fleet(toy_bundle) as fleet:
        for _ in range(2):
            frozen = fleet.process_ids["agent_0"]
            os.kill(frozen, signal.SIGSTOP)
            wait_for(lambda: not fleet.serving, "noticing the freeze")
            wait_for(lambda: fleet.serving or fleet._failed.is_set(), "the restart or the end")
            assert not alive(frozen)
        with pytest.raises(HmarlError, match="agent 'agent_0' keeps failing: exit code -9, 2 failures in a row"):
            fleet.check()


def test_a_stopped_job_does_not_hold_up_the_end(toy_bundle: Bundle) -> None:
    fleet = Fleet(toy_bundle, grace_s=1000.0)
    fleet.start()
    members = list(fleet.process_ids.values())
    os.kill(members[0], signal.SIGSTOP)
    stopping = threading.Thread(target=fleet.stop)
    stopping.start()
    stopping.join(LIMIT_S)
    assert not stopping.is_alive()
    assert not any(alive(pid) for pid in members)


def test_a_second_signal_ends_a_fleet_whose_members_do_not_stop(toy_bundle: Bundle, tmp_path: Path) -> None:
    out, sockets = tmp_path / "out.json", tmp_path / "sockets"
    options = ["--socket-dir", str(sockets), "--grace-s", "1000"]
    with fleet_process(toy_bundle, out, *options) as process:
        assert process.stdout is not None
        process.stdout.readline()
        members = children(process.pid)
        with acting(f"unix:{sockets}/0-agent_0.sock") as fresh:
            process.send_signal(signal.SIGTERM)
            wait_for(lambda: not out.exists(), "the end of the file")
            count = len(fresh)
            wait_for(lambda: any(fresh[count + 3 :]), "the episode that goes on")
            process.send_signal(signal.SIGTERM)
            assert process.wait(LIMIT_S) == 0
            wait_for(lambda: not any(alive(pid) for pid in members), "the end of the members")
    assert list(sockets.iterdir()) == []


def test_a_signal_ends_a_fleet_that_is_still_starting(toy_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    with fleet_process(toy_bundle, out) as process:
        wait_for(lambda: children(process.pid), "the first member")
        members = children(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0
        wait_for(lambda: not any(alive(pid) for pid in members), "the end of the members")
    assert not out.exists()
