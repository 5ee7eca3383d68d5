"""Advantage estimates against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hmarl.sdk.environment import Observation, StepResult
from hmarl.sdk.environments import make
from hmarl.trainer.experience.rollout import Decision, Rollout
from hmarl.trainer.learning.returns import (
    decision_advantages,
    explained_variance,
    generalised_advantages,
    normalise_advantages,
    weighted_mean,
)
from hmarl.trainer.sequential.estimates import joint_estimate
from training_runs import new_algorithm

pytestmark = pytest.mark.usefixtures("single_thread")
GAMMA, LAMBDA = 0.5, 0.5


def column(*numbers: float) -> Tensor:
    return torch.tensor(numbers).unsqueeze(1)


def flags(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.bool).unsqueeze(1)


def test_gae_hand_computed_without_an_end() -> None:
    advantages = generalised_advantages(
        column(1, 2, 4), column(2, 4, 8), column(4, 8, 16), flags(0, 0, 0), GAMMA, LAMBDA
    )
    # δ = 1+2-2, 2+4-4, 4+8-8 = 1, 2, 4; γλ = 1/4: A = 1 + 3/4, 2 + 4/4, 4.
    torch.testing.assert_close(advantages, column(1.75, 3.0, 4.0))


def test_gae_stops_at_termination_and_bootstraps_at_truncation() -> None:
    """Two columns alike but for how the episode ends at the second step; the third belongs to another episode."""
    rewards = torch.tensor([[1.0, 1.0], [2.0, 2.0], [100.0, 100.0]])
    values = torch.tensor([[2.0, 2.0], [4.0, 4.0], [8.0, 8.0]])
    # After the second step: 0 (terminated), V(final state) = 6 (truncated); never V = 8 of the next episode's start.
    next_values = torch.tensor([[4.0, 4.0], [0.0, 6.0], [0.0, 0.0]])
    ended = torch.tensor([[False, False], [True, True], [False, False]])
    advantages = generalised_advantages(rewards, values, next_values, ended, GAMMA, LAMBDA)
    # Terminated: δ_1 = 2 + 0 - 4 = -2, A_0 = (1 + 2 - 2) - 2/4. Truncated: δ_1 = 2 + 3 - 4 = 1, A_0 = 1 + 1/4.
    torch.testing.assert_close(advantages, torch.tensor([[0.5, 1.25], [-2.0, 1.0], [92.0, 92.0]]))


def test_gae_of_a_single_step_is_its_difference() -> None:
    advantages = generalised_advantages(column(1), column(2), column(4), flags(0), GAMMA, LAMBDA)
    torch.testing.assert_close(advantages, column(1.0))


def test_gae_takes_the_corrected_share_of_later_steps() -> None:
    """The factor of a step weighs what the steps before it take from it; the first one's weighs nothing."""
    advantages = generalised_advantages(
        column(1, 2, 4), column(2, 4, 8), column(4, 8, 16), flags(0, 0, 0), GAMMA, LAMBDA, column(9.0, 0.5, 0.25)
    )
    # δ = 1, 2, 4 and γλ = 1/4: A_1 = 2 + 1/4 · 1/4 · 4 = 9/4, A_0 = 1 + 1/4 · 1/2 · 9/4.
    torch.testing.assert_close(advantages, column(1.28125, 2.25, 4.0))


def observation(state: float) -> Observation:
    numbers = np.full((2, 1), state, np.float32)
    return Observation((torch.zeros(2, 2, 1),), (None,), torch.from_numpy(numbers), torch.ones(2, 2, dtype=torch.bool))


def test_rollout_bootstraps_from_the_final_state_and_not_from_the_one_after_auto_reset() -> None:
    """Row 0 is terminated and row 1 truncated at the first step; V(s) = s throughout."""
    rollout = Rollout(make("coordsum/sum-to-10", 2).spec, 2, 2, torch.device("cpu"))
    nothing = np.zeros(2, np.bool_)
    decision = Decision((torch.zeros(2, 2, dtype=torch.int64),), (torch.zeros(2, 2, dtype=torch.int64),))
    ends = StepResult(
        observation(100.0),
        np.ones((2, 2), np.float32),
        np.array([True, False]),
        np.array([False, True]),
        observation(7.0),
    )
    goes_on = StepResult(observation(200.0), np.zeros((2, 2), np.float32), nothing, nothing, None)
    rollout.begin()
    rollout.record(0, observation(1.0), decision, ends)
    rollout.record(1, observation(100.0), decision, goes_on)
    rollout.finish(observation(200.0))
    torch.testing.assert_close(rollout.final_states, torch.tensor([[7.0], [7.0]]))
    following = rollout.next_values(rollout.states.squeeze(-1), rollout.final_states.squeeze(-1))
    torch.testing.assert_close(following, torch.tensor([[0.0, 7.0], [200.0, 200.0]]))
    torch.testing.assert_close(rollout.ended, torch.tensor([[True, True], [False, False]]))
    # sum-to-10 shares its reward among two agents: the team's is 1, not 2.
    torch.testing.assert_close(rollout.team_rewards, torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    rollout.begin()
    assert rollout.final_states.shape == (0, 1), "ends of the previous rollout must be forgotten"


@pytest.mark.parametrize("environment", ["toy_environments:masked_discrete", "mpe/simple_spread"])
def test_estimate_of_a_real_rollout_equals_a_loop_over_episodes(environment: str) -> None:
    """Odd seeds of the toy terminate, even ones are truncated; a plain loop over rows computes the same."""
    arguments = {"max_cycles": 4} if environment.startswith("mpe") else {}
    algorithm, rollout, collector = new_algorithm("hatrpo", environment, 3, 12, arguments)
    collector.collect(algorithm)
    estimate = joint_estimate(rollout, algorithm.critic, algorithm.state_normaliser, algorithm.settings)
    gamma, decay = algorithm.settings.gamma, algorithm.settings.gae_lambda
    assert rollout.ended.any()
    finals = iter(algorithm.critic.values(algorithm.state_normaliser(rollout.final_states)).tolist())
    values = algorithm.critic.values(algorithm.state_normaliser(rollout.states)).tolist()
    following = [[0.0] * 3 for _ in range(12)]
    for t in range(12):
        for b in range(3):
            following[t][b] = next(finals) if rollout.ended[t, b] else values[t + 1][b]
            if rollout.terminated[t, b]:
                following[t][b] = 0.0
    for b in range(3):
        running = 0.0
        for t in reversed(range(12)):
            delta = float(rollout.team_rewards[t, b]) + gamma * following[t][b] - values[t][b]
            running = delta + (0.0 if rollout.ended[t, b] else gamma * decay * running)
            assert float(estimate.advantages[t, b]) == pytest.approx(running, abs=1e-4)
            assert float(estimate.returns[t, b]) == pytest.approx(running + values[t][b], abs=1e-4)


def test_decision_advantages_hand_computed_for_interval_two() -> None:
    """Decisions at steps 0 and 2; the rollout cuts off nothing but the bootstrap of the last window."""
    advantages = decision_advantages(
        column(1, 2, 4, 8), column(2, 0, 4, 0), column(0, 4, 0, 16), flags(0, 0, 0, 0), flags(1, 0, 1, 0), GAMMA, LAMBDA
    )
    # Window of step 2: 4 + 8/2 + 16/4 = 12, A_2 = 12 - 4 = 8.
    # Window of step 0: 1 + 2/2 + V(s_2)/4 = 3, δ = 3 - 2 = 1, A_0 = 1 + λ γ² A_2 = 1 + 8/8 = 2.
    assert advantages[0].item() == pytest.approx(2.0)
    assert advantages[2].item() == pytest.approx(8.0)


@pytest.mark.parametrize(("last_value", "expected"), [(0.0, -0.5), (8.0, 1.5)])
def test_decision_window_is_cut_by_an_episode_end(last_value: float, expected: float) -> None:
    """Interval 3; the episode ends after the second step (terminated: next value 0; truncated: 8)."""
    advantages = decision_advantages(
        column(0.5, 2, 100, 100),
        column(2, 0, 50, 0),
        column(0, last_value, 0, 50),
        flags(0, 1, 0, 0),
        flags(1, 0, 1, 0),
        GAMMA,
        LAMBDA,
    )
    # 0.5 + 2/2 + last/4 - 2; nothing of the next episode's rewards of 100.
    assert advantages[0].item() == pytest.approx(expected)


def test_decision_advantages_with_a_decision_at_every_step_are_gae() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values, next_values = torch.randn(3, 20, 6, generator=generator).unbind(0)
    ended = torch.rand(20, 6, generator=generator) < 0.2
    # Within an episode the state that follows a step is the next step's.
    next_values[:-1] = torch.where(ended[:-1], next_values[:-1], values[1:])
    every = torch.ones_like(ended)
    torch.testing.assert_close(
        decision_advantages(rewards, values, next_values, ended, every, 0.97, 0.9),
        generalised_advantages(rewards, values, next_values, ended, 0.97, 0.9),
    )


def test_decision_advantages_discounted_once_per_decision() -> None:
    advantages = decision_advantages(
        column(1, 2, 4, 8),
        column(2, 0, 4, 0),
        column(0, 4, 0, 16),
        flags(0, 0, 0, 0),
        flags(1, 0, 1, 0),
        GAMMA,
        LAMBDA,
        "decision",
    )
    # Window of step 2: 4 + 8 + 16/2 = 20, A_2 = 20 - 4. Window of step 0: 1 + 2 + 4/2 = 5, A_0 = 5 - 2 + λ γ A_2.
    assert advantages[2].item() == pytest.approx(16.0)
    assert advantages[0].item() == pytest.approx(7.0)


def test_decision_advantages_of_agents_with_rewards_of_their_own() -> None:
    """Two environments, three agents: each agent's column is what it is alone."""
    generator = torch.Generator().manual_seed(1)
    rewards, values, next_values = torch.randn(3, 8, 2, 3, generator=generator).unbind(0)
    ended, decided = (torch.rand(2, 8, 2, generator=generator) < 0.4).unbind(0)
    together = decision_advantages(rewards, values, next_values, ended, decided, GAMMA, LAMBDA)
    for agent in range(3):
        numbers = (each[..., agent] for each in (rewards, values, next_values))
        alone = decision_advantages(*numbers, ended, decided, GAMMA, LAMBDA)
        torch.testing.assert_close(together[..., agent], alone)


def test_a_weighted_mean_of_one_entry_and_of_none() -> None:
    values = torch.tensor([3.0, 5.0])
    assert weighted_mean(values, torch.tensor([0.0, 1.0])) == 5.0
    assert weighted_mean(values, torch.zeros(2)) == 0.0


def test_normalised_advantages_hand_computed_with_weights() -> None:
    advantages = torch.tensor([1.0, 3.0, 99.0, 5.0])
    normalised = normalise_advantages(advantages, torch.tensor([1.0, 1.0, 0.0, 1.0]))
    deviation = (8 / 3) ** 0.5  # of 1, 3, 5
    torch.testing.assert_close(normalised[[0, 1, 3]], torch.tensor([-2.0, 0.0, 2.0]) / deviation)
    torch.testing.assert_close(normalise_advantages(torch.tensor([[0.0, 4.0]])), torch.tensor([[-1.0, 1.0]]))
    assert torch.equal(normalise_advantages(torch.full((3,), 2.0)), torch.zeros(3)), "no division by zero"


def test_explained_variance_hand_computed() -> None:
    targets = torch.tensor([0.0, 2.0, 4.0, 6.0])  # variance 5
    assert explained_variance(targets, targets) == 1.0
    assert explained_variance(torch.full((4,), 3.0), targets) == pytest.approx(0.0)
    assert explained_variance(torch.tensor([1.0, 1.0, 5.0, 5.0]), targets) == pytest.approx(1.0 - 1.0 / 5.0)
    # Of targets that hardly vary as well: a mean explains nothing of 0 and 1, variance 1/4.
    assert explained_variance(torch.full((2,), 0.5), torch.tensor([0.0, 1.0])) == pytest.approx(0.0)
