"""Networks as pure functions of (flat parameters, input).

The parameters of one network are one vector ``theta`` [P]; those of the N agents of a group are one matrix [N, P]. So a
single agent's parameters are a row (what a trust-region step, an optimiser or a checkpoint wants), and the whole
group acts in one batched matrix product (what a rollout wants), without copying between the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Activation = Literal["relu", "tanh", "elu", "silu"]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "elu": functional.elu,
    "silu": functional.silu,
}


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x Wᵀ + b`` of one network ([..., in], [out, in], [out]) or N ([N, M, in], [N, out, in], [N, out])."""
    if weight.dim() == 2:
        return functional.linear(x, weight, bias)
    return torch.baddbmm(bias.unsqueeze(-2), x, weight.mT)


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Layer normalisation with the parameters of one network ([in]) or of a stack ([N, in])."""
    if gain.dim() == 1:
        return functional.layer_norm(x, gain.shape, gain, bias)
    return functional.layer_norm(x, gain.shape[-1:]) * gain.unsqueeze(-2) + bias.unsqueeze(-2)


@dataclass(frozen=True)
class Mlp:
    """A multi-layer perceptron, ``input_size`` → ``hidden_sizes`` → ``output_size``.

    Attributes:
        activation: after every hidden layer.
        output_gain: gain of the last layer's orthogonal initialisation; small values start a policy near uniform.
        normalise_layers: layer normalisation of the input and after each hidden layer (as HARL's ``MLPBase`` does).
    """

    input_size: int
    hidden_sizes: Sequence[int]
    output_size: int
    activation: Activation = "relu"
    output_gain: float = 0.01
    normalise_layers: bool = False

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter, in the order in which they lie in the flat vector."""
        sizes = [self.input_size, *self.hidden_sizes, self.output_size]
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(len(sizes) - 1):
            if self.normalise_layers:
                shapes[f"{layer}.norm_gain"] = (sizes[layer],)
                shapes[f"{layer}.norm_bias"] = (sizes[layer],)
            shapes[f"{layer}.weight"] = (sizes[layer + 1], sizes[layer])
            shapes[f"{layer}.bias"] = (sizes[layer + 1],)
        return shapes

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def initialise(self, generator: torch.Generator) -> Tensor:
        """Fresh parameters [P]: orthogonal weights, zero biases."""
        last = f"{len(self.hidden_sizes)}.weight"
        hidden_gain = 1.0 if self.activation == "silu" else torch.nn.init.calculate_gain(_gain_name(self.activation))
        parts = []
        for name, shape in self.shapes.items():
            if name.endswith("weight"):
                weight = torch.empty(shape)
                gain = self.output_gain if name == last else hidden_gain
                torch.nn.init.orthogonal_(weight, gain=gain, generator=generator)
                parts.append(weight.flatten())
            else:
                parts.append(torch.full(shape, 1.0 if name.endswith("norm_gain") else 0.0))
        return torch.cat(parts)

    def named(self, theta: Tensor) -> dict[str, Tensor]:
        """Views of the flat parameters [..., P] under their names, shaped [..., *shape]."""
        pieces = theta.split([math.prod(shape) for shape in self.shapes.values()], dim=-1)
        return {
            name: piece.unflatten(-1, shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """Evaluate.

        Args:
            theta: [P], or [N, P] for a stack of N networks.
            x: [..., input_size] for one network; [N, M, input_size] for a stack.

        Returns:
            [..., output_size] or [N, M, output_size].
        """
        return self.apply(self.named(theta), x)

    def apply(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        """Evaluate with parameters that ``named`` returned (saves the slicing when they do not change)."""
        activation = _ACTIVATIONS[self.activation]
        last = len(self.hidden_sizes)
        for layer in range(last + 1):
            if self.normalise_layers:
                x = layer_norm(x, parameters[f"{layer}.norm_gain"], parameters[f"{layer}.norm_bias"])
            x = linear(x, parameters[f"{layer}.weight"], parameters[f"{layer}.bias"])
            if layer < last:
                x = activation(x)
        return x


def _gain_name(activation: Activation) -> Literal["relu", "tanh", "selu"]:
    """The name under which torch knows the activation's recommended gain."""
    return "tanh" if activation == "tanh" else "relu"
