"""HiMPo: windows, rewards from above (Eq. 5), and levels that learn from nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from hmarl.sdk.errors import UsageError
from hmarl.sdk.evaluation.closed_loop import evaluate
from hmarl.sdk.spaces import AgentSpec
from hmarl.trainer.algorithms.himpo import Himpo
from hmarl.trainer.experience.rollout import Collector, Rollout
from hmarl.trainer.hierarchy.level import Level
from hmarl.trainer.hierarchy.outcome import Outcome, RolloutGraphs, local_rewards, told_reward
from hmarl.trainer.hierarchy.settings import HierarchySettings
from hmarl.trainer.hierarchy.teams import HierarchyTeam
from hmarl.trainer.networks.settings import validate
from hmarl.trainer.students.teams import TeacherTeam
from toy_environments import ToyEnvironment
from training_runs import CPU, as_tensors, new_algorithm

pytestmark = pytest.mark.usefixtures("single_thread")

BATCH = 4
SMALL = {"embedding_size": 8, "goal_size": 3, "goal_interval": 2, "manager_interval": 2, "epochs": 2, "minibatches": 2}
KINDS = [
    {"levels": 1},
    {"levels": 1, "message_rounds": 0},
    {"levels": 2},
    {"levels": 3},
    {"levels": 3, "goal_space": "discrete"},
    {"levels": 3, "static_graph": True},
    {"levels": 3, "agent_identity": True},
    {"levels": 3, "workers_see_reward": True, "local_rewards": False},
    {"levels": 3, "worker_reward": "window"},
    {"levels": 3, "edge_values": False},
]


def toy(positions: bool = True) -> ToyEnvironment:
    """Two choosers and an arm between them; one chooser leaves after two of five steps, the arm after four. Episodes of
    odd seeds terminate, those of even ones are cut off.
    """
    layout = (("position", 2), ("rest", 1)) if positions else ()
    chooser, box = spaces.Discrete(4), spaces.Box(np.full(2, -1.0, np.float32), np.full(2, 1.0, np.float32))
    agents = (
        AgentSpec("chooser_0", 3, chooser, True, layout),
        AgentSpec("arm", 3, box, False, layout),
        AgentSpec("chooser_1", 3, chooser, True, layout),
    )
    return ToyEnvironment("toy/mixed", agents, BATCH, leaves={2: 2, 1: 4})


def hierarchy(positions: bool = True, **settings: Any) -> Himpo:
    checked = validate(HierarchySettings, {**SMALL, **settings}, "algorithm")
    return Himpo(toy(positions).spec, checked, torch.Generator().manual_seed(3), CPU)


def collected(algorithm: Himpo, *lengths: int) -> list[Rollout]:
    """Rollouts of these lengths, one after the other."""
    environment, rollouts = toy(), []
    collector = Collector(environment, Rollout(environment.spec, lengths[0], BATCH, CPU), np.arange(BATCH) + 11)
    for length in lengths:
        collector.rollout = Rollout(environment.spec, length, BATCH, CPU)
        collector.collect(algorithm)
        rollouts.append(collector.rollout)
    return rollouts


def graphs_of(algorithm: Himpo, rollout: Rollout) -> RolloutGraphs:
    return RolloutGraphs(
        algorithm.hierarchy, rollout, algorithm.together.worker_features, algorithm.all_levels.standing
    )


# --- windows --------------------------------------------------------------------------------------------------------


def test_goals_are_set_when_they_run_out_when_an_episode_begins_and_when_a_rollout_does() -> None:
    first, second = collected(hierarchy(), 12, 4)
    # Episodes of five steps begin at 0, 5 and 10.
    assert first.extras["decided"][:, 0].nonzero().flatten().tolist() == [0, 2, 4, 5, 7, 9, 10]
    assert first.extras["manager_decided"][:, 0].nonzero().flatten().tolist() == [0, 4, 5, 9, 10]
    # The second rollout begins with the third step of an episode, and a new one begins with its fourth.
    assert second.extras["decided"][:, 0].nonzero().flatten().tolist() == [0, 2, 3]
    assert second.extras["manager_decided"][:, 0].nonzero().flatten().tolist() == [0, 3]


@pytest.mark.parametrize("goal_space", ["continuous", "discrete"])
def test_goals_and_reports_hold_until_the_next_decision(goal_space: str) -> None:
    (rollout,) = collected(hierarchy(goal_space=goal_space), 12)
    for name, decided in (("goal", "decided"), ("sub_goal", "manager_decided"), ("cluster", "decided")):
        kept = ~rollout.extras[decided][1:]
        values = rollout.extras[name]
        assert values[1:][kept].equal(values[:-1][kept])
    new = rollout.extras["decided"][1:]
    assert not rollout.extras["goal"][1:][new].equal(rollout.extras["goal"][:-1][new])


def test_messages_are_redrawn_at_every_step_and_with_a_static_graph_once_an_episode() -> None:
    (moving,) = collected(hierarchy(radius=1.0), 10)
    (still,) = collected(hierarchy(radius=1.0, static_graph=True), 10)
    assert not moving.extras["edges"][0].equal(moving.extras["edges"][1])
    edges, cluster = still.extras["edges"], still.extras["cluster"]
    there = still.active.unsqueeze(-1) & still.active.unsqueeze(-2)
    assert not there.all(), "no agent left"
    for first, episode in ((0, slice(0, 5)), (5, slice(5, 10))):
        assert cluster[episode].equal(cluster[first].expand_as(cluster[episode]))
        assert edges[episode].equal(edges[first] & there[episode]), "an agent that has left is heard"
    assert not edges[0].equal(edges[5])


# --- rewards from above (Eq. 5) -------------------------------------------------------------------------------------


def test_a_window_earns_its_decisions_advantage_over_its_length_also_where_it_is_cut_short() -> None:
    # α = 3: windows [0, 3), [3, 4) cut short by an episode's end, [4, 6).
    decided = torch.tensor([True, False, False, True, True, False]).unsqueeze(-1)
    advantages = torch.tensor([3.0, 99.0, 99.0, 6.0, -1.5, 99.0]).view(6, 1, 1)
    told = told_reward(advantages, decided, 3)
    assert told.flatten().tolist() == [1.0, 1.0, 1.0, 2.0, -0.5, -0.5]


def test_no_gradient_passes_to_the_level_above() -> None:
    advantages = torch.ones(2, 1, 1, requires_grad=True)
    assert not told_reward(advantages, torch.tensor([[True], [False]]), 2).requires_grad


def test_local_rewards_are_what_the_workers_of_a_cluster_earn_on_average() -> None:
    algorithm = hierarchy()
    (rollout,) = collected(algorithm, 5)
    rollout.rewards = torch.tensor([1.0, 10.0, 100.0]).expand(5, BATCH, 3).clone()
    cluster = torch.tensor([0, 1, 0]).expand(5, BATCH, 3)
    rollout.spec = replace(rollout.spec, team_reward="shared")
    earned = local_rewards(rollout, cluster, 2)
    assert earned[0, 0].tolist() == [50.5, 10.0]
    assert earned[2, 0].tolist() == [1.0, 10.0]  # the last agent has left
    rollout.spec = replace(rollout.spec, team_reward="sum")
    assert local_rewards(rollout, cluster, 2)[0, 0].tolist() == [151.5, 30.0]


@pytest.mark.parametrize("levels", [2, 3])
def test_a_decisions_advantage_is_what_its_window_brought_and_the_value_after_less_the_value_before(
    levels: int,
) -> None:
    algorithm = hierarchy(levels=levels, gamma=0.9, edge_values=False)
    (rollout,) = collected(algorithm, 12)
    level = algorithm.hierarchy.sub_managers
    assert level is not None
    graphs, gamma = graphs_of(algorithm, rollout), 0.9
    rewards = torch.randn(12, BATCH, 2, generator=torch.Generator().manual_seed(1))
    decided = rollout.extras["decided"]
    found = graphs.outcome(level, rewards, decided).advantages
    values = level.values(graphs.moments).unflatten(0, (12, BATCH))
    finals = iter(level.values(graphs.finals))
    at_ends = {(int(t), int(b)): next(finals) for t, b in rollout.ended.nonzero()}
    checked = 0
    for b in range(BATCH):
        starts = decided[:, b].nonzero().flatten().tolist()
        for start, stop in zip(starts, [*starts[1:], 12], strict=True):
            brought = rewards[start:stop, b].sum(0)
            if rollout.ended[stop - 1, b]:
                after = torch.zeros(2) if rollout.terminated[stop - 1, b] else at_ends[stop - 1, b]
            else:
                after = level.values(graphs.last)[b] if stop == 12 else values[stop, b]
            torch.testing.assert_close(found[start, b], brought + gamma * after - values[start, b])
            checked += 1
    assert checked == 7 * BATCH


def test_who_comes_in_the_middle_of_a_window_earns_nothing_of_it() -> None:
    """Agent 2 comes at step 2 of every episode, which is one window: no goal was set for it at step 0."""
    settings = SMALL | {"goal_interval": 5, "levels": 2, "worker_reward": "window", "edge_values": True}
    algorithm, rollout, collector = new_algorithm("himpo", "toy_environments:returning", 2, 10, None, **settings)
    collector.collect(algorithm)
    paid: list[Tensor] = []
    outcome = RolloutGraphs.outcome

    def seen(self: RolloutGraphs, level: Level, rewards: Tensor, *rest: Any) -> Outcome:
        paid.append(rewards)
        return outcome(self, level, rewards, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RolloutGraphs, "outcome", seen)
        algorithm._judged(graphs_of(algorithm, rollout))
    _, workers = paid
    assert (workers[:5, :, 2] == 0.0).all()
    assert (workers[:5, :, 0] != 0.0).all()


@pytest.mark.parametrize("superior", [False, True])
def test_advantages_and_the_returns_that_values_learn_have_a_lambda_each(superior: bool) -> None:
    def outcome(**settings: float) -> Outcome:
        algorithm = hierarchy(levels=2, edge_values=False, **settings)
        (rollout,) = collected(algorithm, 12)
        graphs, rewards = graphs_of(algorithm, rollout), rollout.team_rewards.unsqueeze(-1)
        if superior:
            assert algorithm.hierarchy.sub_managers is not None
            return graphs.outcome(
                algorithm.hierarchy.sub_managers, rewards.expand(-1, -1, 2), rollout.extras["decided"]
            )
        return graphs.outcome(algorithm.hierarchy.workers, rewards.expand(-1, -1, 3))

    short, long = ({"manager_gae_lambda" if superior else "gae_lambda": value} for value in (0.3, 0.9))
    apart, equal = outcome(**short, value_lambda=0.9), outcome(**long, value_lambda=0.9)
    assert not apart.advantages.equal(equal.advantages)
    assert apart.returns.equal(equal.returns)
    torch.testing.assert_close(equal.returns, equal.advantages + equal.values)


# --- learning -------------------------------------------------------------------------------------------------------


def thetas(algorithm: Himpo) -> dict[str, Tensor]:
    return {name: level.theta.clone() for name, level in algorithm.hierarchy.levels()}


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_every_level_learns(settings: dict[str, Any]) -> None:
    algorithm = hierarchy(**settings)
    before = thetas(algorithm)
    assert len(before) == settings["levels"]
    for rollout in collected(algorithm, 10, 7):
        metrics = algorithm.update(rollout, 0.0)
        assert all(np.isfinite(value) for value in metrics.values())
    for name, theta in thetas(algorithm).items():
        assert not theta.equal(before[name]), name


def workers_after(change: float, fixed: bool, **settings: Any) -> Tensor:
    """The workers' parameters after an update on external rewards changed by ``change``, the superiors' advantages held
    fixed or not.
    """
    algorithm = hierarchy(levels=3, normalise_values=False, **settings)
    (rollout,) = collected(algorithm, 10)
    noise = torch.randn(rollout.team_rewards.shape, generator=torch.Generator().manual_seed(2))
    rollout.team_rewards = rollout.team_rewards + change * noise
    rollout.rewards = rollout.rewards + change * noise.unsqueeze(-1)
    outcome = RolloutGraphs.outcome

    def held(self: RolloutGraphs, level: Level, rewards: Tensor, *rest: Any) -> Outcome:
        if level is algorithm.hierarchy.workers:
            return outcome(self, level, rewards, *rest)
        advantages = torch.randn(rewards.shape, generator=torch.Generator().manual_seed(7))
        return Outcome(advantages, advantages, advantages)

    with pytest.MonkeyPatch.context() as patch:
        if fixed:
            patch.setattr(RolloutGraphs, "outcome", held)
        algorithm.update(rollout, 0.0)
    return algorithm.hierarchy.workers.theta


def test_the_external_reward_reaches_workers_through_their_superiors_advantages_alone() -> None:
    assert workers_after(0.0, fixed=True).equal(workers_after(5.0, fixed=True))
    assert not workers_after(0.0, fixed=False).equal(workers_after(5.0, fixed=False))


def test_but_directly_in_the_ablation_that_gives_it_to_them() -> None:
    settings = {"workers_see_reward": True}
    assert not workers_after(0.0, fixed=True, **settings).equal(workers_after(5.0, fixed=True, **settings))


def test_goals_for_an_empty_cluster_do_not_count() -> None:
    algorithm = hierarchy(levels=3, sub_managers=3)
    (rollout,) = collected(algorithm, 10)
    rollout.extras["cluster"] = torch.zeros_like(rollout.extras["cluster"])
    chosen = rollout.extras["manager_decided"]
    anything = torch.randn(10, BATCH, 3)
    decisions, judgements = algorithm._goals_set(
        graphs_of(algorithm, rollout), Outcome(anything, anything, anything), chosen, "sub_goal"
    )
    assert decisions.weight[:, 0].eq(1.0).all()
    assert decisions.weight[:, 1:].eq(0.0).all()
    assert judgements.judged.all()


# --- playing and deploying ------------------------------------------------------------------------------------------


def test_evaluation_is_that_of_the_whole_hierarchy_and_can_be_repeated() -> None:
    algorithm = hierarchy()
    assert list(algorithm.teams()) == ["hierarchy"]
    for sample in (False, True):
        returns = [
            evaluate(toy(), HierarchyTeam(algorithm.together, sample), BATCH, 5).returns.tolist() for _ in range(2)
        ]
        assert returns[0] == returns[1]


@pytest.mark.parametrize("settings", [{"levels": 1}, {"levels": 3}, {"levels": 3, "goal_space": "discrete"}], ids=str)
def test_the_teacher_of_its_students_plays_as_it_does_and_labels_with_its_goals(settings: dict[str, Any]) -> None:
    algorithm = hierarchy(**settings)
    teacher, team = algorithm.teacher(), HierarchyTeam(algorithm.together)
    played = [evaluate(toy(), each, BATCH, 5).returns.tolist() for each in (team, TeacherTeam(algorithm, teacher))]
    assert played[0] == played[1]
    environment = toy()
    observation = environment.reset(np.arange(BATCH))
    seen = as_tensors(observation)
    teacher.begin(BATCH)
    team.reset(np.arange(BATCH))
    for _ in range(3):  # over a decision; whatever is done, the label is the hierarchy's
        team.act(observation, np.ones(BATCH, bool))
        labels = teacher.label(
            seen, algorithm.together.decide(seen, algorithm.hierarchy.nothing_in_force(BATCH), None).actions
        )
        assert team.last is not None
        for g, group in enumerate(algorithm.spec.groups):
            assert labels.distributions[g].mode().transpose(0, 1).equal(team.last.actions[g])
            if settings["levels"] == 1:
                assert labels.goals[g] is None
            else:
                assert labels.goals[g].transpose(0, 1).equal(team.last.graph.goal[:, list(group.agents)])


def test_without_positions_a_hierarchy_says_that_all_agents_hear_one_another(caplog: pytest.LogCaptureFixture) -> None:
    hierarchy()
    assert not caplog.records
    hierarchy(positions=False, graph="none")
    assert not caplog.records
    for graph in ("auto", "nearest", "radius"):
        caplog.clear()
        algorithm = hierarchy(positions=False, graph=graph, neighbours=1)
        assert "has a part 'position'" in caplog.text
        assert algorithm.hierarchy.edges(torch.zeros(1, 3, 0), torch.ones(1, 3, dtype=torch.bool)).sum() == 6


def test_it_cannot_be_exported_as_it_is() -> None:
    with pytest.raises(UsageError, match="hear one another"):
        hierarchy().deployable(0)


def test_what_a_hierarchy_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match=r"algorithm\.recurrent: got True"):
        hierarchy(recurrent=True)
    with pytest.raises(UsageError, match=r"algorithm\.share_parameters: got False"):
        hierarchy(share_parameters=False, agent_identity=True)
