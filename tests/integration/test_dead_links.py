"""Clients over links that go silent, come back, are cut or slow: real agents, real gRPC, a relay in between."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from agent_process import AgentProcess
from hmarl.runtime.bundle import Bundle
from hmarl.sdk.clients.agent import Action
from hmarl.sdk.clients.async_client import AsyncAgentClient
from hmarl.sdk.clients.client import AgentClient
from hmarl.sdk.fallback import Zero
from hmarl.sdk.faults.link import FaultyLink, LinkFaults

MASK = np.ones(5, np.bool_)
SEEN = np.random.default_rng(3).normal(size=6).astype(np.float32)
LIMIT_S = 15.0  # where something would hang for ever


@pytest.fixture(scope="module")
def served(toy_bundle: Bundle) -> Iterator[AgentProcess]:
    with AgentProcess(toy_bundle.path, "agent_0") as process:
        yield process


@pytest.fixture
def relay(served: AgentProcess) -> Iterator[FaultyLink]:
    with FaultyLink(served.address) as relay:
        yield relay


def act_until(agent: AgentClient, fresh: bool, limit_s: float = LIMIT_S) -> list[Action]:
    """Act at 50 Hz until an action is fresh, or is not."""
    actions = []
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        actions.append(agent.act(SEEN, MASK))
        if actions[-1].fresh is fresh:
            return actions
        time.sleep(0.02)
    raise AssertionError(f"none of {len(actions)} actions within {limit_s} s has fresh={fresh}: {agent.statistics}")


@pytest.mark.parametrize("stream", [False, True])
def test_a_connection_that_swallows_everything_is_given_up(relay: FaultyLink, stream: bool) -> None:
    with AgentClient(relay.address, timeout_s=0.05, fallback=Zero(), stream=stream) as agent:
        agent.reset(7)
        act_until(agent, fresh=True)
        for _ in range(2):
            relay.swallow()
            act_until(agent, fresh=False)
            time.sleep(0.7)  # longer than the client's patience: it tries in vain as well
            for _ in range(10):
                assert not agent.act(SEEN, MASK).fresh
            relay.restore()
            act_until(agent, fresh=True)
        # The session is the agent's, not the connection's: nothing had to be joined again, no state was lost.
        assert (agent.statistics.rejoins, agent.statistics.state_resets) == (0, 0)
        assert agent.statistics.missed_steps > 0
        assert sum(thread.name == "hmarl-stream" for thread in threading.enumerate()) <= 1 + stream


@pytest.mark.parametrize("stream", [False, True])
def test_one_long_act_outlives_its_connection(relay: FaultyLink, stream: bool) -> None:
    with AgentClient(relay.address, timeout_s=LIMIT_S, stream=stream) as agent:
        agent.reset(7)
        agent.act(SEEN, MASK)
        relay.swallow()
        relay.restore()
        action = agent.act(SEEN, MASK)
        assert (action.step, action.fresh, action.missed_steps) == (1, True, 0)


@pytest.mark.parametrize("stream", [False, True])
def test_the_asyncio_client_gives_a_dead_connection_up(relay: FaultyLink, stream: bool) -> None:
    async def play() -> None:
        async with AsyncAgentClient(relay.address, timeout_s=0.05, fallback=Zero(), stream=stream) as agent:
            await agent.reset(7)
            relay.swallow()
            await asyncio.sleep(0.05)
            agent.timeout_s = 1.5
            assert not (await agent.act(SEEN, MASK)).fresh
            relay.restore()
            agent.timeout_s = LIMIT_S
            assert (await agent.act(SEEN, MASK)).fresh
            assert agent.statistics.rejoins == 0

    asyncio.run(play())


def test_an_episode_is_started_over_a_connection_that_has_died(relay: FaultyLink) -> None:
    with AgentClient(relay.address, connect_timeout_s=LIMIT_S) as agent:
        agent.reset(7)
        relay.swallow()
        relay.restore()
        agent.reset(8)
        assert agent.act(SEEN, MASK).fresh


def test_a_slow_link_connects_again_after_a_cut_and_after_silence(relay: FaultyLink) -> None:
    relay.faults = LinkFaults(delay_s=0.2)  # connecting takes two round trips, 0.8 s altogether
    with AgentClient(relay.address, timeout_s=LIMIT_S, stream=True) as agent:
        agent.reset(7)
        assert agent.act(SEEN, MASK).fresh
        relay.cut()
        assert agent.act(SEEN, MASK).fresh
        relay.swallow()
        relay.restore()
        assert agent.act(SEEN, MASK).fresh
        assert agent.statistics.rejoins == 0


def test_an_idle_stream_whose_connection_was_reset_costs_no_act(relay: FaultyLink) -> None:
    with AgentClient(relay.address, timeout_s=5.0, fallback=Zero(), stream=True) as agent:
        agent.reset(7)
        for _ in range(5):
            agent.act(SEEN, MASK)
            relay.cut()
        assert agent.act(SEEN, MASK).fresh
        assert (agent.statistics.fallbacks, agent.statistics.missed_steps) == (0, 0)


NETWORK_CLIENT = """
import sys, time
import numpy as np
from hmarl.sdk.clients.client import AgentClient
from hmarl.sdk.fallback import Zero

agent = AgentClient("10.98.1.1:5555", timeout_s=0.05, stream=sys.argv[1] == "stream", fallback=Zero())
agent.reset(1)
observation, mask = np.zeros(6, np.float32), np.ones(5, np.bool_)
fresh = None
while True:
    action = agent.act(observation, mask)
    if action.fresh is not fresh:
        fresh = action.fresh
        print("fresh" if fresh else "stale", flush=True)
    time.sleep(0.03)
"""


@pytest.fixture
def namespaces() -> Iterator[Callable[[str], None]]:
    """Two network namespaces, hmarlA with 10.98.1.1 and hmarlB with 10.98.2.2, and a router between them."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    a, b, m = (f"hmarl{letter}{os.getpid()}" for letter in "ABM")

    def sh(line: str) -> None:
        line = line.replace("{A}", a).replace("{B}", b).replace("{M}", m)
        subprocess.run(line, shell=True, check=True, capture_output=True)

    try:
        sh("ip netns add {A} && ip netns add {B} && ip netns add {M}")
        for number, name in ((1, "{A}"), (2, "{B}")):
            sh(f"ip -n {name} link add eth type veth peer name eth{number} netns {{M}}")
            sh(f"ip -n {name} addr add 10.98.{number}.{number}/24 dev eth && ip -n {name} link set eth up")
            sh(f"ip -n {{M}} addr add 10.98.{number}.254/24 dev eth{number} && ip -n {{M}} link set eth{number} up")
            sh(f"ip -n {name} link set lo up && ip -n {name} route add default via 10.98.{number}.254")
        sh("ip netns exec {M} sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.decode().strip()}")
    else:
        yield sh
    finally:
        for name in (a, b, m):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def test_packets_that_are_lost_for_seconds(
    namespaces: Callable[[str], None], toy_bundle: Bundle, tmp_path: Path
) -> None:
    program = tmp_path / "client.py"
    program.write_text(NETWORK_CLIENT)
    inside = ("ip", "netns", "exec")
    command = [*inside, f"hmarlB{os.getpid()}", sys.executable, str(program)]
    clients = []
    with AgentProcess(toy_bundle.path, "agent_0", "10.98.1.1:5555", before=(*inside, f"hmarlA{os.getpid()}")):
        try:
            for mode in ("unary", "stream"):
                clients.append(subprocess.Popen([*command, mode], stdout=subprocess.PIPE, text=True))
            assert [read(client) for client in clients] == ["fresh", "fresh"]
            namespaces("ip netns exec {M} sh -c 'echo 0 > /proc/sys/net/ipv4/ip_forward'")
            assert [read(client) for client in clients] == ["stale", "stale"]
            time.sleep(7)  # TCP by itself tries again 6.2 s and 12.6 s after the last packet that arrived
            namespaces("ip netns exec {M} sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'")
            begin = time.monotonic()
            assert [read(client) for client in clients] == ["fresh", "fresh"]
            assert time.monotonic() - begin < 4
        finally:
            for client in clients:
                client.kill()
                client.communicate()


def read(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()
