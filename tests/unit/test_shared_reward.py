"""A reward that every agent receives alike is the team's, however many have left."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch

from hmarl.sdk.environment import Observation, StepResult
from hmarl.sdk.evaluation.closed_loop import evaluate
from hmarl.sdk.reports.video import record_episode
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.sdk.team import RandomTeam
from hmarl.trainer.experience.packing import pack, unpack
from hmarl.trainer.experience.rollout import Collector, Decision, Rollout
from toy_environments import LENGTH, ToyEnvironment, leaving, masked_discrete, returning

pytestmark = pytest.mark.usefixtures("single_thread")
CPU = torch.device("cpu")


class Paying:
    """The team earns 0.1 at every step, and all who are there are told so; else the toy that it wraps."""

    def __init__(self, toy: ToyEnvironment) -> None:
        self._toy, self.batch_size = toy, toy.batch_size
        self.spec = replace(toy.spec, team_reward="shared")

    def reset(self, seeds: Any) -> Observation:
        self._seen = self._toy.reset(seeds)
        return self._seen

    def step(self, actions: tuple[Any, ...]) -> StepResult:
        before, result = self._seen.active, self._toy.step(actions)
        self._seen = result.observation
        return replace(result, rewards=np.float32(0.1) * before)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._toy, name)


class Resting:
    """Takes each agent's first legal choice, or the middle."""

    def __init__(self, spec: EnvironmentSpec) -> None:
        self._team = RandomTeam(spec)

    def begin_rollout(self, steps: int, batch_size: int) -> None:
        self._team.reset(np.arange(batch_size))

    def act(self, observation: Observation, step: int) -> Decision:
        seen = replace(
            observation,
            observations=tuple(each.numpy() for each in observation.observations),
            action_masks=tuple(None if each is None else each.numpy() for each in observation.action_masks),
            active=observation.active.numpy(),
        )
        actions = tuple(map(torch.from_numpy, self._team.act(seen, np.ones(len(seen.active), np.bool_))))
        return Decision(actions, actions)

    def episodes_ended(self, ended: torch.Tensor) -> None:
        """Nothing is remembered."""


each_toy = pytest.mark.parametrize("toy", [leaving, returning])


@each_toy
def test_what_is_learnt_from_counts_those_who_are_there(toy: Any) -> None:
    environment = Paying(toy(2))
    rollout = Rollout(environment.spec, 2 * LENGTH, 2, CPU)
    statistics = Collector(environment, rollout, np.arange(2)).collect(Resting(environment.spec))
    assert not rollout.all_active
    torch.testing.assert_close(rollout.team_rewards, torch.full((2 * LENGTH, 2), 0.1))
    assert statistics.returns == pytest.approx([0.1 * LENGTH] * 4)
    brought = Rollout(environment.spec, 2 * LENGTH, 2, CPU)  # as workers bring it
    unpack([pack(rollout)], brought)
    assert torch.equal(brought.team_rewards, rollout.team_rewards)


@each_toy
def test_evaluations_and_films_count_alike(toy: Any) -> None:
    environment = Paying(toy(2))
    played = evaluate(environment, RandomTeam(environment.spec), 4, 0)
    assert played.returns.tolist() == pytest.approx([0.1 * LENGTH] * 4)
    film = record_episode(environment, RandomTeam(environment.spec), 3)
    assert film.rewards.tolist() == pytest.approx([0.1] * LENGTH)


@pytest.mark.parametrize("team_reward", ["sum", "mean", "shared"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_where_all_are_there_it_is_the_plain_sum_or_mean_to_the_last_bit(
    team_reward: Literal["sum", "mean", "shared"], kind: Any
) -> None:
    spec = replace(masked_discrete(1, agents=7).spec, team_reward=team_reward)
    rewards = np.random.default_rng(0).normal(size=(50, 20, 7)).astype(kind)
    plain = rewards.sum(-1) if team_reward == "sum" else rewards.mean(-1)
    tensors = torch.from_numpy(rewards)
    total = tensors.sum(-1)
    for active in (None, np.ones(rewards.shape, np.bool_)):
        found = spec.team_rewards(rewards, active)
        assert found.dtype == kind
        np.testing.assert_array_equal(found, plain)
        same = spec.team_rewards(tensors, None if active is None else torch.from_numpy(active))
        assert torch.equal(same, total if team_reward == "sum" else total / 7)


def test_who_has_left_is_no_part_of_a_shared_reward_and_earns_nothing_in_a_mean() -> None:
    rewards = np.array([[3.0, 3.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    active = np.array([[True, True, False], [True, False, False], [False, False, False]])
    spec = masked_discrete(1, agents=3).spec
    for team_reward, expected in (("sum", [6, 2, 0]), ("mean", [2, 2 / 3, 0]), ("shared", [3, 2, 0])):
        kind = replace(spec, team_reward=team_reward)  # type: ignore[arg-type]
        assert kind.team_rewards(rewards, active).tolist() == pytest.approx(expected)
        found = kind.team_rewards(torch.from_numpy(rewards), torch.from_numpy(active))
        assert found.tolist() == pytest.approx(expected)
