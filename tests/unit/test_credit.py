"""Credit: every agent learns from the team's reward, or from its own with a V of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hmarl.sdk.errors import UsageError
from hmarl.trainer.algorithms.a2po import corrected_advantages
from hmarl.trainer.algorithms.hatrpo import HatrpoSettings
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.guiders.trained import clipped_value_loss
from hmarl.trainer.learning.critic import Critic
from hmarl.trainer.learning.returns import normalise_advantages
from hmarl.trainer.networks.settings import validate
from hmarl.trainer.sequential import turns
from hmarl.trainer.sequential.estimates import Estimate, advantages_of_agents, counted, estimate_by, joint_estimate
from hmarl.trainer.sequential.turns import Turn
from training_runs import CPU, new_algorithm

pytestmark = pytest.mark.usefixtures("single_thread")

LEAVING = "toy_environments:leaving"
SEQUENTIAL = ("happo", "haa2c", "hamdpo", "hatrpo", "a2po")


def collected(name: str, credit: str, **settings: Any) -> tuple[Any, Rollout]:
    """A rollout in which agents leave, episodes terminate and are cut off, and each agent earns something else."""
    algorithm, rollout, collector = new_algorithm(name, LEAVING, 6, 12, credit=credit, **settings)
    collector.collect(algorithm)
    rollout.rewards = torch.randn(rollout.rewards.shape, generator=torch.Generator().manual_seed(1))
    rollout.rewards[~rollout.active] = 0.0
    rollout.team_rewards = rollout.rewards.sum(-1)
    assert rollout.terminated.any()
    assert rollout.truncated.any()
    assert not rollout.all_active
    return algorithm, rollout


def own_by_definition(rollout: Rollout, values: Tensor, finals: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """[T, B, N] advantages, one environment, one agent and one step at a time."""
    last_seen = {place: f for f, place in enumerate(rollout.final_places)}
    there_at_last = torch.cat([final.active for final in rollout._finals])
    advantages = torch.zeros_like(rollout.rewards)
    for b in range(rollout.batch_size):
        for n in range(rollout.rewards.shape[-1]):
            running = 0.0
            for t in reversed(range(rollout.steps)):
                over = bool(rollout.terminated[t, b])
                if (t, b) in last_seen:
                    following, there = finals[last_seen[t, b], n], there_at_last[last_seen[t, b], n]
                    running = 0.0
                else:
                    following = values[t + 1, b, n]
                    there = rollout.active[t + 1, b, n] if t + 1 < rollout.steps else rollout.last_active[b, n]
                if over or not there:
                    following, running = 0.0, 0.0
                delta = float(rollout.rewards[t, b, n]) + gamma * float(following) - float(values[t, b, n])
                running = delta + gamma * gae_lambda * running
                advantages[t, b, n] = running
    return advantages


def test_own_advantages_by_definition() -> None:
    algorithm, rollout = collected("happo", "own", gamma=0.9, gae_lambda=0.8)
    states = algorithm.state_normaliser
    estimate = joint_estimate(rollout, algorithm.critic, states, algorithm.settings)
    values, finals = (algorithm.critic.values(states(each)) for each in (rollout.states, rollout.final_states))
    assert values.shape == (*rollout.states.shape[:2], 3)
    assert values.std(dim=-1).min() > 0, "a value of its own for every agent"
    torch.testing.assert_close(estimate.values, values[:-1])
    expected = own_by_definition(rollout, values, finals, 0.9, 0.8)
    torch.testing.assert_close(estimate.advantages, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(estimate.returns, estimate.advantages + estimate.values)


def test_one_value_judges_the_teams_reward() -> None:
    algorithm, rollout = collected("happo", "team")
    estimate = joint_estimate(rollout, algorithm.critic, algorithm.state_normaliser, algorithm.settings)
    assert not estimate.of_agents
    agents = advantages_of_agents(rollout, estimate)
    joint = normalise_advantages(estimate.advantages)
    assert all(torch.equal(agents[..., n], joint) for n in range(3))
    assert counted(rollout, estimate.values) is estimate.values


def test_own_advantages_are_normalised_over_the_steps_at_which_agents_were_there() -> None:
    _, rollout = collected("happo", "own")
    values = torch.randn(13, 6, 3, generator=torch.Generator().manual_seed(2))
    finals = torch.randn(len(rollout.final_states), 3, generator=torch.Generator().manual_seed(3))
    estimate = estimate_by(rollout, torch.zeros(72, 1), values, finals, validate(HatrpoSettings, {}, "algorithm"))
    agents = advantages_of_agents(rollout, estimate)
    mean, std = agents[rollout.active].mean(), agents[rollout.active].std(correction=0)
    assert float(mean) == pytest.approx(0.0, abs=1e-5)
    assert float(std) == pytest.approx(1.0, rel=1e-4)
    assert torch.equal(counted(rollout, estimate.returns), estimate.returns[rollout.active])


# --- who learns from what -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEQUENTIAL)
@pytest.mark.parametrize("credit", ["team", "own"])
def test_every_agent_climbs_its_own_advantage_times_the_factor(
    name: str, credit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm, rollout = collected(name, credit)
    estimate = joint_estimate(rollout, algorithm.critic, algorithm.state_normaliser, algorithm.settings)
    seen: list[Turn] = []

    def told(*known: Any) -> Turn:
        seen.append(Turn(*known))
        return seen[-1]

    monkeypatch.setattr(turns, "Turn", told)
    metrics = algorithm.update(rollout, 0.0)
    assert sorted(turn.agent for turn in seen) == [0, 1, 2]
    if name != "a2po":
        expected = advantages_of_agents(rollout, estimate)
        for turn in seen:
            torch.testing.assert_close(turn.advantages, turn.factor * expected[..., turn.agent].flatten())
    first = [turn.advantages for turn in sorted(seen, key=lambda turn: turn.agent)]
    alike = torch.allclose(first[0] / seen[0].factor, first[1] / seen[0].factor, atol=1e-3)
    assert credit == "team" or not alike
    assert all(torch.isfinite(torch.tensor(list(metrics.values()))))


def test_mappos_agents_climb_their_own_advantages(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, rollout = collected("mappo", "own", share_parameters=False)
    estimate = joint_estimate(rollout, algorithm.critic, algorithm.state_normaliser, algorithm.settings)
    expected, seen = advantages_of_agents(rollout, estimate), []
    inner = algorithm.steps.descend
    monkeypatch.setattr(algorithm.steps, "descend", lambda turn, *rest: seen.append(turn) or inner(turn, *rest))
    algorithm.update(rollout, 0.0)
    for turn in seen:
        torch.testing.assert_close(turn.advantages, expected[..., turn.agent].flatten())
    assert len(seen) == 3


def test_a2po_corrects_each_agents_own_advantage() -> None:
    """What the definition says without a factor; with one, each agent's differs from the team's."""
    algorithm, rollout = collected("a2po", "own", gamma=0.9, gae_lambda=0.8)
    estimate = joint_estimate(rollout, algorithm.critic, algorithm.state_normaliser, algorithm.settings)
    ones = torch.ones(rollout.team_rewards.numel())
    for agent in range(3):
        got = corrected_advantages(rollout, estimate, agent, ones, algorithm.settings).view(12, 6)
        there = rollout.active[..., agent]
        expected = normalise_advantages(estimate.advantages[..., agent], there.float())
        torch.testing.assert_close(got[there], expected[there], rtol=1e-4, atol=1e-5)
        halved = corrected_advantages(rollout, estimate, agent, 0.5 * ones, algorithm.settings).view(12, 6)
        assert not torch.allclose(halved[there], got[there], atol=1e-3)


def test_a_critics_outputs_are_fitted_where_their_agents_were_there() -> None:
    """Two agents, one of whom is gone in two rows: those targets neither cost nor move the units."""
    states = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 2.0], [0.5, 0.5]])
    there = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 0]]).bool()
    fitted = []
    for junk in (0.0, 9e3):
        targets = torch.tensor([[1.0, 5.0], [2.0, junk], [3.0, 7.0], [6.0, junk]])
        settings = {"critic_hidden_sizes": (4,), "critic_epochs": 1, "critic_minibatches": 1, "critic_loss": "mse"}
        critic = Critic(
            2, validate(HatrpoSettings, settings, "algorithm"), torch.Generator().manual_seed(3), CPU, outputs=2
        )
        said = critic.network(critic.theta.clone(), states)
        metrics = critic.fit(states, targets, torch.Generator().manual_seed(0), there=there)
        left = targets[there]
        scaled = (targets - left.mean()) / left.std(correction=0)
        assert metrics["critic_loss"] == pytest.approx(float((said - scaled)[there].square().mean()), rel=1e-4)
        fitted.append((critic.theta.clone(), metrics))
    assert torch.equal(fitted[0][0], fitted[1][0])
    assert fitted[0][1] == fitted[1][1]


# --- guiders --------------------------------------------------------------------------------------------------------


def test_a_guiders_own_values_cost_where_their_agents_were_there() -> None:
    values, old = torch.tensor([[[1.5, 0.9], [2.0, 5.0]]]), torch.ones(1, 2, 2)
    targets, weight = torch.tensor([[[2.0, 2.0], [0.0, 9e3]]]), torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    loss = clipped_value_loss(values, old, targets, 0.2, weight)
    assert float(loss) == pytest.approx((0.8**2 + 1.1**2 + 2.0**2) / 3, rel=1e-5)


@pytest.mark.parametrize(("name", "guider"), [("mat", "mat"), ("sable", "sable"), ("magpo", "factorised")])
def test_an_agents_own_value_learns_its_own_reward(name: str, guider: str) -> None:
    """Agent 0 always earns 1, agent 1 always −1, agent 2 nothing: the values part accordingly."""
    small = {"embedding_size": 8, "epochs": 4, "learning_rate": 1e-2, "gamma": 0.0, "guider": guider, "clip": 0.9}
    algorithm, rollout, collector = new_algorithm(
        name, "toy_environments:masked_discrete", 6, 10, {"agents": 3}, credit="own", **small
    )
    for _ in range(25):
        collector.collect(algorithm)
        rollout.rewards[:] = torch.tensor([1.0, -1.0, 0.0])
        algorithm.update(rollout, 0.0)
    collector.collect(algorithm)
    said = algorithm.guider.value_normaliser.denormalise(rollout.extras["value"]).mean((0, 1))
    assert said[0] > 0.5
    assert said[1] < -0.5
    assert abs(float(said[2])) < 0.5


def test_under_a_conductor_the_team_is_judged_as_one() -> None:
    with pytest.raises(UsageError, match=r"algorithm\.credit: got 'own', expected"):
        new_algorithm("guided-hcpo", LEAVING, 6, 12, credit="own")


def test_an_estimate_says_whose_it_is() -> None:
    zeros = torch.zeros(2, 3)
    estimate = Estimate(torch.zeros(6, 1), zeros, zeros, zeros, zeros)
    assert not estimate.of_agents
    assert replace(estimate, values=torch.zeros(2, 3, 4)).of_agents
