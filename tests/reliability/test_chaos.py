"""`make chaos`: peers that leave things unsent, vanish or send too much, and agents that are killed and frozen.

A healthy client acts at 200 Hz beside each trouble; its misses may be at most a hundredth above those of the same
client alone.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent_process import AgentProcess
from healthy_client import AGENT, BUNDLE, HealthyClient, Tally
from hmarl.runtime.bundle import load_bundle
from hmarl.runtime.fleet import Fleet
from hmarl.sdk.clients.client import AgentClient
from processes import rss_mib
from rude_frames import rude
from rude_peers import (
    REFLECTION,
    SERVICE,
    frozen_streams,
    huge_messages,
    idle_connections,
    rapid_resets,
    session_hoarder,
    shape_bombs,
    silent_calls,
    undecodable,
)
from team_under_trouble import Player

pytestmark = pytest.mark.reliability
SECONDS = float(os.environ.get("HMARL_CHAOS_SECONDS", "15"))
KILLS = int(os.environ.get("HMARL_CHAOS_KILLS", "30"))
FEW_FILES = ("sh", "-c", 'ulimit -n 1024; exec "$@"', "sh")
Trouble = Callable[[str], AbstractContextManager[object]]
FRAMES_TROUBLES: dict[str, Trouble] = {
    "300 silent connections": rude("silent"),
    "300 partial frames": rude("partial"),
    "shapes of 2,000 sizes": rude("shape bombs"),
    "undecodable frames": rude("undecodable"),
    "frames of 4 MiB": rude("huge"),
    "1,024 sessions hoarded": rude("hoarding"),
    "64 connections of a frozen process": frozen_streams,
    "1,100 idle connections, 1,024 files": rude("idle"),
    "one that never reads": rude("never reads"),
    "rapid connections": rude("rapid"),
}
TROUBLES: dict[str, Trouble] = {
    "80 silent acts": lambda address: silent_calls(address, SERVICE + "Act", 80),
    "80 silent streams": lambda address: silent_calls(address, SERVICE + "StreamAct", 80),
    "80 silent reflections": lambda address: silent_calls(address, REFLECTION, 80),
    "shapes of 2,000 sizes": shape_bombs,
    "undecodable messages": undecodable,
    "messages of 4 MiB": huge_messages,
    "1,024 sessions hoarded": session_hoarder,
    "64 streams of a frozen process": frozen_streams,
    "1,100 idle connections, 1,024 files": idle_connections,
    "rapid resets": lambda address: rapid_resets(address, SECONDS + 5),
}


def beside(address: str, trouble: AbstractContextManager[object] | None) -> Tally:
    """What a healthy client gets, alone or beside trouble."""
    with HealthyClient(address) as healthy:
        time.sleep(1.0)
        if trouble is None:
            time.sleep(SECONDS)
        else:
            with trouble:
                time.sleep(SECONDS)
    return healthy.tally


def newcomer_acts(address: str, stream: bool) -> bool:
    """Whether a client that comes afterwards gets a session, and a fresh action."""
    with AgentClient(address, timeout_s=5.0, stream=stream) as client:
        client.reset(1)
        return client.act(np.zeros(18, np.float32)).fresh


@pytest.mark.parametrize(
    ("door", "name"), [*(("grpc", name) for name in TROUBLES), *(("frames", name) for name in FRAMES_TROUBLES)]
)
def test_a_healthy_client_beside(door: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    trouble = (TROUBLES if door == "grpc" else FRAMES_TROUBLES)[name]
    with AgentProcess(BUNDLE, AGENT, before=FEW_FILES, door=door) as agent:
        pid = agent.process.pid
        alone = beside(agent.address, None)
        memory = rss_mib(pid)
        together = beside(agent.address, trouble(agent.address))
        newcomers = [newcomer_acts(agent.address, stream) for stream in (False, True)]
        grown = rss_mib(pid)
        agent.process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        code = agent.process.wait(30)
    with capsys.disabled():
        print(f"\n{door}, {name}: acts | missed | wrong | p50 ms | p99 ms; RSS {memory:.0f} -> {grown:.0f} MiB")
        print(f"  alone  {alone.row()}\n  beside {together.row()}")
        print(f"  SIGTERM: exit code {code} after {time.monotonic() - begun:.1f} s")
    assert together.missed_share <= alone.missed_share + 0.01, together.errors[:3]
    assert alone.wrong == together.wrong == 0
    assert newcomers == [True, True]
    assert code == 0


def strike(fleet: Fleet, generator: random.Random) -> None:
    """Kill, freeze for good (the fleet has to notice), or freeze for a moment, one agent of a fleet."""
    pid = generator.choice(sorted(fleet.process_ids.values()))
    kind = generator.choice(("kill", "freeze", "pause"))
    try:
        os.kill(pid, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
        if kind == "pause":
            time.sleep(0.5)
            os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        pass  # the fleet was just replacing it


@pytest.mark.parametrize("door", ["grpc", "frames"])
def test_kills(door: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator, observations = random.Random(1), np.random.default_rng(1)
    frames: dict[str, Any] = {"frames_dir": tmp_path, "options": ["--no-grpc"]} if door == "frames" else {}
    with Fleet(load_bundle(BUNDLE), **frames) as fleet:
        players = [Player(BUNDLE, agent_id, address) for agent_id, address in fleet.endpoints.items()]
        struck, next_strike, end = 0, time.monotonic() + 2.0, None
        while end is None or time.monotonic() < end:
            if struck < KILLS and time.monotonic() >= next_strike:
                strike(fleet, generator)
                struck, next_strike = struck + 1, time.monotonic() + generator.uniform(0.5, 3.0)
            if struck == KILLS and end is None:
                end = time.monotonic() + 30.0
            for player in players:
                player.act(observations.normal(size=18).astype(np.float32))
            time.sleep(0.02)
        last = [player._client.act(np.zeros(18, np.float32)).fresh for player in players]
        for player in players:
            player.close()
    with capsys.disabled():
        print(f"\n{door}, {KILLS} kills and freezes: acts | missed | wrong | p50 ms | p99 ms")
        for player in players:
            print(f"  {player.tally.row()}")
    assert sum(player.tally.wrong for player in players) == 0
    assert last == [True] * len(players)


def test_unread_log(capsys: pytest.CaptureFixture[str]) -> None:
    """Standard error is a pipe that fills up: acting goes on."""
    command = [sys.executable, "-m", "hmarl.runtime.commands.agent", str(BUNDLE), "--agent", AGENT]
    command += ["--listen", "127.0.0.1:0", "--log-level", "debug"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        address = process.stdout.readline().split()[-1]
        with undecodable(address), HealthyClient(address) as healthy:
            time.sleep(SECONDS)
        process.send_signal(signal.SIGTERM)
        code = process.wait(30)
    finally:
        process.kill()
        process.wait()
    with capsys.disabled():
        print(f"\nunread log: {healthy.tally.row()}")
    assert healthy.tally.missed_share <= 0.02
    assert healthy.tally.wrong == 0
    assert code == 0
