"""The critic's regression and its optimiser, against numbers worked out by hand and torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hmarl.trainer.algorithms.hatrpo import HatrpoSettings
from hmarl.trainer.learning.critic import Critic
from hmarl.trainer.networks.optimiser import FlatAdam
from hmarl.trainer.networks.settings import validate

CPU = torch.device("cpu")
STATES = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 2.0], [0.5, 0.5]])
TARGETS = torch.tensor([10.0, 20.0, 30.0, 60.0])  # mean 30, standard deviation √350
SCALED = (TARGETS - 30.0) / 350.0**0.5


def new_critic(outputs: int = 1, **settings: Any) -> Critic:
    defaults = {"critic_hidden_sizes": (4,), "critic_epochs": 1, "critic_minibatches": 1}
    checked = validate(HatrpoSettings, {**defaults, **settings}, "algorithm")
    return Critic(2, checked, torch.Generator().manual_seed(3), CPU, outputs)


def predictions(critic: Critic) -> Tensor:
    """[M] what the network says before it is fitted, in its own units."""
    return critic.network(critic.theta.clone(), STATES).squeeze(-1)


def test_targets_are_normalised_by_moments_that_hold_them_already() -> None:
    critic = new_critic(critic_loss="mse")
    before = predictions(critic)
    metrics = critic.fit(STATES, TARGETS, torch.Generator().manual_seed(0))
    assert metrics["critic_loss"] == pytest.approx(float((before - SCALED).square().mean()), rel=1e-5)
    torch.testing.assert_close(critic.values(STATES), predictions(critic) * 350.0**0.5 + 30.0)


def test_without_normalisation_targets_are_taken_as_they_are() -> None:
    critic = new_critic(critic_loss="mse", normalise_values=False)
    expected = float((predictions(critic) - TARGETS).square().mean())
    assert critic.fit(STATES, TARGETS, torch.Generator())["critic_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_huber_loss_is_linear_beyond_its_delta() -> None:
    """½ e² up to δ, δ (|e| − ½ δ) beyond; with δ = ½ two of the four errors are beyond."""
    critic = new_critic(critic_loss="huber", huber_delta=0.5)
    errors = (predictions(critic) - SCALED).abs()
    assert 0 < int((errors > 0.5).sum()) < 4, "both branches are tried"
    by_hand = torch.where(errors <= 0.5, 0.5 * errors.square(), 0.5 * (errors - 0.25)).mean()
    metrics = critic.fit(STATES, TARGETS, torch.Generator())
    assert metrics["critic_loss"] == pytest.approx(float(by_hand), rel=1e-5)


def test_each_epoch_fits_every_row_once_in_a_new_order() -> None:
    critic = new_critic(critic_epochs=3, critic_minibatches=2)
    seen, inner = [], critic._loss

    def recording(predicted: Tensor, targets: Tensor) -> Tensor:
        seen.append(targets.clone())
        return inner(predicted, targets)

    critic._loss = recording  # type: ignore[method-assign]
    critic.fit(STATES, TARGETS, torch.Generator().manual_seed(1))
    assert [len(part) for part in seen] == [2] * 6
    epochs = [torch.cat(seen[first : first + 2]) for first in (0, 2, 4)]
    for epoch in epochs:
        torch.testing.assert_close(epoch.sort().values, SCALED.sort().values)
    assert not (torch.equal(epochs[0], epochs[1]) and torch.equal(epochs[1], epochs[2]))
    assert critic.optimiser.state_dict()["step"] == 6


def test_a_target_belongs_to_the_output_that_was_chosen() -> None:
    """One step moves the chosen outputs' biases alone."""
    critic = new_critic(outputs=3, critic_loss="mse", critic_learning_rate=0.1)
    output_biases = slice(-3, None)
    before = critic.theta[output_biases].clone()
    critic.fit(STATES, TARGETS, torch.Generator(), chosen=torch.tensor([0, 2, 0, 2]))
    moved = critic.theta[output_biases] != before
    assert moved.tolist() == [True, False, True]


def test_the_explained_variance_is_that_of_the_values_before_the_fit() -> None:
    """1 − Var(R − V) / Var(R), in units of returns."""
    critic = new_critic(normalise_values=False)
    residual = TARGETS - predictions(critic)
    expected = 1.0 - float(residual.var(correction=0) / TARGETS.var(correction=0))
    assert critic.fit(STATES, TARGETS, torch.Generator())["explained_variance"] == pytest.approx(expected, rel=1e-4)


# --- the optimiser --------------------------------------------------------------------------------------------------


def reference_steps(theta: Tensor, gradients: list[Tensor], rate: float) -> Tensor:
    """The same gradients, already cut, by torch's Adam."""
    parameter = torch.nn.Parameter(theta.clone())
    adam = torch.optim.Adam([parameter], lr=rate, eps=1e-5)
    for gradient in gradients:
        parameter.grad = gradient
        adam.step()
    return parameter.detach()


def test_a_long_gradient_is_cut_to_the_norm_and_a_short_one_is_left_alone() -> None:
    theta = torch.tensor([1.0, 2.0])
    long, short = torch.tensor([30.0, 40.0]), torch.tensor([3e-6, 4e-6])
    optimiser = FlatAdam(theta.clone(), 0.1, max_gradient_norm=5.0)
    assert float(optimiser.descend(long)) == pytest.approx(50.0)
    assert float(optimiser.descend(short)) == pytest.approx(5e-6)
    expected = reference_steps(theta, [torch.tensor([3.0, 4.0]), short], 0.1)
    torch.testing.assert_close(optimiser.parameter.detach(), expected)
    alone = FlatAdam(theta.clone(), 0.1, max_gradient_norm=5.0)
    alone.descend(short)
    torch.testing.assert_close(alone.parameter.detach(), reference_steps(theta, [short], 0.1))


def test_every_row_is_cut_by_itself() -> None:
    theta = torch.zeros(2, 2)
    gradient = torch.tensor([[30.0, 40.0], [0.3, 0.4]])
    optimiser = FlatAdam(theta.clone(), 0.1, max_gradient_norm=5.0)
    optimiser.descend(gradient)
    cut = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    torch.testing.assert_close(optimiser.parameter.detach(), reference_steps(theta, [cut], 0.1))
    torch.testing.assert_close(optimiser.state_dict()["exp_avg"], 0.1 * cut, rtol=1e-5, atol=0.0)


def test_the_schedule_scales_the_step() -> None:
    half, theta = FlatAdam(torch.zeros(2), 0.1, 5.0), torch.zeros(2)
    half.descend(torch.ones(2), schedule=0.5)
    torch.testing.assert_close(half.parameter.detach(), reference_steps(theta, [torch.ones(2)], 0.05))
