"""What can be varied in a hierarchy, by hand: α, sub-managers, values at every step, clusters; tasks without places."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from hmarl.sdk.errors import UsageError
from hmarl.trainer.algorithms.himpo import Himpo
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.hierarchy.graph import clusters_by_number, first_centres, spatial_clusters
from hmarl.trainer.hierarchy.level import Level
from hmarl.trainer.hierarchy.outcome import Outcome, RolloutGraphs, told_reward
from hmarl.trainer.hierarchy.settings import HierarchySettings
from hmarl.trainer.learning.returns import decision_advantages
from hmarl.trainer.networks.settings import validate
from training_runs import new_algorithm

pytestmark = pytest.mark.usefixtures("single_thread")
SMALL = {"embedding_size": 8, "goal_size": 3, "epochs": 1, "minibatches": 2}
FORAGING = {"horizon": 30}


def collected(environment: str = "lbfws/hard", steps: int = 20, **settings: Any) -> tuple[Himpo, Rollout]:
    arguments = FORAGING if environment.startswith("lbfws") else None
    algorithm, rollout, collector = new_algorithm("himpo", environment, 3, steps, arguments, **{**SMALL, **settings})
    assert isinstance(algorithm, Himpo)
    collector.collect(algorithm)
    return algorithm, rollout


def graphs_of(algorithm: Himpo, rollout: Rollout) -> RolloutGraphs:
    return RolloutGraphs(
        algorithm.hierarchy, rollout, algorithm.together.worker_features, algorithm.all_levels.standing
    )


# --- α --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "told"), [(1, [10.0, 20.0, 30.0, 40.0]), (2, [5.0, 5.0, 15.0, 15.0]), (5, [2.0, 2.0, 2.0, 2.0])]
)
def test_a_window_of_alpha_steps_pays_a_part_of_alpha_at_every_step(alpha: int, told: list[float]) -> None:
    """Advantages 10, 20, 30, 40 of decisions at the four steps, as far as windows open there; one of five is cut."""
    decided = (torch.arange(4) % alpha == 0).unsqueeze(-1)
    advantages = torch.tensor([10.0, 20.0, 30.0, 40.0]).view(4, 1, 1)
    assert told_reward(advantages, decided, alpha).flatten().tolist() == told


@pytest.mark.parametrize("alpha", [1, 2, 5])
@pytest.mark.parametrize("worker_reward", ["window", "telescoped"])
def test_over_every_whole_window_workers_earn_their_superiors_advantage(alpha: int, worker_reward: str) -> None:
    algorithm, rollout = collected(goal_interval=alpha, levels=2, worker_reward=worker_reward)
    decided = rollout.extras["decided"]
    assert decided[:, 0].tolist() == [step % alpha == 0 for step in range(20)]
    told: list[torch.Tensor] = []
    tell = Outcome.told

    def overheard(self: Outcome, *given: Any) -> torch.Tensor:
        told.append(tell(self, *given))
        return told[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Outcome, "told", overheard)
        (_, _, decisions, _), _ = algorithm._judged(graphs_of(algorithm, rollout))
    earned = told[0].unflatten(0, (-1, alpha)).sum(1)
    stayed = rollout.active.unflatten(0, (-1, alpha)).all(1)  # who leaves in a window does not earn it whole
    assert stayed.any()
    advantages = decisions.advantages.unflatten(0, (20 // alpha, 3))
    torch.testing.assert_close(earned[stayed], advantages[stayed], rtol=1e-4, atol=1e-4)


# --- sub-managers and clusters --------------------------------------------------------------------------------------


def test_as_many_numbers_to_each_sub_manager() -> None:
    assert clusters_by_number(5, 1).tolist() == [0, 0, 0, 0, 0]
    assert clusters_by_number(5, 2).tolist() == [0, 0, 0, 1, 1]
    assert clusters_by_number(4, 4).tolist() == [0, 1, 2, 3]
    assert clusters_by_number(2, 5).tolist() == [0, 2]  # three have no agent


@pytest.mark.parametrize(("count", "clusters"), [(1, 1), (2, 2), (4, 4)])
def test_as_many_places_as_sub_managers(count: int, clusters: int) -> None:
    """Four agents in the corners of a flat rectangle: all together, two and two by the short sides, each alone."""
    positions = torch.tensor([[[0.0, 0.0], [0.0, 1.0], [9.0, 0.0], [9.0, 1.0]]])
    active = torch.ones(1, 4, dtype=torch.bool)
    cluster, _ = spatial_clusters(positions, active, first_centres(positions, active, count))
    assert len(cluster[0].unique()) == clusters
    if count == 2:
        assert cluster[0, 0] == cluster[0, 1] != cluster[0, 2] == cluster[0, 3]


@pytest.mark.parametrize("count", [1, 3, 6])
def test_any_number_of_sub_managers_learns(count: int) -> None:
    algorithm, rollout = collected(sub_managers=count)
    assert rollout.extras["sub_goal"].shape[2] == count
    assert 1.0 <= algorithm.update(rollout, 0.0)["clusters"] <= count


def test_workers_can_report_by_number_wherever_they_are() -> None:
    algorithm, rollout = collected(clustering="number", sub_managers=2)
    assert rollout.extras["cluster"].flatten(0, 1).unique(dim=0).tolist() == [[0, 0, 0, 1, 1]]
    assert algorithm.hierarchy.positions.dimensions == 2
    _, spatial = collected(clustering="spatial", sub_managers=2)
    assert len(spatial.extras["cluster"].flatten(0, 1).unique(dim=0)) > 1
    _, automatic = collected(sub_managers=2)
    assert torch.equal(automatic.extras["cluster"], spatial.extras["cluster"])


def test_places_that_are_not_known_cannot_be_clustered() -> None:
    with pytest.raises(UsageError, match=r"clustering: got spatial, expected auto or number .*coordsum.*'position'"):
        collected("coordsum/3x10-30", clustering="spatial")


# --- values at every step --------------------------------------------------------------------------------------------


def test_what_a_value_learns_between_decisions_is_the_rest_of_its_window_hand_computed() -> None:
    """γ = ½, decisions at steps 0 and 2; V is 0, 0, 6, 0, and 4 after the end; rewards 1, 2, 4, 8."""
    column = (4, 1, 1)
    rewards, values = torch.tensor([1.0, 2.0, 4.0, 8.0]).view(column), torch.tensor([0.0, 0.0, 6.0, 0.0]).view(column)
    following = torch.tensor([0.0, 6.0, 0.0, 4.0]).view(column)
    ended, decided = torch.zeros(4, 1, dtype=torch.bool), torch.tensor([True, False, True, False]).unsqueeze(-1)
    advantages = decision_advantages(rewards, values, following, ended, decided, 0.5, 0.0, "decision")
    assert (advantages + values).flatten().tolist() == [1 + 2 + 3, 2 + 3, 4 + 8 + 2, 8 + 2]


@pytest.mark.parametrize("edge_values", [False, True])
def test_values_of_windows_can_learn_from_every_step_and_policies_learn_from_decisions(edge_values: bool) -> None:
    window = {"worker_reward": "window", "edge_values": edge_values}
    judged = {}
    for every in (None, False, True):
        algorithm, rollout = collected(**window, step_values=every)
        judged[every] = algorithm._judged(graphs_of(algorithm, rollout))
    for level, name in ((0, "manager_decided"), (1, "decided")):
        decided = rollout.extras[name].flatten()
        few, many = judged[False][level], judged[True][level]
        assert few[3].graph.moments == int(decided.sum()) < many[3].graph.moments == 60
        assert torch.equal(judged[None][level][3].returns, few[3].returns), "by default where they decide"
        torch.testing.assert_close(many[3].returns[decided], few[3].returns)
        torch.testing.assert_close(many[2].advantages, few[2].advantages)
        assert many[2].graph.moments == few[2].graph.moments
    assert all(torch.isfinite(torch.tensor(value)) for value in algorithm.update(rollout, 0.0).values())


def test_telescoped_rewards_need_values_at_every_step() -> None:
    with pytest.raises(UsageError, match="step_values: got False, expected True with worker_reward=telescoped"):
        validate(HierarchySettings, {"step_values": False}, "algorithm")
    assert validate(HierarchySettings, {}, "algorithm").judges_every_step
    assert not validate(HierarchySettings, {"worker_reward": "window"}, "algorithm").judges_every_step


def paid_for_nothing(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> torch.Tensor:
    """[T, B, N] what workers earn where the team earns 1 and sees the same for ever, superiors' values having
    converged: no decision is worth anything there.
    """
    algorithm, rollout = collected(
        goal_interval=2, gamma=0.5, critic_learning_rate=0.02, local_rewards=False, normalise_values=False,
        message_rounds=0, **settings,
    )  # fmt: skip
    rollout.rewards[:] = 0.2
    rollout.team_rewards = rollout.spec.team_rewards(rollout.rewards, rollout.active)
    for seen in (*rollout.observations, *rollout.last_observations):
        seen[:] = 1.0
    graphs = graphs_of(algorithm, rollout)
    for step_size in (0.5, 0.05):
        for _ in range(40):
            for _, level, _, judgements in algorithm._judged(graphs)[:-1]:
                for _ in range(6):
                    level._fit(judgements, step_size)
    paid: list[torch.Tensor] = []
    outcome = RolloutGraphs.outcome

    def told(self: RolloutGraphs, level: Level, rewards: torch.Tensor, *rest: Any) -> Outcome:
        paid.append(rewards)
        return outcome(self, level, rewards, *rest)

    monkeypatch.setattr(RolloutGraphs, "outcome", told)
    algorithm._judged(graphs)
    return paid[-1]


@pytest.mark.parametrize("levels", [2, 3])
def test_values_that_see_the_step_of_their_window_pay_nothing_for_nothing(
    levels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    paid = paid_for_nothing(monkeypatch, levels=levels, values_see_step=True)
    assert paid.abs().max() < 0.05


def test_others_learn_the_mean_of_what_is_left_of_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """With γ = ½, α = 2 and a reward of 1: V is 4 at a window's first step and 3 at its second, and learnt as one
    number between. So they pay 1 inside a window, where V does not change, and 1 + V/2 − V at its end.
    """
    paid = paid_for_nothing(monkeypatch, levels=2).mean((1, 2))
    torch.testing.assert_close(paid[::2], torch.ones(10), atol=0.05, rtol=0)
    assert (paid[1::2] < -0.5).all()


def test_only_values_of_every_step_can_see_it() -> None:
    with pytest.raises(UsageError, match="values_see_step: got True, expected False with worker_reward=window"):
        validate(HierarchySettings, {"values_see_step": True, "worker_reward": "window"}, "algorithm")
    algorithm, rollout = collected(values_see_step=True, worker_reward="window", step_values=True, levels=2)
    assert all(torch.isfinite(torch.tensor(value)) for value in algorithm.update(rollout, 0.0).values())


# --- other tasks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("environment", ["coordsum/3x10-30", "mpe/simple_speaker_listener"])
@pytest.mark.parametrize("static", [False, True])
def test_teams_that_are_nowhere_learn_on_a_complete_graph(
    environment: str, static: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        algorithm, rollout = collected(environment, graph="all", clustering="number", static_graph=static)
    assert not caplog.records, "told how messages go, nothing has to be said"
    agents = len(rollout.spec.agents)
    assert algorithm.update(rollout, 0.0)["neighbours"] == agents - 1
    assert len(rollout.extras["cluster"].flatten(0, 1).unique(dim=0)) == 1


def test_the_easy_foraging_task_is_learnt_like_the_hard_one() -> None:
    algorithm, rollout = collected("lbfws/easy")
    metrics = algorithm.update(rollout, 0.0)
    assert metrics["clusters"] >= 1.0
    assert "agent_kl" in metrics
