"""Certificates of both sides are replaced again and again while clients act: no act is lost, and none is stale.

One agent with two clients, and a fleet (``--tls DIR``) with two teams of clients, which play episodes; the fleet renews
certificates itself beside. 100,000 acts each; HMARL_ROTATION_ACTS says how many instead.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from agent_process import AgentProcess
from hmarl.runtime.authority import Authority
from hmarl.runtime.bundle import Bundle, load_bundle
from hmarl.runtime.session import Policy
from hmarl.sdk import AgentClient
from hmarl.sdk.environments import make
from hmarl.sdk.evaluation.closed_loop import evaluate
from hmarl.sdk.evaluation.deployed_teams import BundleTeam, FleetTeam
from processes import LIMIT_S, children, descriptors, rss_mib, threads, wait_for
from secured import security, server_options
from serving import SHIPPED_BUNDLE

pytestmark = pytest.mark.reliability
ACTS = int(os.environ.get("HMARL_ROTATION_ACTS", "100000"))
EPISODE = 5_000
ROTATE_EVERY_S = 1.0
CLIENTS = (False, True)  # streaming?
ENVIRONMENT, HORIZON = "mpe/simple_spread", 200
SHORT_DAYS = 140 / 86_400  # of the 440 s from five minutes ago, when a certificate begins, less than a third is left
RENEWED_WITHIN_S = 60.0  # the fleet looks every 30 s


@dataclass
class Tally:
    """What one client saw."""

    acts: int = 0
    wrong: int = 0
    changes: int = 0
    slowest_s: float = 0.0
    errors: list[str] = field(default_factory=list)


def play(bundle: Bundle, address: str, keys: Authority, stream: bool, acts: int, tally: Tally) -> None:
    """Act, each action compared with the policy in process."""
    policy, random, mask = Policy(bundle, "agent_0"), np.random.default_rng(int(stream)), np.ones(5, np.bool_)
    chosen = security(keys, keys.find("client", f"client{int(stream)}"))
    try:
        with AgentClient(address, security=chosen, stream=stream, timeout_s=5.0) as agent:
            connection = agent._wire.connection
            for number in range(acts):
                if number % EPISODE == 0:
                    session = policy.session()
                    session.reset(number)
                    agent.reset(number)
                observation = random.normal(size=6).astype(np.float32)
                wanted = session.act(observation, mask, step=number % EPISODE)
                got = agent.act(observation, mask)
                tally.acts += 1
                right = got.fresh and got.step == number % EPISODE and not got.missed_steps and not got.replayed
                tally.wrong += not (right and got.action == wanted.action)
                tally.slowest_s = max(tally.slowest_s, got.latency_s)
                tally.changes += agent._wire.connection is not connection
                connection = agent._wire.connection
            tally.wrong += agent.statistics.fallbacks + agent.statistics.rejoins + agent.statistics.late_replies
    except Exception as error:
        tally.errors.append(repr(error))


def test_no_act_is_lost_while_certificates_are_replaced(toy_bundle: Bundle, tmp_path: Path) -> None:
    keys = Authority.create(tmp_path / "keys")
    agent = keys.issue_agent("agent_0")
    for stream in CLIENTS:
        keys.issue_client(f"client{int(stream)}")
    tallies = {stream: Tally() for stream in CLIENTS}
    rotations = 0
    with AgentProcess(toy_bundle.path, "agent_0", options=server_options(keys, agent), log=tmp_path / "log") as served:
        players = [
            threading.Thread(target=play, args=(toy_bundle, served.address, keys, stream, ACTS // 2, tally))
            for stream, tally in tallies.items()
        ]
        begin, before = time.monotonic(), rss_mib(served.process.pid)
        for player in players:
            player.start()
        while any(player.is_alive() for player in players):
            time.sleep(ROTATE_EVERY_S)
            keys.issue_agent("agent_0")
            for stream in CLIENTS:
                keys.issue_client(f"client{int(stream)}")
            rotations += 1
        took_s, pid = time.monotonic() - begin, served.process.pid
        read = served.log.count("read the certificate again")
        print(
            f"\n{sum(each.acts for each in tallies.values()):,} acts in {took_s:.0f} s, {rotations} rotations, read "
            f"again {read} times; RSS {before:.1f} -> {rss_mib(pid):.1f} MiB, {descriptors(pid)} descriptors, "
            f"{threads(pid)} threads"
        )
        assert "cannot be used" not in served.log
    for stream, tally in tallies.items():
        print(
            f"{'stream' if stream else 'unary'}: {tally.acts:,} acts, {tally.changes} changes of connection, lost, "
            f"stale or wrong {tally.wrong}, slowest {1000 * tally.slowest_s:.0f} ms"
        )
    for tally in tallies.values():
        assert (tally.acts, tally.wrong, tally.errors) == (ACTS // 2, 0, [])
        assert tally.changes >= min(rotations, 2) // 2
    assert read >= rotations // 2 > 0


@dataclass
class Played:
    """What one team of clients did."""

    acts: int = 0
    episodes: int = 0
    different: int = 0
    changes: int = 0
    slowest_s: float = 0.0
    errors: list[str] = field(default_factory=list)


def play_as_a_team(bundle: Bundle, out: Path, stream: bool, enough: Callable[[int], bool], played: Played) -> None:
    """Play episodes; actions and returns are those of the same policies in this process."""
    try:
        environment, other = make(ENVIRONMENT, 1, max_cycles=HORIZON), make(ENVIRONMENT, 1, max_cycles=HORIZON)
        here = BundleTeam(bundle, other.spec, sample=True)
        there = FleetTeam(out, environment.spec, sample=True, stream=stream, timeout_s=LIMIT_S)
        clients = [client for row in there.clients.values() for client in row]
        connections = [client._wire.connection for client in clients]
        while not enough(played.acts):
            seed = played.episodes
            got = evaluate(environment, there, 1, seed=seed, record=True)
            wanted = evaluate(other, here, 1, seed=seed, record=True)
            assert got.actions is not None
            assert wanted.actions is not None
            same = all(np.array_equal(*each) for each in zip(got.actions, wanted.actions, strict=True))
            played.different += not (same and np.array_equal(got.returns, wanted.returns))
            played.acts += int(got.lengths.sum()) * len(clients)
            played.episodes += 1
            now = [client._wire.connection for client in clients]
            played.changes += sum(new is not old for new, old in zip(now, connections, strict=True))
            connections = now
        played.slowest_s = float(there.latencies_s().max())
        for client in clients:
            statistics = client.statistics
            played.different += statistics.fallbacks + statistics.rejoins + statistics.late_replies
        assert list(there.bundles) == [bundle.sha256]
        there.close()
    except Exception as error:
        played.errors.append(repr(error))


def test_a_team_plays_on_while_certificates_are_replaced(tmp_path: Path) -> None:
    bundle, keys_path, out = load_bundle(SHIPPED_BUNDLE), tmp_path / "keys", tmp_path / "endpoints.json"
    teams = {stream: Played() for stream in CLIENTS}
    log = (tmp_path / "log").open("w")
    command = [sys.executable, "-m", "hmarl.runtime.commands.fleet", str(bundle.path), "--out", str(out)]
    command += ["--tls", str(keys_path), "--log-level", "info"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log) as fleet:
        try:
            wait_for(out.exists, "serving")
            keys, members = Authority(keys_path), children(fleet.pid)
            before, begin = [rss_mib(pid) for pid in members], time.monotonic()

            def said(text: str) -> int:
                return (tmp_path / "log").read_text().count(text)

            def enough(acts: int) -> bool:
                renewed = said("issued a certificate for agent") > len(bundle.agent_ids)  # it made the first ones, too
                return acts >= ACTS // 2 and (renewed or time.monotonic() - begin > RENEWED_WITHIN_S)

            players = [
                threading.Thread(target=play_as_a_team, args=(bundle, out, stream, enough, played))
                for stream, played in teams.items()
            ]
            for player in players:
                player.start()
            rotations = 0
            while any(player.is_alive() for player in players):
                time.sleep(ROTATE_EVERY_S)
                for issued in keys.issued():  # valid for a while, and due at once: the fleet renews them, too
                    keys.replace(issued.role, issued.name, issued.hosts, SHORT_DAYS)
                rotations += 1
            took_s, read = time.monotonic() - begin, said("read the certificate again")
            renewals = said("issued a certificate for") - 1 - len(bundle.agent_ids)
            after = [rss_mib(pid) for pid in members]
            assert children(fleet.pid) == members, "the same processes"
        finally:
            fleet.terminate()
    print(
        f"\n{sum(each.acts for each in teams.values()):,} acts of two teams in {took_s:.0f} s, {rotations} rotations, "
        f"{renewals} renewals by the fleet, read again {read} times by {len(members)} agents; RSS "
        + ", ".join(f"{was:.1f} -> {now:.1f}" for was, now in zip(before, after, strict=True))
    )
    for stream, played in teams.items():
        print(
            f"{'stream' if stream else 'unary'}: {played.acts:,} acts in {played.episodes} episodes, {played.changes} "
            f"changes of connection, lost, stale, other {played.different}, slowest {1e3 * played.slowest_s:.0f} ms"
        )
    for played in teams.values():
        assert (played.different, played.errors) == (0, [])
        assert played.acts >= ACTS // 2
        assert played.changes >= min(rotations, 2) // 2 * len(members)
    assert renewals > 0
    assert read >= rotations // 2 * len(members) > 0
