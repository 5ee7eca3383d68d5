"""HiMPo's credit by plain loops and its levels' learning by hand: Eq. 5 on a real rollout, signs, the clip, weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from credit_by_loops import (
    AGENTS,
    BATCH,
    PAIRS,
    SMALL,
    STEPS,
    SUB_MANAGERS,
    TELESCOPED,
    ByLoops,
    expected,
    foragers,
    graphs_of,
)
from hmarl.trainer.algorithms.himpo import Himpo
from hmarl.trainer.hierarchy.level import Decisions, Judgements, Level
from hmarl.trainer.hierarchy.networks import TeamGraph
from hmarl.trainer.hierarchy.outcome import Outcome, RolloutGraphs
from hmarl.trainer.hierarchy.settings import HierarchySettings
from hmarl.trainer.networks.distributions import ActionHead
from hmarl.trainer.networks.settings import validate
from training_runs import CPU, as_tensors

pytestmark = pytest.mark.usefixtures("single_thread")

# --- every level's advantages, straight from the equations ----------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"levels": 2},
        {"levels": 3},
        {"levels": 3, "local_rewards": False},
        {"levels": 3, "workers_see_reward": True},
        {"levels": 3, "manager_gae_lambda": 0.7},
        {"levels": 2, **TELESCOPED},
        {"levels": 3, **TELESCOPED},
        {"levels": 3, **TELESCOPED, "local_rewards": False, "workers_see_reward": True, "manager_gae_lambda": 0.7},
        {"levels": 2, **PAIRS},
        {"levels": 3, **PAIRS},
        {"levels": 3, **PAIRS, **TELESCOPED},
    ],
    ids=str,
)
def test_the_advantages_of_all_levels_are_those_of_plain_loops_over_eq_5(settings: dict[str, Any]) -> None:
    algorithm, rollout, collector = foragers(**settings)
    for _ in range(2):  # the second rollout begins amid episodes, after a step of learning
        collector.collect(algorithm)
        graphs = graphs_of(algorithm, rollout)
        judged, close = algorithm._judged(graphs), {"rtol": 1e-5, "atol": 1e-5}
        assert len(judged) == settings["levels"]
        expectations = expected(ByLoops(algorithm, rollout, graphs), algorithm)
        for (_, _, decisions, judgements), (advantages, gained) in zip(judged, expectations, strict=True):
            there = decisions.weight > 0
            torch.testing.assert_close(decisions.advantages[there], advantages[there], **close)
            there = judgements.judged
            torch.testing.assert_close((judgements.returns - judgements.values)[there], gained[there], **close)
        algorithm.update(rollout, 0.0)


def test_the_rollout_of_the_loops_has_leavers_and_episodes_that_end_in_both_ways() -> None:
    algorithm, rollout, collector = foragers()
    collector.collect(algorithm)
    assert rollout.terminated.any()
    assert rollout.truncated.any()
    assert not rollout.active.all()  # some have left
    assert set(rollout.extras["cluster"].flatten().tolist()) == set(range(SUB_MANAGERS))
    assert rollout.rewards.any()


# --- how a level learns, by hand ------------------------------------------------------------------------------------

# Three units at two moments with two actions each; the last unit of the second moment has left.
POLICY = torch.tensor([[0.5, 0.5], [0.8, 0.2], [0.6, 0.4]])
ACTIONS = torch.tensor([[0, 1, 0], [1, 0, 1]])
WEIGHT = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
CLIP = 0.2


class Table:
    """A network over the graph that sees nothing: its parameters are its outputs, [units, width].

    Args:
        outputs: [units, width] at first.
    """

    def __init__(self, outputs: Tensor) -> None:
        self._outputs, self.size = outputs, outputs.numel()

    def initialise(self, generator: torch.Generator) -> Tensor:
        return self._outputs.flatten().clone()

    def __call__(self, theta: Tensor, graph: TeamGraph) -> list[Tensor]:
        return [theta.view(self._outputs.shape).expand(graph.moments, *self._outputs.shape)]


@dataclass
class RecordingOptimiser:
    """Takes gradients, but no step."""

    parameter: Tensor
    loss: Tensor
    gradient: Tensor

    def step(self, loss: Tensor, schedule: float = 1.0) -> Tensor:
        (self.gradient,) = torch.autograd.grad(loss, self.parameter)
        self.loss = loss.detach()
        return torch.zeros(())


def new_level(entropy_coefficient: float = 0.0) -> Any:
    """A level whose policy is ``POLICY`` at every moment."""
    plain = {**SMALL, "clip": CLIP, "learning_rate": 0.01, "normalise_values": False}
    settings = validate(HierarchySettings, plain, "algorithm")
    policy: Any = Table(POLICY.log())
    value: Any = Table(torch.zeros(3, 1))
    return Level(
        policy,
        value,
        [ActionHead(spaces.Discrete(2))],
        [range(3)],
        settings,
        entropy_coefficient,
        torch.Generator(),
        CPU,
    )


def recording(entropy_coefficient: float = 0.0) -> Any:
    """The same, but the gradient of its policy is recorded instead of descended."""
    level, nothing = new_level(entropy_coefficient), torch.zeros(())
    level.optimiser = RecordingOptimiser(level.optimiser.parameter, nothing, nothing)
    return level


def decisions_of(advantages: Tensor, actions: Tensor = ACTIONS, weight: Tensor = WEIGHT) -> Decisions:
    moments, units = actions.shape
    nothing = torch.zeros(moments, units)
    graph = TeamGraph(
        [nothing.unsqueeze(-1)],
        weight > 0,
        torch.zeros(moments, units, 0),
        torch.zeros(moments, units, units, dtype=torch.bool),
        torch.zeros(moments, units, dtype=torch.int64),
    )
    return Decisions(graph, [actions], [None], advantages, weight)


def judgements_of(decisions: Decisions, returns: Tensor | None = None) -> Judgements:
    """Zeros that were to be ``returns`` (ones), judged where something was decided."""
    nothing = torch.zeros_like(decisions.weight)
    return Judgements(decisions.graph, nothing, nothing + 1 if returns is None else returns, decisions.weight > 0)


def improve(level: Any, decisions: Decisions, returns: Tensor | None = None) -> dict[str, float]:
    """The level's metrics after it has learnt."""
    learnt: dict[str, float] = level.improve(decisions, judgements_of(decisions, returns), torch.Generator(), 1.0)
    return learnt


def old_log_prob(ratio: Tensor, actions: Tensor = ACTIONS) -> Tensor:
    """[M, units] of the policy that acted, so that today's is ``ratio`` times as likely to do so."""
    now = POLICY.expand(len(actions), 3, 2).gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    return now.log() - ratio.log()


def entropy_of(policy: Tensor) -> list[float]:
    return [-sum(p * math.log(p) for p in row) for row in policy.tolist()]


def test_a_levels_loss_is_less_the_clipped_objective_less_the_entropy_of_those_who_are_there() -> None:
    level = recording(entropy_coefficient=0.5)
    ratio = torch.tensor([[1.1, 1.5, 0.5], [1.5, 0.5, 7.0]])
    advantages = torch.tensor([[2.0, 1.0, 1.0], [-1.0, -1.0, 100.0]])
    metrics = level._climb(decisions_of(advantages), old_log_prob(ratio), advantages, 1.0)
    objective = (1.1 * 2.0 + 1.2 + 0.5 - 1.5 - 0.8) / 5
    first, second, third = entropy_of(POLICY)
    entropy = (2 * first + 2 * second + third) / 5
    assert float(level.optimiser.loss) == pytest.approx(-objective - 0.5 * entropy, abs=1e-5)
    assert float(metrics["entropy"]) == pytest.approx(entropy, abs=1e-5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [
        (1.0, 1.0, True),
        (1.1, 1.0, True),
        (1.3, 1.0, False),
        (0.7, 1.0, True),
        (1.0, -1.0, True),
        (0.9, -1.0, True),
        (0.7, -1.0, False),
        (1.3, -1.0, True),
    ],
)
def test_the_clip_ends_what_draws_a_ratio_farther_out_and_nothing_else(
    ratio: float, advantage: float, moves: bool
) -> None:
    level, of_interest = recording(), torch.zeros_like(WEIGHT)
    of_interest[0, 1] = 1.0
    advantages = advantage * torch.ones_like(WEIGHT)
    part = decisions_of(advantages, weight=of_interest)
    level._climb(part, old_log_prob(torch.full_like(WEIGHT, ratio)), advantages, 1.0)
    # −r·Â·∇log π of the second action, of which π is 0.2: (−0.8, 0.8).
    slope = -ratio * advantage * 0.8 if moves else 0.0
    gradient = level.optimiser.gradient.view(3, 2)
    torch.testing.assert_close(gradient[1], torch.tensor([-slope, slope]))
    assert not gradient[[0, 2]].any()


def test_advantages_are_normalised_over_those_who_are_there() -> None:
    # Those of the five who are there have mean 3 and variance (4 · 2²) / 5 = 3.2.
    advantages = torch.tensor([[1.0, 5.0, 5.0], [1.0, 3.0, 1000.0]])
    level = recording()
    improve(level, decisions_of(advantages))
    slopes = torch.zeros(3, 2)
    for m, u in WEIGHT.nonzero().tolist():
        normalised = (advantages[m, u] - 3.0) / math.sqrt(3.2)
        for action in range(2):
            slopes[u, action] -= normalised * (float(ACTIONS[m, u] == action) - POLICY[u, action]) / 5
    torch.testing.assert_close(level.optimiser.gradient.view(3, 2), slopes)


def test_what_was_decided_for_no_agent_does_not_move_the_policy() -> None:
    gradients = []
    for action, advantage in ((0, -50.0), (1, 1000.0)):
        level, actions = recording(entropy_coefficient=0.3), ACTIONS.clone()
        advantages = torch.tensor([[1.0, 5.0, 5.0], [1.0, 3.0, advantage]])
        actions[1, 2] = action
        improve(level, decisions_of(advantages, actions))
        gradients.append(level.optimiser.gradient)
    torch.testing.assert_close(gradients[0], gradients[1])
    assert gradients[0].any()


def test_the_value_learns_from_those_who_are_there() -> None:
    level = new_level()
    level.value_optimiser = RecordingOptimiser(torch.zeros(3, requires_grad=True), torch.zeros(()), torch.zeros(()))
    decisions = decisions_of(torch.zeros(2, 3))
    returns = torch.tensor([[1.0, 2.0, 3.0], [1.0, 4.0, 1000.0]])
    metrics = improve(level, decisions, returns)
    assert metrics["critic_loss"] == pytest.approx((1 + 4 + 9 + 1 + 16) / 5)
    torch.testing.assert_close(level.value_optimiser.gradient, torch.tensor([-4.0, -12.0, -6.0]) / 5)
    # Var(targets − 0) / Var(targets) = 1: all that zeros explain is nothing.
    assert metrics["explained_variance"] == pytest.approx(0.0, abs=1e-6)
    moments = level.normaliser.moments / level.normaliser.moments[0]
    assert moments.tolist() == pytest.approx([1.0, 11 / 5, 31 / 5])


def test_a_minibatch_in_which_no_agent_is_left_teaches_nothing() -> None:
    level = new_level()
    empty = decisions_of(torch.ones(2, 3), weight=torch.zeros(2, 3))
    level._climb(empty, torch.zeros(2, 3), torch.ones(2, 3), 1.0)
    assert float(level._fit(judgements_of(empty), 1.0)["critic_loss"]) == 0.0
    assert level.theta.equal(POLICY.log().flatten())
    assert not level.value_theta.any()


def test_a_step_makes_better_actions_likelier_and_the_entropy_bonus_makes_all_more_alike() -> None:
    level = new_level()
    before = POLICY.log()
    improve(level, decisions_of(torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, 9.0]])))
    moved = level.theta.view(3, 2) - before
    assert (moved.gather(-1, ACTIONS[0].unsqueeze(-1)) > 0).all()  # the first moment's were the better ones
    bonus = new_level(entropy_coefficient=0.1)
    improve(bonus, decisions_of(torch.zeros(2, 3)))
    after = entropy_of(bonus.theta.view(3, 2).softmax(-1))
    assert after[1] > entropy_of(POLICY)[1]
    assert after[2] > entropy_of(POLICY)[2]


# --- decisions for no agent -------------------------------------------------------------------------------------------


def with_leavers() -> tuple[Himpo, RolloutGraphs]:
    """A rollout with three clusters: the last is empty, and from the ninth step on, so is the one of the last agent."""
    algorithm, rollout, collector = foragers(sub_managers=3)
    collector.collect(algorithm)
    rollout.extras["cluster"] = torch.tensor([0, 0, 0, 0, 1]).expand(STEPS, BATCH, AGENTS).clone()
    rollout.active[:] = True
    rollout.active[9:, :, 4] = False
    rollout.active[3:, 1, 0] = False
    return algorithm, graphs_of(algorithm, rollout)


def anything(judges: int) -> Outcome:
    """Of no matter here."""
    return Outcome(*(torch.ones(STEPS, BATCH, judges) for _ in range(3)))


def test_goals_for_leavers_weigh_nothing() -> None:
    algorithm, graphs = with_leavers()
    decided = graphs.rollout.extras["decided"]
    weight = algorithm._goals_set(graphs, anything(3), decided, "goal")[0].weight
    expected_rows = [
        [float(not (i == 4 and t >= 9) and not (i == 0 and b == 1 and t >= 3)) for i in range(AGENTS)]
        for t, b in decided.nonzero().tolist()
    ]
    assert weight.tolist() == expected_rows


def test_goals_for_clusters_in_which_no_agent_is_left_weigh_nothing() -> None:
    algorithm, graphs = with_leavers()
    chosen = graphs.rollout.extras["manager_decided"]
    weight = algorithm._goals_set(graphs, anything(1), chosen, "sub_goal")[0].weight
    assert weight.tolist() == [[1.0, float(t < 9), 0.0] for t, _ in chosen.nonzero().tolist()]
    assert 0.0 < float(weight[:, 1].mean()) < 1.0


def test_actions_of_leavers_weigh_nothing() -> None:
    algorithm, graphs = with_leavers()
    decisions, judgements = algorithm._actions_taken(graphs, anything(AGENTS))
    weight = decisions.weight.unflatten(0, (STEPS, BATCH))
    assert judgements.judged.equal(decisions.weight > 0)
    assert weight[:9, :, 4].eq(1.0).all()
    assert weight[9:, :, 4].eq(0.0).all()
    assert weight[3:, 1, 0].eq(0.0).all()
    assert int(weight.eq(0.0).sum()) == (STEPS - 9) * BATCH + (STEPS - 3)


# --- the teacher ----------------------------------------------------------------------------------------------------


def test_what_the_teacher_told_in_an_episode_is_forgotten_when_it_ends_and_there_alone() -> None:
    algorithm, _, collector = foragers(goal_interval=9)
    first = as_tensors(collector.environment.reset(np.arange(BATCH)))
    then = as_tensors(collector.environment.reset(np.arange(BATCH) + 50))
    ended = torch.tensor([True, False, True])

    def told(*seen: Any, ending: bool) -> Tensor:
        """[N, B, G] the goals after these observations, after the first of which some episodes end."""
        teacher = algorithm.teacher()
        teacher.begin(BATCH)
        for step, observation in enumerate(seen):
            if ending and step == 1:
                teacher.episodes_ended(ended)
            (goals,) = teacher.label(observation, ()).goals
        assert goals is not None
        return goals

    kept, anew, after = told(first, ending=False), told(then, ending=False), told(first, then, ending=True)
    assert not kept.equal(anew)
    assert told(first, then, ending=False).equal(kept)  # goals hold
    torch.testing.assert_close(after[:, ended], anew[:, ended])
    assert after[:, ~ended].equal(kept[:, ~ended])
