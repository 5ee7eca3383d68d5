"""Certificates of both sides are replaced again and again while clients act: no act is lost, and none is stale.

100,000 acts; HMARL_ROTATION_ACTS says how many instead.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from agent_process import AgentProcess
from hmarl.runtime.authority import Authority
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.session import Policy
from hmarl.sdk import AgentClient
from processes import descriptors, rss_mib, threads
from secured import security, server_options

pytestmark = pytest.mark.reliability
ACTS = int(os.environ.get("HMARL_ROTATION_ACTS", "100000"))
EPISODE = 5_000
ROTATE_EVERY_S = 1.0
CLIENTS = (False, True)  # streaming?


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
