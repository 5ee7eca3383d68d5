"""No agent talks to another: proved by what goes over the cables of agents in network namespaces of their own."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import team_player
from agent_process import AgentProcess
from network_namespaces import Network, Verdict, needs_namespaces, network, run_inside, watched
from serving import SHIPPED_BUNDLE as BUNDLE

ENVIRONMENT, AGENTS = "mpe/simple_spread", ("agent_0", "agent_1", "agent_2")
EPISODES, SEED = 3, 7
# A word to another agent: over TCP, as a client would; and to all that hear it.
ASK = """
import sys, grpc
from hmarl.agent.v1 import agent_pb2, agent_pb2_grpc
with grpc.insecure_channel(sys.argv[1]) as channel:
    print(agent_pb2_grpc.AgentServiceStub(channel).GetAgentInfo(agent_pb2.GetAgentInfoRequest(), timeout=20).agent_id)
"""
SHOUT = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as speaker:
    speaker.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    speaker.sendto(b"this way", (sys.argv[1], 9999))
"""


@pytest.fixture(scope="module")
def cables() -> Iterator[Network]:
    """A network in which every agent of the team serves, reachable by its client alone."""
    needs_namespaces()
    with ExitStack() as stack:
        cables = stack.enter_context(network(len(AGENTS)))
        for agent_id, cable in zip(AGENTS, cables.cables, strict=True):
            stack.enter_context(
                AgentProcess(BUNDLE, agent_id, cable.address, before=cable.inside, options=("--insecure",))
            )
        yield cables


def play(cables: Network) -> dict[str, object]:
    """What the team does and earns, its client in the client's namespace."""
    endpoints = {agent_id: cable.address for agent_id, cable in zip(AGENTS, cables.cables, strict=True)}
    words = (sys.executable, team_player.__file__, ENVIRONMENT, json.dumps(endpoints), EPISODES, SEED)
    done = run_inside(cables.client, *words)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def on_one_host() -> dict[str, object]:
    """What it does and earns where all agents listen on the loopback interface."""
    with ExitStack() as stack:
        agents = {name: stack.enter_context(AgentProcess(BUNDLE, name)) for name in AGENTS}
        endpoints = {name: agent.address for name, agent in agents.items()}
        return team_player.played(ENVIRONMENT, endpoints, EPISODES, SEED)


def test_a_team_that_cannot_talk_plays_as_on_one_host(
    cables: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Drawn actions, instructions with numbers in common: they agree without a word."""
    with watched(cables, tmp_path) as judge:
        apart = play(cables)
    verdicts = judge()
    with capsys.disabled():
        print(f"\nreturns {apart['returns']}")
        for agent_id, verdict in zip(AGENTS, verdicts, strict=True):
            print(f"  {agent_id}: {verdict.own} packets with its client, {len(verdict.foreign)} others")
    assert [verdict.foreign for verdict in verdicts] == [(), (), ()]
    acts = sum(apart["lengths"])  # type: ignore[call-overload]
    assert all(verdict.own > 2 * acts for verdict in verdicts), "a request and a reply each"
    assert apart == on_one_host()
    for cable in cables.cables:
        listed = run_inside(cable.inside, "ip", "-brief", "link").stdout.split()
        assert [word.partition("@")[0] for word in listed if word.startswith(("lo", "eth", "agent"))] == ["lo", "eth0"]


def test_one_agent_cannot_reach_another(cables: Network, tmp_path: Path) -> None:
    """Not even on purpose: there is no way, and nothing gets onto a cable."""
    with watched(cables, tmp_path) as judge:
        done = run_inside(cables.cables[0].inside, sys.executable, "-c", ASK, cables.cables[1].address)
    assert done.returncode != 0
    assert "unreachable" in done.stderr
    assert [verdict.foreign for verdict in judge()] == [(), (), ()]


def test_a_word_to_another_agent_would_be_seen(cables: Network, tmp_path: Path) -> None:
    """The control: with a way from cable to cable, which takes an administrator to make."""
    first, second, _ = cables.cables
    with cables.forwarding(), watched(cables, tmp_path) as judge:
        done = run_inside(first.inside, sys.executable, "-c", ASK, second.address)
        assert done.stdout.strip() == "agent_1", done.stderr
    verdicts = judge()
    for verdict in verdicts[:2]:
        assert any(f"-> {second.address}, protocol 6" in line for line in verdict.foreign), verdict
    assert verdicts[2].foreign == ()


@pytest.mark.slow
def test_with_a_way_out_no_agent_takes_it(tmp_path: Path) -> None:
    """From the start on, for as long as anything that calls home waits before it does."""
    needs_namespaces()
    with network(1) as one, one.forwarding(), watched(one, tmp_path) as judge:
        (cable,) = one.cables
        with AgentProcess(BUNDLE, AGENTS[0], cable.address, before=cable.inside, options=("--insecure",)):
            time.sleep(40.0)
    assert judge() == [Verdict(0, ())]


@pytest.mark.slow
def test_training_exporting_and_playing_ask_no_one(tmp_path: Path) -> None:
    needs_namespaces()
    run = tmp_path / "run"
    small = (
        "--steps",
        2000,
        "--set",
        "run.environments=8",
        "--set",
        "run.threads=1",
        "--set",
        "run.evaluation_episodes=4",
    )
    programs = {
        "hmarl.trainer.commands.train:train_main": ("happo", "--env", ENVIRONMENT, "--out", run, *small),
        "hmarl.trainer.commands.export:export_main": (run,),
        "hmarl.sdk.commands.evaluate:main": ("--bundle", run / "bundle", "--episodes", 4, "--out", tmp_path / "report"),
    }
    with network(1) as one, one.forwarding(), watched(one, tmp_path) as judge:
        for program, words in programs.items():
            module, name = program.split(":")
            code = f"from {module} import {name}; {name}()"
            done = run_inside(one.cables[0].inside, sys.executable, "-c", code, *words, HOME=str(tmp_path))
            assert done.returncode == 0, done.stderr
        time.sleep(10.0)
    assert judge() == [Verdict(0, ())]


def test_a_shout_would_be_seen(cables: Network, tmp_path: Path) -> None:
    cable = cables.cables[2]
    with watched(cables, tmp_path) as judge:
        done = run_inside(cable.inside, sys.executable, "-c", SHOUT, cable.client_ip.rpartition(".")[0] + ".3")
        assert done.returncode == 0, done.stderr
    verdicts = judge()
    assert [len(verdict.foreign) > 0 for verdict in verdicts] == [False, False, True]
    assert "-> 10.77.2.3:9999, protocol 17" in verdicts[2].foreign[0]
