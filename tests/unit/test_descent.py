"""Descents of several, made together: each comes to what it comes to alone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from hmarl.trainer.learning.critic import Critic
from hmarl.trainer.networks.distributions import Categorical, DiagonalGaussian, MultiCategorical, stacked_distribution
from hmarl.trainer.networks.optimiser import FlatAdam
from hmarl.trainer.sequential.gradient_steps import GradientSteps, clipped_loss
from hmarl.trainer.together.company import Company
from hmarl.trainer.together.descent import Descent, told_apart
from training_runs import new_algorithm, team_samples, turn_of

pytestmark = pytest.mark.usefixtures("single_thread")
CLIPPED = partial(clipped_loss, clip=0.2, entropy_coefficient=0.01)


class Rows:
    """Samples that are rows of numbers."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    @property
    def units(self) -> int:
        return len(self.values)

    def take(self, units: Tensor) -> Rows:
        return Rows(self.values[units])


def stack(rows: Any) -> Rows:
    return Rows(torch.stack([each.values for each in rows]))


def distance(theta: Tensor, rows: Rows) -> Tensor:
    """½ mean ‖θ − x‖², of one θ [2] or of a stack [S, 2]."""
    return 0.5 * (theta.unsqueeze(-2) - rows.values).square().sum(-1).mean(-1)


def descent(seed: int, parts: list[Tensor | None], kind: Any = "distance") -> Descent[Rows]:
    generator = torch.Generator().manual_seed(seed)
    optimiser = FlatAdam(torch.randn(2, generator=generator), 0.1, 0.5)
    return Descent(optimiser, Rows(torch.randn(6, 2, generator=generator)), parts, distance, 1.0, stack, kind)


@pytest.mark.parametrize("halves", [False, True])
def test_several_descend_together_as_each_does_alone(halves: bool) -> None:
    def parts(seed: int) -> list[Tensor | None]:
        order = torch.randperm(6, generator=torch.Generator().manual_seed(seed + 100))
        return [order[:3], order[3:], order[1:4]] if halves else [None, None, None]

    alone, together = ([descent(seed, parts(seed)) for seed in range(3)] for _ in range(2))
    for _ in range(2):  # the second time with the state that the first has left
        expected = [each.together([each])[0] for each in alone]
        outcomes = together[0].together(together)
        for one, other, told, wanted in zip(alone, together, outcomes, expected, strict=True):
            torch.testing.assert_close(other.optimiser.parameter, one.optimiser.parameter, rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(told.losses, wanted.losses, rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(told.norms, wanted.norms, rtol=1e-6, atol=1e-7)
            assert other.optimiser.steps == one.optimiser.steps
            kept, state = other.optimiser.state_dict(), one.optimiser.state_dict()
            for key in ("step", "exp_avg", "exp_avg_sq"):
                torch.testing.assert_close(kept[key], state[key], rtol=1e-5, atol=1e-8)


def test_large_minibatches_are_not_stacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """They come to the same, to the last bit, since each is computed as it is alone."""
    monkeypatch.setattr("hmarl.trainer.together.descent.STACKED_UNITS", 4)

    def unstackable(rows: Any) -> Rows:
        raise AssertionError("stacked")

    for parts, apart in (([None], True), ([torch.arange(5)], True), ([torch.arange(4)], False)):
        alone, together = ([replace(descent(seed, parts), stacked=unstackable) for seed in range(3)] for _ in range(2))
        if not apart:
            with pytest.raises(AssertionError, match="stacked"):
                together[0].together(together)
            continue
        outcomes = together[0].together(together)
        for one, other, told in zip(alone, together, outcomes, strict=True):
            assert torch.equal(told.losses, one.together([one])[0].losses)
            assert torch.equal(other.optimiser.parameter, one.optimiser.parameter)


def test_only_those_of_a_kind_that_are_equally_far_are_alike() -> None:
    first = descent(0, [None])
    assert first.alike(descent(1, [None]))
    assert not first.alike(descent(1, [None], kind="another"))
    assert not first.alike(descent(1, [None, None]))
    assert not first.alike(replace(descent(1, [None]), schedule=0.5))
    further = descent(1, [None])
    further.together([further])
    assert not first.alike(further)
    assert not descent(0, [None], kind=None).alike(descent(1, [None], kind=None))


def test_functions_are_told_apart_by_what_they_are_given() -> None:
    assert told_apart(partial(clipped_loss, clip=0.2)) == told_apart(partial(clipped_loss, clip=0.2))
    assert told_apart(partial(clipped_loss, clip=0.2)) != told_apart(partial(clipped_loss, clip=0.3))
    assert told_apart(clipped_loss) == told_apart(clipped_loss)


@pytest.mark.parametrize("minibatches", [1, 3])
@pytest.mark.parametrize(
    "environment", ["toy_environments:masked_discrete", "toy_environments:leaving", "coordsum/3x10-30"]
)
def test_turns_are_stacked(environment: str, minibatches: int) -> None:
    """Masks, agents that leave and plain actions: the clipped loss descends alike."""

    def improved(in_company: bool) -> list[Tensor]:
        turns, steps = [], []
        for seed in range(3):
            algorithm, rollout, collector = new_algorithm(
                "happo", environment, 4, 10, minibatches=minibatches, learning_rate=0.01
            )
            for policy in algorithm.policies:  # every seed its own
                policy.theta += 0.1 * torch.randn(policy.theta.shape, generator=torch.Generator().manual_seed(seed))
            algorithm.noise_generator.manual_seed(seed)
            collector.collect(algorithm)
            samples = team_samples(algorithm, rollout).of_agent(0)
            advantages = torch.randn(40, generator=torch.Generator().manual_seed(seed))
            turns.append(turn_of(algorithm, 0, samples, advantages))
            steps.append(GradientSteps(algorithm.policies, algorithm.settings, algorithm.noise_generator))
        works = [partial(each.descend, turn, CLIPPED) for each, turn in zip(steps, turns, strict=True)]
        if in_company:
            assert [outcome.error for outcome in Company().work(works)] == [None] * 3
        else:
            for work in works:
                work()
        return [turn.policy.row(turn.member).clone() for turn in turns]

    for alone, beside in zip(improved(False), improved(True), strict=True):
        torch.testing.assert_close(beside, alone, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("outputs", ["one", "each", "chosen"])
@pytest.mark.parametrize("loss", ["huber", "mse"])
def test_critics_are_fitted_together(outputs: str, loss: str) -> None:
    algorithm, _, _ = new_algorithm("happo", "coordsum/3x10-30", 2, 5)
    settings = algorithm.settings.model_copy(update={"critic_loss": loss, "critic_minibatches": 3, "huber_delta": 0.5})

    def fitted(in_company: bool) -> list[tuple[Tensor, dict[str, float]]]:
        critics, works = [], []
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            critic = Critic(5, settings, generator, torch.device("cpu"), 1 if outputs == "one" else 3)
            states = torch.randn(20, 5, generator=generator)
            wanted = torch.randn(*((20, 3) if outputs == "each" else (20,)), generator=generator)
            chosen = torch.randint(3, (20,), generator=generator) if outputs == "chosen" else None
            there = torch.rand(20, 3, generator=generator) > 0.3 if outputs == "each" else None
            critics.append(critic)
            works.append(partial(critic.fit, states, wanted, generator, chosen=chosen, there=there))
        told = [each.value for each in Company().work(works)] if in_company else [work() for work in works]
        assert None not in told
        return [(critic.theta.clone(), metrics or {}) for critic, metrics in zip(critics, told, strict=True)]

    for (alone, metrics), (beside, told) in zip(fitted(False), fitted(True), strict=True):
        torch.testing.assert_close(beside, alone, rtol=1e-5, atol=1e-7)
        assert told == pytest.approx(metrics, rel=1e-5)


def test_distributions_are_stacked() -> None:
    logits, others = torch.randn(4, 5), torch.randn(4, 5)
    action = torch.randint(5, (4,))
    both = stacked_distribution([Categorical(logits), Categorical(others)])
    assert torch.equal(both.log_prob(torch.stack([action, action]))[1], Categorical(others).log_prob(action))
    branches = (2, 3)
    pair = torch.stack([action % 2, action % 3], dim=-1)
    several = stacked_distribution([MultiCategorical(logits, branches), MultiCategorical(others, branches)])
    expected = MultiCategorical(others, branches).log_prob(pair)
    assert torch.equal(several.log_prob(torch.stack([pair, pair]))[1], expected)
    gaussians = [DiagonalGaussian(each, torch.full((5,), scale)) for each, scale in ((logits, 0.1), (others, -0.3))]
    assert torch.equal(stacked_distribution(gaussians).entropy()[1], gaussians[1].entropy())


@pytest.mark.parametrize("shape", [(7,), (3, 7)])
def test_adam_makes_the_steps_of_torch_to_the_last_bit(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(shape, generator=generator)
    optimiser, parameter = FlatAdam(theta.clone(), 3e-4, 1e9), torch.nn.Parameter(theta.clone())
    reference = torch.optim.Adam([parameter], lr=3e-4, eps=1e-5)
    for number in range(50):
        schedule = 1.0 - number / 60
        gradient = torch.randn(shape, generator=generator)
        optimiser.descend(gradient, schedule)
        parameter.grad = gradient
        reference.param_groups[0]["lr"] = 3e-4 * schedule
        reference.step()
        assert torch.equal(optimiser.parameter, parameter)
    state, expected = optimiser.state_dict(), reference.state[parameter]
    assert list(state) == list(expected) == ["step", "exp_avg", "exp_avg_sq"]
    assert all(torch.equal(state[key], torch.as_tensor(expected[key])) for key in state)
