"""An agent that leaves in mid-episode and comes back, and one that comes late: the same whoever plays it.

What an agent remembers stands still while it is away, and its steps go on: in torch, in ONNX Runtime, served, and in a
session that is not asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from agent_process import AgentProcess
from hmarl.runtime.bundle import Bundle, to_plain, write_bundle
from hmarl.runtime.session import Policy
from hmarl.sdk.environment import Observation
from hmarl.sdk.environments import make
from hmarl.sdk.evaluation.closed_loop import Evaluation, evaluate
from hmarl.sdk.evaluation.deployed_teams import BundleTeam, FleetTeam
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.sdk.team import Team
from hmarl.trainer.algorithms.hcpo import Hcpo
from hmarl.trainer.contract.local_team import LocalTeam
from hmarl.trainer.export.export import graphs_of
from hmarl.trainer.export.graphs import onnx_bytes
from toy_bundle import toy_manifest
from training_runs import new_hcpo

ENVIRONMENT = "toy_environments:returning"
EPISODES = 4
BATCH = 2


@pytest.fixture(scope="module")
def trained() -> Hcpo:
    """Agents who remember, under instructions that hold for two steps; their weights are large, so that it matters."""
    algorithm, _, _ = new_hcpo(ENVIRONMENT, recurrent=True, memory_size=6, instruction_interval=2)
    generator = torch.Generator().manual_seed(7)
    for policy in algorithm.policies:
        policy.theta.copy_(2.0 * torch.randn(policy.theta.shape, generator=generator))
    return algorithm


@pytest.fixture(scope="module")
def bundle(trained: Hcpo, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    graphs = graphs_of(trained.spec, trained)
    entries = [to_plain(entry) for graph in graphs for entry in graph.entries]
    files = {graph.file: onnx_bytes(graph) for graph in graphs} | {"README.md": b"# Returning\n"}
    return write_bundle(tmp_path_factory.mktemp("returning") / "bundle", toy_manifest(entries), files)


@pytest.fixture(scope="module")
def addresses(bundle: Bundle) -> Iterator[dict[str, str]]:
    with ExitStack() as stack:
        agents = {
            agent.id: stack.enter_context(AgentProcess(Path(bundle.path), agent.id)) for agent in bundle.manifest.agents
        }
        yield {name: agent.address for name, agent in agents.items()}


class SessionTeam:
    """A session of the runtime for each agent and row, which is asked when its agent is there."""

    name = "sessions"

    def __init__(self, bundle: Bundle, spec: EnvironmentSpec, sample: bool) -> None:
        self._sample = sample
        policies = [Policy(bundle, agent.id) for agent in spec.agents]
        self._sessions = [[policy.session() for policy in policies] for _ in range(BATCH)]

    def reset(self, seeds: np.ndarray) -> None:
        self._step = 0
        for seed, row in zip(seeds, self._sessions, strict=True):
            for session in row:
                session.reset(int(seed), sample=self._sample)

    def act(self, observation: Observation, running: np.ndarray) -> tuple[np.ndarray, ...]:
        (seen,), (mask,) = observation.observations, observation.action_masks
        actions = np.zeros(seen.shape[:2], np.int64)
        for row, agent in np.argwhere(observation.active & running[:, None]):
            session = self._sessions[row][agent]
            actions[row, agent] = session.act(seen[row, agent], mask[row, agent], step=self._step).action
        self._step += 1
        return (actions,)

    def close(self) -> None:
        """Nothing to free."""


def played(team: Team) -> Evaluation:
    environment = make(ENVIRONMENT, BATCH)
    return evaluate(environment, team, EPISODES, seed=3, record=True)


@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampled"])
def test_all_teams_act_alike(trained: Hcpo, bundle: Bundle, addresses: dict[str, str], sample: bool) -> None:
    spec = make(ENVIRONMENT, BATCH).spec
    fleet = FleetTeam(addresses, spec, sample=sample)
    teams: list[Team] = [
        LocalTeam(trained, sample=sample),
        BundleTeam(bundle, spec, sample=sample),
        SessionTeam(bundle, spec, sample),
        fleet,
    ]
    found = [played(team) for team in teams]
    fleet.close()
    for each in found[1:]:
        assert each.actions is not None
        np.testing.assert_array_equal(each.actions[0], found[0].actions[0], err_msg=each.team)
        np.testing.assert_array_equal(each.returns, found[0].returns)
