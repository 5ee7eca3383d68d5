"""HAMDPO's step sizes that follow the divergence they bring, epochs that end early, and agents without the factor F."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hmarl.trainer.algorithms.hamdpo import Hamdpo, HamdpoSettings, adapted_step_size, divergence
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.sequential.samples import TeamSamples
from hmarl.trainer.sequential.turns import Improvement, Turn
from training_runs import new_algorithm, turn_of

pytestmark = pytest.mark.usefixtures("single_thread")

TARGET = 0.02


def settings(**others: Any) -> HamdpoSettings:
    return HamdpoSettings(kl_target=TARGET, **others)


@pytest.mark.parametrize(
    ("step_size", "moved", "expected"),
    [
        (1.0, 0.0301, 0.5),
        (1.0, 0.0299, 1.0),
        (1.0, 0.02, 1.0),
        (1.0, 0.0134, 1.0),
        (1.0, 0.0133, 2.0),
        (0.011, 1.0, 0.01),
        (0.01, 1.0, 0.01),
        (80.0, 0.0, 100.0),
        (100.0, 0.0, 100.0),
    ],
)
def test_a_step_size_is_halved_or_doubled_where_the_divergence_is_not_near_the_target(
    step_size: float, moved: float, expected: float
) -> None:
    assert adapted_step_size(step_size, moved, settings()) == expected


def test_the_range_of_step_sizes_is_about_the_first() -> None:
    assert adapted_step_size(3.0, 1.0, settings(step_size=200.0)) == 2.0
    assert adapted_step_size(1.5, 0.0, settings(step_size=0.02)) == 2.0


def collected(**others: Any) -> tuple[Hamdpo, Rollout]:
    """Two agents with a rollout of theirs."""
    algorithm, rollout, collector = new_algorithm(
        "hamdpo", "toy_environments:masked_discrete", 4, 10, kl_target=TARGET, minibatches=1, **others
    )
    collector.collect(algorithm)
    return algorithm, rollout


def improved(epochs: int, **others: Any) -> tuple[Hamdpo, float]:
    """The algorithm after the turn of its first agent, and the divergence of that."""
    algorithm, rollout = collected(epochs=epochs, learning_rate=0.03, kl_regularisation=False, **others)
    samples = TeamSamples(rollout, algorithm.policies, algorithm.features(rollout)).of_agent(0)
    advantages = torch.randn(len(samples.inputs), generator=torch.Generator().manual_seed(1))
    return algorithm, algorithm.improve(turn_of(algorithm, 0, samples, advantages)).metrics["agent_reverse_kl"]


def test_no_epoch_follows_one_that_has_gone_too_far() -> None:
    divergences = [improved(epochs, step_size_schedule="linear")[1] for epochs in range(1, 9)]
    last = next(epoch for epoch, moved in enumerate(divergences) if moved > 1.5 * TARGET)
    assert 0 < last < 7, divergences
    algorithm, moved = improved(8)
    assert moved == divergences[last]
    assert algorithm.step_sizes[0] == 0.5
    assert (algorithm.step_sizes[1:] == 1.0).all()  # of agents whose turn it was not
    _, unstopped = improved(8, step_size_schedule="linear")
    assert unstopped == divergences[-1] > moved


def test_an_update_takes_every_agents_own_step_size() -> None:
    algorithm, rollout = collected(epochs=1, learning_rate=1e-5)
    algorithm.step_sizes.copy_(torch.arange(len(algorithm.step_sizes)) + 4.0)
    mean = float(algorithm.step_sizes.mean())
    assert algorithm.update(rollout, 0.5)["step_size"] == mean
    assert algorithm.step_sizes.tolist() == [2.0 * (agent + 4.0) for agent in range(len(algorithm.step_sizes))]
    assert algorithm.components()["step_sizes"] is algorithm.step_sizes


def test_the_step_size_of_an_agent_that_was_never_there_stays() -> None:
    """It has not moved, which says nothing of its steps."""
    algorithm, rollout = collected(epochs=1, learning_rate=1e-5)
    rollout.active[:, :, 1] = False
    rollout.all_active = False
    algorithm.update(rollout, 0.5)
    assert algorithm.step_sizes.tolist() == [2.0, 1.0]


@pytest.mark.parametrize(
    ("others", "factor"),
    [
        ({"learning_rate_follows": True}, [0.25, 1.0]),
        ({"learning_rate_follows": True, "step_size": 2.0}, [0.125, 1.0]),
        ({"learning_rate_follows": False}, [1.0, 1.0]),
        ({"learning_rate_follows": True, "step_size_schedule": "linear"}, [1.0, 1.0]),
    ],
)
def test_adams_steps_are_in_proportion_where_a_step_size_has_fallen(
    others: dict[str, Any], factor: list[float]
) -> None:
    """η of one agent is a quarter, of the other four; the schedule halves the steps of both."""
    algorithm, rollout = collected(epochs=1, learning_rate=0.01, **others)
    algorithm.step_sizes[:2] = torch.tensor([0.25, 4.0])
    samples = TeamSamples(rollout, algorithm.policies, algorithm.features(rollout))
    for agent in range(2):
        one = samples.of_agent(agent)
        algorithm.improve(replace(turn_of(algorithm, agent, one, torch.ones(len(one.inputs))), schedule=0.5))
    taken = [optimiser.step_size for row in algorithm.steps.optimisers for optimiser in row]
    assert taken[:2] == pytest.approx([0.5 * 0.01 * share for share in factor])


def test_the_divergence_is_that_of_the_new_from_the_old() -> None:
    algorithm, rollout = collected()
    samples = TeamSamples(rollout, algorithm.policies, algorithm.features(rollout)).of_agent(0)
    policy = algorithm.policies[0]
    new = samples.under(policy, policy.row(0) + 0.3 * torch.randn(policy.row(0).shape))
    found = divergence(new, turn_of(algorithm, 0, samples, torch.zeros(len(samples.inputs))))
    assert float(found) == pytest.approx(float(new.kl(samples.old).mean()))
    assert float(found) != pytest.approx(float(samples.old.kl(new).mean()), rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "heeded"),
    [
        ({}, lambda factor: factor),
        ({"sequential_factor_clip": 0.02}, lambda factor: factor.clamp(0.98, 1.02)),
        ({"sequential_factor": False}, torch.ones_like),
        ({"sequential_factor": False, "sequential_factor_clip": 0.02}, torch.ones_like),
    ],
)
def test_later_agents_maximise_what_the_factor_leaves_of_the_joint_advantage(
    settings: dict[str, Any], heeded: Callable[[Tensor], Tensor]
) -> None:
    algorithm, rollout = collected(**settings, learning_rate=0.02)
    turns: list[Turn] = []
    improve = algorithm.improve

    def recorded(turn: Turn) -> Improvement:
        turns.append(turn)
        return improve(turn)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(algorithm, "improve", recorded)
        metrics = algorithm.update(rollout, 0.0)
    assert metrics["sequential_factor_max"] > 1.02
    assert len(turns) > 1
    joint = turns[0].advantages
    for later in turns[1:]:
        assert later.factor.max() > 1.02
        assert later.factor.min() < 0.98
        assert later.advantages.equal(heeded(later.factor) * joint)
