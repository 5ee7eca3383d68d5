"""Networks as functions of flat parameters: stacked, single and as plain torch modules they compute the same."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import pytest
import torch
from gymnasium import spaces
from torch import nn

from hmarl.trainer.networks.distributions import ActionHead, Categorical
from hmarl.trainer.networks.flat import Activation, Mlp
from hmarl.trainer.networks.policies import GroupPolicy
from hmarl.trainer.networks.settings import AlgorithmSettings

pytestmark = pytest.mark.usefixtures("single_thread")
MODULES: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "elu": nn.ELU, "silu": nn.SiLU}


def random_theta(mlp: Mlp, rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, mlp.size, generator=torch.Generator().manual_seed(seed))


def as_sequential(mlp: Mlp, theta: torch.Tensor) -> nn.Sequential:
    """The same network made of torch's own layers."""
    sizes = [mlp.input_size, *mlp.hidden_sizes, mlp.output_size]
    layers: list[nn.Module] = []
    parameters = mlp.named(theta)
    for layer, (size, following) in enumerate(pairwise(sizes)):
        if mlp.normalise_layers:
            norm = nn.LayerNorm(size)
            norm.load_state_dict({"weight": parameters[f"{layer}.norm_gain"], "bias": parameters[f"{layer}.norm_bias"]})
            layers.append(norm)
        linear = nn.Linear(size, following)
        linear.load_state_dict({"weight": parameters[f"{layer}.weight"], "bias": parameters[f"{layer}.bias"]})
        layers.append(linear)
        if layer < len(sizes) - 2:
            layers.append(MODULES[mlp.activation]())
    return nn.Sequential(*layers)


@pytest.mark.parametrize("normalise_layers", [False, True])
@pytest.mark.parametrize("activation", get_args(Activation))
def test_stacked_single_and_sequential_agree(activation: Activation, normalise_layers: bool) -> None:
    mlp = Mlp(5, (7, 6), 4, activation, normalise_layers=normalise_layers)
    theta = random_theta(mlp, 3)
    x = torch.randn(3, 11, 5, generator=torch.Generator().manual_seed(1))
    stacked = mlp(theta, x)
    assert stacked.shape == (3, 11, 4)
    for row in range(3):
        torch.testing.assert_close(stacked[row], mlp(theta[row], x[row]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mlp(theta[row], x[row]), as_sequential(mlp, theta[row])(x[row]))


def test_a_network_without_hidden_layers_is_linear() -> None:
    mlp = Mlp(2, (), 1)
    assert mlp.shapes == {"0.weight": (1, 2), "0.bias": (1,)}
    assert mlp(torch.tensor([2.0, 3.0, 0.5]), torch.tensor([[1.0, 10.0]])).item() == 32.5


def test_named_parameters_are_views_of_the_flat_ones() -> None:
    mlp = Mlp(3, (4,), 2, normalise_layers=True)
    theta = mlp.initialise(torch.Generator().manual_seed(0))
    assert theta.shape == (mlp.size,)
    views = mlp.named(theta)
    assert sum(view.numel() for view in views.values()) == mlp.size
    for view in views.values():
        assert view.untyped_storage().data_ptr() == theta.untyped_storage().data_ptr()
    views["1.bias"].fill_(42.0)
    assert (theta == 42.0).sum() == 2


def test_gradients_of_a_stack_stay_in_their_rows() -> None:
    mlp = Mlp(3, (4,), 2)
    theta = random_theta(mlp, 3).requires_grad_(True)
    (gradient,) = torch.autograd.grad(mlp(theta, torch.ones(3, 5, 3))[1].square().sum(), theta)
    assert gradient[[0, 2]].eq(0).all()
    assert gradient[1].ne(0).any()


def test_initialisation_is_orthogonal_with_the_asked_gains_and_seeded() -> None:
    mlp = Mlp(8, (6,), 3, "tanh", output_gain=0.01)
    theta = mlp.initialise(torch.Generator().manual_seed(5))
    hidden, output = mlp.named(theta)["0.weight"], mlp.named(theta)["1.weight"]
    torch.testing.assert_close(hidden @ hidden.T, torch.eye(6) * (5 / 3) ** 2, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output @ output.T, torch.eye(3) * 1e-4, atol=1e-8, rtol=1e-4)
    assert mlp.named(theta)["0.bias"].eq(0).all()
    assert torch.equal(theta, mlp.initialise(torch.Generator().manual_seed(5)))
    assert not torch.equal(theta, mlp.initialise(torch.Generator().manual_seed(6)))


@pytest.mark.parametrize("shared", [False, True])
def test_group_policy_acts_for_all_as_for_each(shared: bool) -> None:
    """Also with an instruction appended to the observation, and the identity that shared parameters need."""
    settings = AlgorithmSettings(hidden_sizes=(6,))
    head, generator = ActionHead(spaces.Discrete(4)), torch.Generator().manual_seed(0)
    policy = GroupPolicy.create(3, 5 + 2, head, settings, generator, shared=shared)
    assert policy.theta.shape[0] == (1 if shared else 3)
    policy.theta.normal_(generator=generator)
    features = torch.randn(9, 3, 5, generator=generator)
    context = torch.eye(2)[torch.arange(9) % 2]
    inputs = policy.inputs(features, context)
    assert inputs.shape == (9, 3, 5 + 2 + (3 if shared else 0))
    assert torch.equal(inputs[4, 1, :7], torch.cat([features[4, 1], context[4]]))
    if shared:
        assert inputs[4, 1, 7:].tolist() == [0.0, 1.0, 0.0]
    together = policy.all_distributions(inputs.transpose(0, 1))
    assert isinstance(together, Categorical)
    for member in range(3):
        alone = policy.distribution(policy.row(member), inputs[:, member])
        assert isinstance(alone, Categorical)
        torch.testing.assert_close(together.log_probs[member], alone.log_probs, atol=1e-5, rtol=1e-5)
    policy.row(0).zero_()
    assert policy.theta[0].eq(0).all(), "a row is a view of the group's parameters"


def test_own_hidden_sizes_take_precedence_even_when_there_are_none() -> None:
    settings, head = AlgorithmSettings(hidden_sizes=(6,)), ActionHead(spaces.Discrete(4))
    generator = torch.Generator().manual_seed(0)
    assert GroupPolicy.create(1, 5, head, settings, generator).network.hidden_sizes == (6,)
    assert GroupPolicy.create(1, 5, head, settings, generator, hidden_sizes=()).network.hidden_sizes == ()


def test_shared_parameters_of_a_single_agent_need_no_identity() -> None:
    settings = AlgorithmSettings(hidden_sizes=(6,))
    head = ActionHead(spaces.Discrete(3))
    policy = GroupPolicy.create(1, 5, head, settings, torch.Generator().manual_seed(0), shared=True)
    assert policy.inputs(torch.zeros(2, 1, 5)).shape[-1] == policy.network.input_size == 5
