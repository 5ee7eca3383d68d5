"""Layers as pure functions of named parameters, for networks that are built of several (``FlatNetwork.named``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from hmarl.trainer.networks.activation import Activation

Parameters = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
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


def linear_shapes(name: str, inputs: int, outputs: int) -> Shapes:
    """Of a layer for ``dense``."""
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm_shapes(name: str, width: int) -> Shapes:
    """Of a layer for ``norm``."""
    return {f"{name}.gain": (width,), f"{name}.bias": (width,)}


def dense(parameters: Parameters, name: str, x: Tensor) -> Tensor:
    """``linear`` with the parameters of a name."""
    return linear(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"])


def norm(parameters: Parameters, name: str, x: Tensor) -> Tensor:
    """``layer_norm`` with the parameters of a name."""
    return layer_norm(x, parameters[f"{name}.gain"], parameters[f"{name}.bias"])


@dataclass(frozen=True)
class DenseLayers:
    """Linear layers one after the other, as a part of a network.

    Attributes:
        sizes: width of the input, then of each layer's output.
        activation: what follows a layer that is not the network's last.
        normalise: layer normalisation of each layer's input.
        first: number of the first layer; parameters are named after the numbers.
    """

    sizes: Sequence[int]
    activation: Activation
    normalise: bool = False
    first: int = 0

    @property
    def shapes(self) -> Shapes:
        """Name and shape of every parameter, in the order in which they lie in the flat vector."""
        shapes: Shapes = {}
        for layer, (inputs, outputs) in enumerate(pairwise(self.sizes), self.first):
            if self.normalise:
                shapes |= {f"{layer}.norm_gain": (inputs,), f"{layer}.norm_bias": (inputs,)}
            shapes |= {f"{layer}.weight": (outputs, inputs), f"{layer}.bias": (outputs,)}
        return shapes

    @property
    def last(self) -> int:
        """Number of the last layer."""
        return self.first + len(self.sizes) - 2

    def activated(self, parameters: Parameters, x: Tensor) -> Tensor:
        """All layers, each with its activation: [..., sizes[0]] -> [..., sizes[-1]]."""
        return self._through(parameters, range(self.first, self.last + 1), x)

    def __call__(self, parameters: Parameters, x: Tensor) -> Tensor:
        """All layers, the last without an activation: [..., sizes[0]] -> [..., sizes[-1]]."""
        return self._layer(parameters, self.last, self._through(parameters, range(self.first, self.last), x))

    def _through(self, parameters: Parameters, numbers: range, x: Tensor) -> Tensor:
        for number in numbers:
            x = ACTIVATIONS[self.activation](self._layer(parameters, number, x))
        return x

    def _layer(self, parameters: Parameters, number: int, x: Tensor) -> Tensor:
        if self.normalise:
            x = layer_norm(x, parameters[f"{number}.norm_gain"], parameters[f"{number}.norm_bias"])
        return dense(parameters, str(number), x)


def initial_gain(activation: Activation) -> float:
    """Gain of the orthogonal initialisation of a layer that an activation follows."""
    if activation == "silu":
        return 1.0
    return torch.nn.init.calculate_gain("tanh" if activation == "tanh" else "relu")
