"""One after the other: what each agent maximises, given the ratios of the agents before."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from hmarl.trainer.sequential.samples import TeamSamples
from hmarl.trainer.sequential.turns import Improvement, Turn, one_after_the_other
from training_runs import new_algorithm

pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.mark.parametrize("name", ["haa2c", "hamdpo", "happo", "hatrpo", "hcpo"])
def test_the_joint_advantage_is_multiplied_by_the_ratios_of_those_before(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm, rollout, collector = new_algorithm(name, "toy_environments:masked_discrete", 4, 10)
    collector.collect(algorithm)
    told: dict[str, Any] = {}

    def noted(team: Any, **known: Any) -> dict[str, float]:
        told.update(known)
        return {}

    monkeypatch.setattr(import_module(f"hmarl.trainer.algorithms.{name}"), "one_after_the_other", noted)
    algorithm.update(rollout, 0.0)
    size = rollout.steps * rollout.batch_size
    alone = told["advantage"](0, torch.ones(size))
    assert float(alone.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(alone.std()) == pytest.approx(1.0, abs=0.02)
    factor = torch.linspace(0.5, 2.0, size)
    torch.testing.assert_close(told["advantage"](1, factor), factor * alone)
    assert told["schedule"] == 1.0


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("task", ["toy_environments:leaving", "smax/2s3z"])
def test_ratios_are_to_the_policies_that_collected_whoever_shares_parameters(task: str, shared: bool) -> None:
    """F is π_now/π_old of those who have had their turn; with shared parameters each turn moves all of them."""
    algorithm, rollout, collector = new_algorithm("happo", task, 3, 8, share_parameters=shared)
    collector.collect(algorithm)
    team = TeamSamples(rollout, algorithm.policies, algorithm.features(rollout))
    agents = range(len(team.spec.agents))

    def log_probs() -> list[Tensor]:
        """Of all agents' actions, under the policies as they are."""
        return [team.of_agent(agent).old_log_prob for agent in agents]

    before, done = log_probs(), list[int]()
    seen: list[tuple[Tensor, Tensor]] = []

    def improve(turn: Turn) -> Improvement:
        now, samples = log_probs(), turn.samples
        torch.testing.assert_close(samples.old_log_prob, before[turn.agent])
        torch.testing.assert_close(samples.old.log_prob(samples.actions), now[turn.agent])
        expected = torch.ones_like(turn.factor)
        for agent in done:
            there = rollout.active[..., agent].flatten()
            expected = expected * torch.where(there, (now[agent] - before[agent]).exp(), 1.0)
        seen.append((turn.factor, expected))
        with torch.no_grad():
            row = turn.policy.row(turn.member)
            row.add_(0.1 * torch.randn(row.shape, generator=torch.Generator().manual_seed(turn.agent)))
            done.append(turn.agent)
            return Improvement(samples.under(turn.policy, row), {"agent_kl": 0.0})

    one_after_the_other(team, lambda remaining, factor: remaining[-1], lambda agent, factor: factor, improve)
    for factor, expected in seen:
        torch.testing.assert_close(factor, expected)
    assert float((seen[-1][0] - 1.0).abs().max()) > 0.01, "no policy has moved"
