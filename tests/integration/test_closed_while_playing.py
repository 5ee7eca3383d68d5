"""A served team that is closed while its agents are still asked, as Ctrl-C in mid-play does."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from gymnasium import spaces

from agent_process import AgentProcess
from hmarl.runtime.bundle import Bundle
from hmarl.sdk.environment import Observation
from hmarl.sdk.evaluation.deployed_teams import FleetTeam
from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec


def test_acts_that_are_under_way_end_before_their_clients(toy_bundle: Bundle) -> None:
    names = ("agent_0", "agent_1")
    agents = tuple(AgentSpec(name, 6, spaces.Discrete(5), has_action_mask=True) for name in names)
    seen = Observation(
        (np.zeros((1, 2, 6), np.float32),),
        (np.ones((1, 2, 5), np.bool_),),
        np.zeros((1, 1), np.float32),
        np.ones((1, 2), np.bool_),
    )
    with ExitStack() as stack:
        processes = [stack.enter_context(AgentProcess(Path(toy_bundle.path), name)) for name in names]
        addresses = {name: each.address for name, each in zip(names, processes, strict=True)}
        team = FleetTeam(addresses, EnvironmentSpec("toy", agents, 1, 50, "sum"), timeout_s=30.0)
        team.reset(np.asarray([1]))
        running = np.ones(1, np.bool_)
        team.act(seen, running)
        processes[1].freeze()
        playing = threading.Thread(target=team.act, args=(seen, running))
        playing.start()
        time.sleep(0.3)  # by now the frozen agent has been asked
        thawing = threading.Timer(0.5, processes[1].thaw)
        thawing.start()
        team.close()
        playing.join()
        thawing.join()
