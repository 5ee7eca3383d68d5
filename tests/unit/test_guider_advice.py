"""Advice under a guider: every warning is provoked, names its remedy, and is silent where nothing is wrong."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hmarl.trainer.guiders.advice import alike
from training_runs import new_algorithm

pytestmark = pytest.mark.usefixtures("single_thread")
SMALL = {"embedding_size": 8, "epochs": 1, "recurrent": False}


def acted(actions: list[Tensor], active: Tensor, groups: list[tuple[int, ...]]) -> dict[str, float]:
    """What is said of recorded actions; groups of agents by number."""
    spec = SimpleNamespace(groups=[SimpleNamespace(agents=agents) for agents in groups])
    return alike(SimpleNamespace(spec=spec, actions=actions, active=active))  # type: ignore[arg-type]


def test_how_often_agents_do_the_same_hand_computed() -> None:
    """Four steps of three agents: 1 1 1, 1 1 2, 0 (gone) 0, and one agent alone, which does not count: 2 of 3."""
    actions = torch.tensor([[[1, 1, 1], [1, 1, 2], [0, 2, 0], [0, 1, 2]]])
    active = torch.ones(1, 4, 3, dtype=torch.bool)
    active[0, 2, 1] = False
    active[0, 3, 1:] = False
    assert acted([actions], active, [(0, 1, 2)]) == {"same_action_share": pytest.approx(2 / 3)}
    active[0, 1, 0] = active[0, 2, 0] = False  # then the first of those that are there is what others are held against
    assert acted([actions], active, [(0, 1, 2)]) == {"same_action_share": pytest.approx(1 / 2)}


def test_several_choices_are_the_same_when_all_are_and_kinds_of_agents_are_looked_at_apart() -> None:
    several = torch.tensor([[[[1, 2], [1, 2]], [[1, 2], [1, 0]]]])  # [T, B, N_group, branches]
    lone, real = torch.tensor([[[3], [3]]]), torch.zeros(1, 2, 2, 4)
    active = torch.ones(1, 2, 5, dtype=torch.bool)
    groups = [(0, 1), (2,), (3, 4)]
    assert acted([several, lone, real], active, groups) == {"same_action_share": pytest.approx(0.5)}
    assert acted([lone, real], active, [(2,), (3, 4)]) == {}


def updated(name: str, sure: float, environment: str = "mpe/simple_spread", **settings: Any) -> str | None:
    """What is said of an update, whose guider prefers action 0 by ``sure`` nats for all agents, whatever they see."""
    algorithm, rollout, collector = new_algorithm(name, environment, 4, 10, None, **{**SMALL, **settings})
    parameters = algorithm.guider.network.named(algorithm.guider.theta)
    (bias,) = [
        value for key, value in parameters.items() if value.shape == (5,) and "bias" in key and "value" not in key
    ]
    bias[0] += sure
    collector.collect(algorithm)
    return next(iter(algorithm.advice(algorithm.update(rollout, 0.0))), None)


@pytest.mark.parametrize("name", ["magpo", "ctds"])
def test_coordination_that_collapses(name: str) -> None:
    far = {"delta": 1e6}  # local policies, who know nothing of it yet, are not what is warned of
    assert updated(name, 0.0, **far) is None
    advice = updated(name, 9.0, **far)
    assert advice is not None
    assert advice.startswith("coordination may have collapsed: in more than 95% of the steps all agents of a kind do")
    assert "raise algorithm.entropy_coefficient" in advice
    assert "guider=mat" not in advice


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"guider": "factorised"}, "algorithm.guider=mat (or sable)"),
        ({"share_parameters": True}, "algorithm.share_parameters=false"),
        ({"share_parameters": True, "agent_identity": False}, "algorithm.agent_identity=true"),
        ({"shuffle_agents": False}, "algorithm.shuffle_agents=true"),
    ],
)
def test_the_remedy_is_what_the_settings_leave_to_be_done(settings: dict[str, Any], remedy: str) -> None:
    algorithm, _, _ = new_algorithm("magpo", "mpe/simple_spread", 2, 4, None, **SMALL, **settings)
    (advice,) = algorithm.advice({"same_action_share": 0.96})
    assert remedy in advice
    assert algorithm.advice({"same_action_share": 0.95}) == []


def test_agents_without_identity_collapse_and_the_remedy_is_one() -> None:
    """Agents that see the same and share a network without identity act alike for ever; told apart they part."""

    def share(identity: bool) -> float:
        settings = {"guider": "factorised", "share_parameters": True, "agent_identity": identity}
        algorithm, rollout, collector = new_algorithm("magpo", "coordsum/sum-to-10", 64, 1, None, **SMALL, **settings)
        policy = algorithm.policies[0]
        policy.theta.normal_(std=20.0, generator=torch.Generator().manual_seed(1))
        algorithm.guider.network.backtrack(algorithm.guider.theta, algorithm.policies)
        collector.collect(algorithm)
        return float(algorithm.update(rollout, 0.0)["same_action_share"])

    assert share(identity=False) > 0.95
    assert share(identity=True) < 0.95


@pytest.mark.parametrize("name", ["magpo", "guided-hcpo"])
@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({}, "Lower algorithm.delta"),
        ({"backtracking": False}, "Set algorithm.backtracking=true, which draws the guider back. Lower"),
    ],
)
def test_guider_and_local_policies_that_part(name: str, settings: dict[str, Any], remedy: str) -> None:
    advice = updated(name, 9.0, **settings)
    assert advice is not None
    assert advice.startswith("guider and local policies part")
    assert f"worse than the guider. {remedy}" in advice


def test_guided_hcpo_says_it_too() -> None:
    algorithm, _, _ = new_algorithm("guided-hcpo", "mpe/simple_spread", 2, 4, None, embedding_size=8)
    (advice,) = algorithm.advice({"same_action_share": 1.0})
    assert "collapsed" in advice


def test_rollouts_have_the_layout_that_is_read() -> None:
    for environment, dimensions in (("masked_discrete", 3), ("multi_discrete", 4)):
        name = f"toy_environments:{environment}"
        algorithm, rollout, collector = new_algorithm("magpo", name, 4, 10, None, **SMALL)
        collector.collect(algorithm)
        metrics = algorithm.update(rollout, 0.0)
        assert rollout.actions[0].dim() == dimensions
        if environment == "masked_discrete":
            assert 0.0 < metrics["same_action_share"] < 0.9
