"""Minibatch gradient steps of one turn: which samples make a step, how far it goes, and what is reported of it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from hmarl.trainer.algorithms.happo import Happo
from hmarl.trainer.networks.distributions import Distribution
from hmarl.trainer.sequential.gradient_steps import GradientSteps, clipped_loss, clipped_share, minibatches
from hmarl.trainer.sequential.samples import TeamSamples
from hmarl.trainer.sequential.turns import Turn
from training_runs import new_algorithm, turn_of

pytestmark = pytest.mark.usefixtures("single_thread")


def drawn(units: int, epochs: int, parts: int, seed: int = 5) -> list[Tensor]:
    return [each for each in minibatches(units, epochs, parts, torch.Generator().manual_seed(seed)) if each is not None]


def test_the_minibatches_of_an_epoch_are_a_partition_of_nearly_equal_parts() -> None:
    parts = drawn(10, 2, 4)
    assert [len(part) for part in parts] == [3, 3, 3, 1] * 2
    for epoch in (parts[:4], parts[4:]):
        assert torch.cat(epoch).sort().values.tolist() == list(range(10))
    assert torch.cat(parts[:4]).tolist() != torch.cat(parts[4:]).tolist()


def test_minibatches_are_drawn_by_the_generator_alone() -> None:
    torch.manual_seed(1)
    first = torch.cat(drawn(40, 1, 4)).tolist()
    torch.manual_seed(2)
    assert torch.cat(drawn(40, 1, 4)).tolist() == first
    assert torch.cat(drawn(40, 1, 4, seed=6)).tolist() != first


def test_one_part_is_everything() -> None:
    assert list(minibatches(10, 3, 1, torch.Generator())) == [None, None, None]


def turn(seed: int = 0, **settings: Any) -> tuple[Happo, Turn]:
    """The first agent's turn after a rollout, with advantages of both signs."""
    algorithm, rollout, collector = new_algorithm("happo", "toy_environments:masked_discrete", 4, 10, **settings)
    collector.collect(algorithm)
    samples = TeamSamples(rollout, algorithm.policies, algorithm.features(rollout)).of_agent(0)
    advantages = torch.randn(len(samples.inputs), generator=torch.Generator().manual_seed(seed))
    return algorithm, turn_of(algorithm, 0, samples, advantages)


@torch.no_grad()
def test_the_clipped_share_counts_ratios_beyond_the_range() -> None:
    algorithm, known = turn()
    moved = algorithm.policies[0].row(0).clone()
    moved += 0.1 * torch.randn(len(moved), generator=torch.Generator().manual_seed(2))
    new = known.samples.under(known.policy, moved)
    ratios = known.samples.ratio(new)
    clip = float((ratios - 1.0).abs().median())  # one ratio is just at the bound, which is not beyond it
    expected = sum(abs(ratio - 1.0) > clip for ratio in ratios.tolist()) / len(ratios)
    assert 0.4 < expected < 0.6
    assert clipped_share(new, known, clip) == {"agent_clipped": pytest.approx(expected)}
    same = known.samples.under(known.policy, algorithm.policies[0].row(0))
    assert clipped_share(same, known, clip) == {"agent_clipped": 0.0}


def by_hand(known: Turn, settings: Any, generator: torch.Generator) -> Tensor:
    """Adam of torch on the same minibatches: the parameters after all steps."""
    theta = known.policy.row(0).detach().clone().requires_grad_(True)
    adam = torch.optim.Adam([theta], lr=settings.learning_rate * known.schedule, eps=1e-5)
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(known.samples.inputs), generator=generator).split(
            -(-len(known.samples.inputs) // settings.minibatches)
        ):
            part = known.take(rows)
            adam.zero_grad()
            clipped_loss(part.samples.under(known.policy, theta), part, 0.2, 0.01).backward()
            adam.step()
    return theta.detach()


@pytest.mark.parametrize("schedule", [1.0, 0.25])
def test_every_epoch_descends_on_every_minibatch(schedule: float) -> None:
    algorithm, known = turn(epochs=3, minibatches=3, max_gradient_norm=1e9)
    known = turn_of(algorithm, 0, known.samples, known.advantages, schedule=schedule)
    steps = GradientSteps(algorithm.policies, algorithm.settings, torch.Generator().manual_seed(4))
    expected = by_hand(known, algorithm.settings, torch.Generator().manual_seed(4))
    improved = steps.descend(known, partial(clipped_loss, clip=0.2, entropy_coefficient=0.01))
    torch.testing.assert_close(known.policy.row(0), expected, atol=2e-6, rtol=1e-4)
    with torch.no_grad():
        new = known.samples.under(known.policy, known.policy.row(0))
        assert improved.metrics["agent_kl"] == pytest.approx(float(known.samples.old.kl(new).mean()))
        assert improved.metrics["agent_entropy"] == pytest.approx(float(new.entropy().mean()))
    assert improved.metrics["agent_gradient_norm"] > 0.0


def test_agents_who_share_a_policy_share_its_optimiser() -> None:
    algorithm, _ = turn(share_parameters=True, agent_identity=True)
    steps = GradientSteps(algorithm.policies, algorithm.settings, torch.Generator().manual_seed(4))
    assert [len(row) for row in steps.optimisers] == [1] * len(algorithm.policies)


def test_no_epoch_follows_where_the_policy_has_moved_enough() -> None:
    algorithm, known = turn(epochs=5)
    steps = GradientSteps(algorithm.policies, algorithm.settings, torch.Generator().manual_seed(4))
    taken: list[int] = []

    def loss(new: Distribution, part: Turn) -> Tensor:
        taken.append(len(part.advantages))
        return clipped_loss(new, part, 0.2, 0.01)

    answers = iter([False, True])
    improved = steps.descend(known, loss, enough=lambda _: next(answers))
    assert taken == [len(known.advantages)] * 2
    assert improved.policy.entropy().shape == known.advantages.shape
    taken.clear()
    steps.descend(known, loss)
    assert len(taken) == 5
