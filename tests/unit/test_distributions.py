"""Distributions against numbers worked out by hand, and their sampling against their probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from hmarl.trainer.networks.distributions import (
    ActionHead,
    Categorical,
    DiagonalGaussian,
    MultiCategorical,
    gumbel_from_uniform,
)

pytestmark = pytest.mark.usefixtures("single_thread")
LN2, LN3 = math.log(2.0), math.log(3.0)


def logs(*weights: float) -> Tensor:
    """Logits of a choice with probabilities in these proportions, shifted by a constant that must not matter."""
    return torch.tensor(weights).log() + 5.0


def test_categorical_hand_computed() -> None:
    half, quarter = Categorical(logs(2, 1, 1)), Categorical(logs(1, 1, 2))
    assert half.log_prob(torch.tensor(0)).item() == pytest.approx(-LN2, rel=1e-5)
    assert half.log_prob(torch.tensor(2)).item() == pytest.approx(-2 * LN2, rel=1e-5)
    assert half.entropy().item() == pytest.approx(1.5 * LN2, rel=1e-5)
    # ½ ln(½/¼) + ¼ ln 1 + ¼ ln(¼/½)
    assert half.kl(quarter).item() == pytest.approx(0.25 * LN2, rel=1e-4)
    assert half.kl(half).item() == 0.0
    assert half.mode().item() == 0


def test_masked_categorical_is_the_distribution_over_the_legal_actions() -> None:
    mask = torch.tensor([False, True, True])
    masked, other = Categorical(logs(100, 1, 3), mask), Categorical(logs(7, 1, 1), mask)
    assert masked.log_prob(torch.tensor(1)).item() == pytest.approx(-2 * LN2, rel=1e-5)
    assert masked.log_prob(torch.tensor(0)).exp().item() == 0.0
    entropy = 0.25 * 2 * LN2 + 0.75 * (2 * LN2 - LN3)
    assert masked.entropy().item() == pytest.approx(entropy, rel=1e-5)
    assert masked.kl(other).item() == pytest.approx(LN2 - entropy, rel=1e-4)
    assert masked.mode().item() == 2


def test_masked_actions_get_no_gradient_and_no_nan() -> None:
    logits = torch.tensor([3.0, 1.0, -2.0], requires_grad=True)
    masked = Categorical(logits, torch.tensor([True, False, True]))
    value = masked.log_prob(torch.tensor(0)) + masked.entropy() + masked.kl(Categorical(torch.zeros(3)))
    (gradient,) = torch.autograd.grad(value, logits)
    assert torch.isfinite(gradient).all()
    assert gradient[1] == 0.0


def test_multi_categorical_hand_computed() -> None:
    logits, branches = torch.cat([logs(2, 1, 1), logs(1, 3)]), (3, 2)
    both = MultiCategorical(logits, branches)
    assert both.log_prob(torch.tensor([0, 1])).item() == pytest.approx(-LN2 + LN3 - 2 * LN2, rel=1e-5)
    assert both.entropy().item() == pytest.approx(1.5 * LN2 + 2 * LN2 - 0.75 * LN3, rel=1e-5)
    other = MultiCategorical(torch.cat([logs(1, 1, 2), logs(1, 3)]), branches)
    assert both.kl(other).item() == pytest.approx(0.25 * LN2, rel=1e-4)
    assert both.mode().tolist() == [0, 1]
    masked = MultiCategorical(logits, branches, torch.tensor([False, True, True, True, False]))
    assert masked.log_prob(torch.tensor([1, 0])).item() == pytest.approx(-LN2, rel=1e-5)
    assert masked.mode().tolist() == [1, 0]
    assert masked.logits[0] < -1e9


def test_gaussian_hand_computed() -> None:
    wide = DiagonalGaussian(torch.tensor([1.0, -1.0]), torch.tensor([LN2, 0.0]))
    # z = (1, 0): -½·1 - ln 2 - ½ ln 2π, and -½ ln 2π.
    expected = -0.5 - LN2 - math.log(2 * math.pi)
    assert wide.log_prob(torch.tensor([3.0, -1.0])).item() == pytest.approx(expected, rel=1e-6)
    assert wide.entropy().item() == pytest.approx(LN2 + math.log(2 * math.pi * math.e), rel=1e-6)
    # ln(1/2) + (4 + 1²)/2 - ½ in the first component; the second is the same.
    narrow = DiagonalGaussian(torch.tensor([2.0, -1.0]), torch.zeros(2))
    assert wide.kl(narrow).item() == pytest.approx(-LN2 + 2.5 - 0.5, rel=1e-5)
    # ln 2 + (1 + 1²)/8 - ½
    assert narrow.kl(wide).item() == pytest.approx(LN2 + 0.25 - 0.5, rel=1e-5)
    assert wide.mode().tolist() == [1.0, -1.0]
    torch.testing.assert_close(wide.select(torch.tensor([1.0, -2.0])), torch.tensor([3.0, -3.0]))


def test_gaussian_agrees_with_torch_on_random_batches() -> None:
    generator = torch.Generator().manual_seed(1)
    mean, log_std, action = torch.randn(3, 5, 4, 3, generator=generator).unbind(0)
    ours, theirs = DiagonalGaussian(mean, log_std), torch.distributions.Normal(mean, log_std.exp())
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action).sum(-1))
    torch.testing.assert_close(ours.entropy(), theirs.entropy().sum(-1))
    other = torch.distributions.Normal(action, 1.0)
    expected = torch.distributions.kl_divergence(theirs, other).sum(-1)
    torch.testing.assert_close(ours.kl(DiagonalGaussian(action, torch.zeros(3))), expected)


HEADS = {
    "discrete": ActionHead(spaces.Discrete(4)),
    "branches": ActionHead(spaces.MultiDiscrete([3, 2])),
    "continuous": ActionHead(spaces.Box(-1.0, 1.0, (2,), np.float32)),
}


@pytest.mark.parametrize("kind", list(HEADS))
def test_no_perturbation_selects_the_mode(kind: str) -> None:
    head = HEADS[kind]
    output = torch.randn(50, head.output_size, generator=torch.Generator().manual_seed(2))
    distribution = head.distribution(output, head.initialise())
    zero = torch.zeros(50, head.output_size)
    assert torch.equal(distribution.select(zero), distribution.mode())
    assert torch.equal(head.perturbation(zero), zero), "zero noise must stay no noise"


@pytest.mark.parametrize("kind", ["discrete", "branches"])
def test_masked_actions_are_never_selected(kind: str) -> None:
    head, generator = HEADS[kind], torch.Generator().manual_seed(3)
    mask = torch.rand(2000, head.output_size, generator=generator) < 0.5
    mask[:, -1] = mask[:, 2] = True  # something is legal in every branch
    output = 20.0 * torch.randn(2000, head.output_size, generator=generator)
    distribution = head.distribution(output, head.initialise(), mask)
    for action in (distribution.select(head.draw_perturbations((2000,), generator)), distribution.mode()):
        chosen = action.unsqueeze(-1) if kind == "discrete" else action + torch.tensor([0, 3])
        assert mask.gather(1, chosen).all()


def within_binomial_bounds(counts: Tensor, probabilities: Tensor) -> bool:
    """Every count within five standard deviations of its expectation."""
    draws = counts.sum()
    deviation = (draws * probabilities * (1 - probabilities)).sqrt()
    return bool(((counts - draws * probabilities).abs() <= 5 * deviation + 1e-9).all())


@pytest.mark.parametrize("source", ["rollout", "deployed"])
def test_gumbel_max_frequencies_are_the_probabilities(source: str) -> None:
    """From the rollout's perturbations, and from the deployed policy's uniform noise."""
    head, draws, generator = HEADS["discrete"], 40_000, torch.Generator().manual_seed(4)
    probabilities = torch.tensor([0.5, 0.3, 0.2, 0.0])
    distribution = Categorical(logs(5, 3, 2, 90).expand(draws, 4), torch.tensor([True, True, True, False]))
    if source == "rollout":
        perturbation = head.draw_perturbations((draws,), generator)
    else:
        perturbation = head.perturbation(torch.rand(draws, 4, generator=generator))
    counts = torch.bincount(distribution.select(perturbation), minlength=4)
    assert within_binomial_bounds(counts, probabilities), counts
    assert not within_binomial_bounds(counts, torch.tensor([0.45, 0.35, 0.2, 0.0])), "the bound must be able to fail"


def test_gumbel_from_uniform_hand_computed() -> None:
    uniform = torch.tensor([math.exp(-1.0), math.exp(-math.e), 0.0])
    torch.testing.assert_close(gumbel_from_uniform(uniform), torch.tensor([0.0, -1.0, 0.0]), atol=1e-6, rtol=1e-5)


def test_normal_perturbations_have_unit_variance() -> None:
    drawn = HEADS["continuous"].draw_perturbations((20_000,), torch.Generator().manual_seed(5))
    assert drawn.shape == (20_000, 2)
    assert drawn.mean().abs() < 5 / 200
    assert drawn.std().item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("squash", ["clip", "tanh"])
def test_continuous_actions_hand_computed_in_the_environments_units(squash: str) -> None:
    head = ActionHead(spaces.Box(np.array([0.0, -4.0], np.float32), np.array([1.0, 8.0], np.float32)), squash)
    raw = torch.tensor([[0.0, 0.0], [0.5, -0.5], [9.0, -50.0]])
    bend = math.tanh(0.5) if squash == "tanh" else 0.5
    expected = torch.tensor([[0.5, 2.0], [0.5 + bend / 2, 2.0 - 6.0 * bend], [1.0, -4.0]])
    torch.testing.assert_close(head.to_environment(raw), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("squash", ["clip", "tanh"])
def test_continuous_actions_never_leave_the_bounds(squash: str) -> None:
    """Bounds that float32 cannot scale to exactly: rounding may not carry an action past them."""
    generator = np.random.default_rng(6)
    low = generator.uniform(-3.0, 1.0, 500).astype(np.float32)
    high = (low + generator.uniform(0.01, 5.0, 500)).astype(np.float32)
    box = spaces.Box(low, high)
    for raw in (torch.full((500,), 100.0), torch.full((500,), -100.0), torch.ones(500), -torch.ones(500)):
        assert box.contains(ActionHead(box, squash).to_environment(raw).numpy())


def test_choices_pass_through_unchanged() -> None:
    action = torch.tensor([[1, 0]])
    assert HEADS["branches"].to_environment(action) is action


def test_initial_standard_deviation_is_the_configured_one() -> None:
    head = ActionHead(spaces.Box(-1.0, 1.0, (3,), np.float32), initial_std=0.25)
    distribution = head.distribution(torch.zeros(2, 3), head.initialise())
    assert isinstance(distribution, DiagonalGaussian)
    torch.testing.assert_close(distribution.log_std.exp(), torch.full((2, 3), 0.25))
    assert head.extra_size == 3
    assert HEADS["branches"].extra_size == 0
