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
    generator = torch.Generator().manual_seed(3)
    return Critic(2, checked, generator, CPU) if outputs == 1 else Critic(2, checked, generator, CPU, outputs)


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

    def recording(theta: Tensor, targets: Any) -> Tensor:
        seen.append(targets.wanted.clone())
        return inner(theta, targets)

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


def test_a_fresh_critic_answers_in_units_of_one() -> None:
    """Orthogonal rows of length 1 in the output layer (4 weights, 1 bias), one value for each state."""
    critic = new_critic(activation="tanh")
    assert float(critic.theta[-5:-1].norm()) == pytest.approx(1.0, rel=1e-5)
    assert critic.values(STATES).shape == (4,)
    assert critic.values(STATES.view(2, 2, 2)).shape == (2, 2)
    hidden = torch.tanh(STATES @ critic.theta[:8].view(4, 2).T)
    torch.testing.assert_close(critic.values(STATES), hidden @ critic.theta[-5:-1])


def test_a_critic_of_several_outputs_keeps_their_dimension() -> None:
    critic = new_critic(outputs=3, normalise_values=False, critic_loss="mse")
    assert critic.values(STATES).shape == (4, 3)
    chosen = torch.tensor([0, 2, 1, 2])
    targets = critic.values(STATES)[range(4), chosen] + torch.tensor([1.0, -1.0, 1.0, -1.0])
    explained = 1.0 - 1.0 / float(targets.var(correction=0))
    # Every target is 1 beside the output that was chosen, and a pass in any order finds that.
    metrics = critic.fit(STATES, targets, torch.Generator().manual_seed(1), chosen=chosen)
    assert metrics == pytest.approx({"critic_loss": 1.0, "explained_variance": explained}, rel=1e-4)


def test_normalised_layers_do_not_see_how_large_a_state_is() -> None:
    plain, normalised = new_critic(), new_critic(normalise_layers=True)
    torch.testing.assert_close(normalised.values(100 * STATES), normalised.values(STATES), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(plain.values(100 * STATES), plain.values(STATES), rtol=1e-3, atol=1e-3)


def test_only_the_generator_decides_the_first_parameters() -> None:
    fresh = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        fresh.append(new_critic().theta)
    assert torch.equal(*fresh)


def test_a_step_of_the_critic_is_that_long_and_its_gradient_no_longer() -> None:
    """Adam's first step is the learning rate for every parameter with a gradient; 1/10 of it is the first moment."""
    moved = []
    for schedule in ({}, {"schedule": 0.5}):
        critic = new_critic(critic_learning_rate=0.01, max_gradient_norm=0.5, normalise_values=False, critic_loss="mse")
        before = critic.theta.clone()
        critic.fit(STATES, TARGETS, torch.Generator(), **schedule)
        moved.append((critic.theta - before).abs().max().item())
        assert float(critic.optimiser.state_dict()["exp_avg"].norm()) == pytest.approx(0.05, rel=1e-4)
    assert moved == pytest.approx([0.01, 0.005], rel=1e-2)


def test_a_restored_critic_goes_on_as_if_it_had_never_stopped() -> None:
    first, second = new_critic(critic_minibatches=2), new_critic(critic_minibatches=2)
    first.fit(STATES, TARGETS, torch.Generator().manual_seed(5))
    second.theta.zero_()
    second.load_state_dict({name: {k: v.clone() for k, v in part.items()} for name, part in first.state_dict().items()})
    for critic in (first, second):
        critic.fit(STATES, 2.0 * TARGETS, torch.Generator().manual_seed(6))
    assert torch.equal(first.theta, second.theta)
    assert torch.equal(first.values(STATES), second.values(STATES))
    assert second.optimiser.state_dict()["step"] == 4


def test_a_critic_is_restored_without_an_optimiser_to_judge_with() -> None:
    first, second = new_critic(), new_critic()
    first.fit(STATES, TARGETS, torch.Generator())
    state = first.state_dict()
    del state["optimiser"]
    second.load_state_dict(state)
    assert torch.equal(first.values(STATES), second.values(STATES))
    assert second.optimiser.state_dict() == {}


def test_only_the_generator_decides_the_order_of_the_minibatches() -> None:
    fitted = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        critic = new_critic(critic_epochs=3, critic_minibatches=4)
        critic.fit(STATES, TARGETS, torch.Generator().manual_seed(7))
        fitted.append(critic.theta)
    assert torch.equal(*fitted)


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
    for gradient in (short, 0.1 * short, torch.zeros(2)):
        alone = FlatAdam(theta.clone(), 0.1, max_gradient_norm=5.0)
        alone.descend(gradient)
        torch.testing.assert_close(alone.parameter.detach(), reference_steps(theta, [gradient], 0.1))


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


def test_a_step_descends_the_loss() -> None:
    """Of ½ ‖θ‖² the gradient is θ, whose norm is told."""
    theta = torch.tensor([3.0, 4.0])
    for rate, schedule in ((0.1, {}), (0.05, {"schedule": 0.5})):
        optimiser = FlatAdam(theta.clone(), 0.1, 10.0)
        norm = optimiser.step(0.5 * optimiser.parameter.square().sum(), **schedule)
        assert float(norm) == pytest.approx(5.0)
        torch.testing.assert_close(optimiser.parameter.detach(), reference_steps(theta, [theta], rate))


def test_the_norm_that_is_told_is_the_largest() -> None:
    optimiser = FlatAdam(torch.zeros(2, 2), 0.1, 5.0)
    assert float(optimiser.descend(torch.tensor([[3.0, 4.0], [30.0, 40.0]]))) == pytest.approx(50.0)


def test_a_restored_optimiser_goes_on_as_if_it_had_never_stopped() -> None:
    gradient = torch.tensor([1.0, -2.0])
    first = FlatAdam(torch.zeros(2), 0.1, 5.0)
    assert first.state_dict() == {}
    first.descend(gradient)
    second = FlatAdam(first.parameter.detach().clone(), 0.1, 5.0)
    kept = first.state_dict()
    second.load_state_dict(kept)
    for optimiser in (first, second):
        optimiser.descend(-gradient)
    assert torch.equal(first.parameter, second.parameter)
    assert second.state_dict()["step"] == 2
