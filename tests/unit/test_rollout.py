"""The rollout buffer and its collector against a toy environment whose every number is known."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from counting_environment import CountingEnvironment
from hmarl.sdk.environment import Observation, StepResult
from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec
from hmarl.trainer.experience.rollout import Collector, Decision, EpisodeStatistics, Rollout

pytestmark = pytest.mark.usefixtures("single_thread")
CPU = torch.device("cpu")
STEPS = 7
# Episodes of 3 steps (terminated) and of 8, cut off after 6 (truncated); every later episode has one step.
SEEDS = np.array([2, 7])


class Scripted:
    """``walker`` plays 1 + the step modulo 4, ``arm`` (1, 0.5); records the step, remembers the episode ends."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, int]] = []
        self.ended: list[list[bool]] = []

    def begin_rollout(self, steps: int, batch_size: int) -> None:
        self.begun.append((steps, batch_size))

    def act(self, observation: Observation, step: int) -> Decision:
        walker = torch.full((2, 1), 1 + step % 4)
        arm = torch.tensor([1.0, 0.5]).expand(2, 1, 2)
        # Raw actions differ from the environment's, so that a mix-up shows.
        return Decision((walker, 10.0 * arm), (walker, arm), {"step": torch.full((2,), step)})

    def episodes_ended(self, ended: Tensor) -> None:
        self.ended.append(ended.tolist())


def collected() -> tuple[Rollout, EpisodeStatistics, Scripted, Collector]:
    environment, actor = CountingEnvironment(2), Scripted()
    rollout = Rollout(environment.spec, STEPS, 2, CPU)
    collector = Collector(environment, rollout, SEEDS)
    return rollout, collector.collect(actor), actor, collector


def test_each_step_is_stored_with_what_was_seen_before_it() -> None:
    rollout, _, actor, _ = collected()
    # States are (seed, step): row 0 begins one-step episodes after 3 steps, row 1 after 6; the last follows step 6.
    assert rollout.states[:, 0].tolist() == [[2, 0], [2, 1], [2, 2], *[[0, 0]] * 5]
    assert rollout.states[:, 1].tolist() == [*[[7, step] for step in range(6)], [0, 0], [0, 0]]
    assert torch.equal(rollout.observations[0][:, :, 0], rollout.states[:-1]), "the walker sees the state"
    assert rollout.actions[0][:, :, 0].tolist() == [[a, a] for a in (1, 2, 3, 4, 1, 2, 3)]
    assert torch.equal(rollout.actions[1], torch.tensor([10.0, 5.0]).expand(STEPS, 2, 1, 2))
    assert rollout.extras["step"].tolist() == [[t, t] for t in range(STEPS)]
    assert rollout.action_masks[0] is not None
    assert rollout.action_masks[0].tolist() == [[[[False, True, True, True, True]]] * 2] * STEPS
    assert rollout.action_masks[1] is None
    # The arm leaves after the second step of an episode.
    assert rollout.active[:, :, 0].all()
    assert rollout.active[:, 0, 1].tolist() == [True, True, False, True, True, True, True]
    assert rollout.active[:, 1, 1].tolist() == [True, True, False, False, False, False, True]
    assert not rollout.all_active
    assert actor.begun == [(STEPS, 2)]


def test_episode_ends_reach_the_buffer_the_actor_and_the_statistics() -> None:
    rollout, statistics, actor, collector = collected()
    assert rollout.terminated[:, 0].tolist() == [False, False, True, True, True, True, True]
    assert rollout.terminated[:, 1].tolist() == [False, False, False, False, False, False, True]
    assert rollout.truncated[:, 0].tolist() == [False] * STEPS
    assert rollout.truncated[:, 1].tolist() == [False, False, False, False, False, True, False]
    assert torch.equal(rollout.ended, rollout.terminated | rollout.truncated)
    assert actor.ended == [[True, False], [True, False], [True, False], [True, True], [True, True]]
    # The walker earns 1, 2, 3, 4, 1, 2, 3; the arm 1.5 in the first two steps of each episode.
    first, cut_off = 1 + 2 + 3 + 3.0, 1 + 2 + 3 + 4 + 1 + 2 + 3.0
    assert statistics.returns == [first, 4 + 1.5, 1 + 1.5, 2 + 1.5, cut_off, 3 + 1.5, 3 + 1.5]
    assert statistics.lengths == [3, 1, 1, 1, 6, 1, 1]
    assert statistics.successes == [1, 1, 1, 1, 0, 1, 1]
    assert collector.episode_lengths.tolist() == [0, 0]


def test_next_values_are_zero_at_termination_and_the_final_states_at_truncation() -> None:
    rollout, _, _, _ = collected()
    assert rollout.final_states.tolist() == [[2, 3], [0, 1], [0, 1], [0, 1], [7, 6], [0, 1], [0, 1]]

    def value(states: Tensor) -> Tensor:
        """V(seed, step) = 10 · seed + step + 1: never zero."""
        return 10.0 * states[..., 0] + states[..., 1] + 1.0

    following = rollout.next_values(value(rollout.states), value(rollout.final_states))
    assert following[:, 0].tolist() == [22, 23, 0, 0, 0, 0, 0]
    # The sixth is V(7, 6) = 77 of the state that was cut off, not V(0, 0) = 1 of the one after auto-reset.
    assert following[:, 1].tolist() == [72, 73, 74, 75, 76, 77, 0]


def test_without_an_episode_end_the_next_values_are_the_next_states() -> None:
    rollout = Rollout(CountingEnvironment(2).spec, 3, 2, CPU)
    values = torch.arange(8.0).view(4, 2)
    assert torch.equal(rollout.next_values(values, torch.zeros(0)), values[1:])
    assert rollout.final_states.shape == (0, 2)


def test_episodes_go_on_across_rollouts_and_earlier_ends_are_forgotten() -> None:
    environment, actor = CountingEnvironment(2), Scripted()
    rollout = Rollout(environment.spec, 4, 2, CPU)
    collector = Collector(environment, rollout, SEEDS)
    first = collector.collect(actor)
    assert (first.lengths, len(rollout.final_states)) == ([3, 1], 2)
    second = collector.collect(actor)
    # Row 1 is cut off at the second step of the second rollout, having begun in the first.
    assert rollout.states[0, 1].tolist() == [7, 4]
    assert rollout.truncated[:, 1].tolist() == [False, True, False, False]
    assert second.lengths == [1, 1, 6, 1, 1, 1, 1]
    assert second.returns[2] == (1 + 2 + 3 + 4) + (1 + 2) + 2 * 1.5
    assert len(rollout.final_states) == 7


def test_restart_begins_new_episodes_and_forgets_the_running_ones() -> None:
    environment, actor = CountingEnvironment(2), Scripted()
    rollout = Rollout(environment.spec, 2, 2, CPU)
    collector = Collector(environment, rollout, SEEDS)
    collector.collect(actor)
    collector.restart(np.array([1, 4]), actor)
    assert actor.ended == [[True, True]]
    statistics = collector.collect(actor)
    assert rollout.states[0].tolist() == [[1, 0], [4, 0]]
    assert (statistics.lengths, statistics.returns) == ([2], [1 + 2 + 2 * 1.5])


def test_an_environment_without_a_saved_state_says_so() -> None:
    _, _, _, collector = collected()
    assert collector.get_state() is None


def interleaved_rollout(team_reward: Literal["sum", "mean", "shared"] = "sum") -> Rollout:
    """One step of two rows; of the agents a, b, c the first and the last are alike: groups (0, 2) and (1)."""
    three = spaces.Discrete(3)
    box = spaces.Box(-np.ones(2, np.float32), np.ones(2, np.float32))
    agents = (AgentSpec("a", 2, three, True), AgentSpec("b", 1, box), AgentSpec("c", 2, three, True))
    rollout = Rollout(EnvironmentSpec("toy/interleaved", agents, 1, None, team_reward), 1, 2, CPU)
    mask = torch.tensor([[[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [1, 1, 0]]], dtype=torch.bool)
    active = torch.tensor([[True, True, False], [False, True, True]])
    observation = Observation(
        (torch.arange(8.0).view(2, 2, 2), torch.tensor([[[20.0]], [[21.0]]])), (mask, None), torch.zeros(2, 1), active
    )
    actions = (torch.tensor([[0, 1], [2, 0]]), torch.tensor([[[0.1, 0.2]], [[0.3, 0.4]]]))
    rewards = np.array([[4, 5, 0], [0, -2, -1]], np.float32)
    nothing = np.zeros(2, np.bool_)
    rollout.begin()
    rollout.record(0, observation, Decision(actions, actions), StepResult(observation, rewards, nothing, nothing, None))
    rollout.finish(observation)
    return rollout


@pytest.mark.parametrize(("team_reward", "expected"), [("sum", [9, -3]), ("mean", [3, -1]), ("shared", [4.5, -1.5])])
def test_team_rewards(team_reward: Literal["sum", "mean", "shared"], expected: list[float]) -> None:
    rollout = interleaved_rollout(team_reward)
    assert rollout.team_rewards.tolist() == [expected]
    assert rollout.spec.team_rewards(rollout.rewards.numpy(), rollout.active.numpy()).tolist() == [expected], "as NumPy"
