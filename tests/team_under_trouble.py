"""A team that plays while things go wrong: every fresh action is held against the same draw of the same policy.

As a program, so that it can run in a namespace or under another clock::

    team_under_trouble.py BUNDLE ENDPOINTS_AS_JSON SECONDS TIMEOUT_S
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from healthy_client import Tally
from hmarl.runtime.bundle import load_bundle
from hmarl.runtime.session import Policy, PolicySession
from hmarl.sdk.clients.client import AgentClient
from hmarl.sdk.fallback import Zero

_PERIOD_S = 0.02


class Player:
    """One agent's client, actions drawn; an older step's action, or another agent's, is another one.

    Args:
        bundle: whose agent.
        agent_id: which one; that with a name in 1 acts over a stream.
        address: where it serves.
        timeout_s: of an act.
    """

    def __init__(self, bundle: Path, agent_id: str, address: str, timeout_s: float = 0.04) -> None:
        self.tally = Tally()
        self._client = AgentClient(address, timeout_s=timeout_s, fallback=Zero(), stream=agent_id.endswith("1"))
        self._client.reset(7, sample=True)
        self._session: PolicySession = Policy(load_bundle(bundle), agent_id).session()
        self._session.reset(7, sample=True)
        self.size = self._client.spec.observation_size

    def act(self, observation: npt.NDArray[np.float32]) -> bool:
        """One act; whether it was fresh."""
        step = self.tally.acts
        self.tally.acts += 1
        got = self._client.act(observation)
        self.tally.latencies_s.append(got.latency_s)
        wanted = self._session.act(observation, step=step).action
        self.tally.missed += not got.fresh
        self.tally.wrong += got.fresh and (got.step != step or got.action != wanted)
        return got.fresh

    def close(self) -> None:
        self._client.close()


def play(bundle: Path, endpoints: Mapping[str, str], seconds: float, timeout_s: float) -> list[dict[str, Any]]:
    """Play for a while; the last act of each agent may be tried for ten seconds more."""
    players = [Player(bundle, agent_id, address, timeout_s) for agent_id, address in endpoints.items()]
    generator = np.random.default_rng(1)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for player in players:
            player.act(generator.normal(size=player.size).astype(np.float32))
        time.sleep(_PERIOD_S)
    report = []
    for agent_id, player in zip(endpoints, players, strict=True):
        limit = time.monotonic() + 10.0
        while not (fresh := player.act(np.zeros(player.size, np.float32))) and time.monotonic() < limit:
            time.sleep(_PERIOD_S)
        tally = player.tally
        report.append({"agent": agent_id, "fresh": fresh, "wrong": tally.wrong, "acts": tally.acts, "row": tally.row()})
        player.close()
    return report


if __name__ == "__main__":
    print(json.dumps(play(Path(sys.argv[1]), json.loads(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))))
