"""Networks as pure functions of (flat parameters, input).

The parameters of one network are one vector ``theta`` [P]; those of the N agents of a group are one matrix [N, P]. So a
single agent's parameters are a row (what a trust-region step, an optimiser or a checkpoint wants), and the whole
group acts in one batched matrix product (what a rollout wants), without copying between the two.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from hmarl.trainer.networks.activation import Activation

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


class FlatNetwork(ABC):
    """A network whose parameters are one vector ``theta`` [P]."""

    @property
    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter, in the order in which they lie in the flat vector."""

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def named(self, theta: Tensor) -> dict[str, Tensor]:
        """Views of the flat parameters [..., P] under their names, shaped [..., *shape]."""
        pieces = theta.split([math.prod(shape) for shape in self.shapes.values()], dim=-1)
        return {
            name: piece.unflatten(-1, shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }

    def initialise(self, generator: torch.Generator) -> Tensor:
        """Fresh parameters [P]: orthogonal weights, gains of one, all else zero."""
        parts = []
        for name, shape in self.shapes.items():
            if name.endswith("weight"):
                weight = torch.empty(shape)
                torch.nn.init.orthogonal_(weight, gain=self._gain(name), generator=generator)
                parts.append(weight.flatten())
            else:
                parts.append(torch.full(shape, 1.0 if name.endswith("gain") else 0.0).flatten())
        return torch.cat(parts)

    @abstractmethod
    def _gain(self, name: str) -> float:
        """Gain of one weight's orthogonal initialisation."""


@dataclass(frozen=True)
class Mlp(FlatNetwork):
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
        return self._layer_shapes([self.input_size, *self.hidden_sizes, self.output_size])

    def _layer_shapes(self, sizes: Sequence[int], first: int = 0) -> dict[str, tuple[int, ...]]:
        """Of the layers ``first``, ``first`` + 1, … from width ``sizes[0]`` to ``sizes[1]``, to ``sizes[2]``, … ."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (inputs, outputs) in enumerate(pairwise(sizes), first):
            if self.normalise_layers:
                shapes |= {f"{layer}.norm_gain": (inputs,), f"{layer}.norm_bias": (inputs,)}
            shapes |= {f"{layer}.weight": (outputs, inputs), f"{layer}.bias": (outputs,)}
        return shapes

    @property
    def memory_size(self) -> int:
        """H, the width of what the network remembers from step to step; 0 without memory."""
        return 0

    @property
    def last_layer(self) -> int:
        """Number of the output layer."""
        return len(self.hidden_sizes)

    def _gain(self, name: str) -> float:
        """Gain of one weight's orthogonal initialisation."""
        if name == f"{self.last_layer}.weight":
            return self.output_gain
        if name.startswith("memory") or self.activation == "silu":
            return 1.0
        return torch.nn.init.calculate_gain("tanh" if self.activation == "tanh" else "relu")

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
        return self.output(parameters, self.hidden(parameters, x))

    def hidden(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        """The hidden layers: [..., input_size] -> [..., hidden_sizes[-1]]."""
        return self._activated(parameters, range(len(self.hidden_sizes)), x)

    def _activated(self, parameters: dict[str, Tensor], layers: range, x: Tensor) -> Tensor:
        for layer in layers:
            x = ACTIVATIONS[self.activation](self._layer(parameters, layer, x))
        return x

    def output(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        """The last layer, which has no activation."""
        return self._layer(parameters, self.last_layer, x)

    def _layer(self, parameters: dict[str, Tensor], layer: int, x: Tensor) -> Tensor:
        if self.normalise_layers:
            x = layer_norm(x, parameters[f"{layer}.norm_gain"], parameters[f"{layer}.norm_bias"])
        return linear(x, parameters[f"{layer}.weight"], parameters[f"{layer}.bias"])


@dataclass(frozen=True)
class Memory:
    """How the rows of a batch follow one another in time, for networks that remember.

    The M = n·L·B rows lie as [n, L, B]: n·B chunks of L steps each, through which gradients flow back. A rollout of T
    steps in B environments, flattened to M = T·B rows, is n = T / L chunks per environment.

    Attributes:
        initial: [..., n·B, H] the memory with which each chunk starts.
        kept: [n, L, B, 1] float32, 0 where a row begins an episode (the memory is then zero before it), else 1.
    """

    initial: Tensor
    kept: Tensor

    @property
    def chunks(self) -> int:
        """n·B."""
        return self.kept.shape[0] * self.kept.shape[2]

    def rows(self, chosen: Tensor) -> Tensor:
        """[L·c] int64: the rows of the chunks ``chosen`` [c], in the order in which ``take`` describes them."""
        _, length, batch, _ = self.kept.shape
        first = (chosen // batch) * (length * batch) + chosen % batch
        return (first + batch * torch.arange(length, device=chosen.device).unsqueeze(-1)).flatten()

    def take(self, chosen: Tensor) -> Memory:
        """Of the chunks ``chosen`` [c] alone, as [1, L, c]."""
        kept = self.kept.transpose(1, 2).flatten(0, 1)[chosen]
        return Memory(self.initial[..., chosen, :], kept.transpose(0, 1).unsqueeze(0))


@dataclass(frozen=True)
class RecurrentNetwork(Mlp):
    """Hidden layers → gated recurrent unit → output layer.

    Attributes:
        memory: H, the width of the recurrent state.

    Source: Cho et al. 2014, in the form of ``torch.nn.GRU``: r, z = σ(W x + U h), n = tanh(W x + r ⊙ U h),
    h' = (1 − z) ⊙ n + z ⊙ h.
    """

    memory: int = 64

    @property
    def memory_size(self) -> int:
        """H."""
        return self.memory

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """As an ``Mlp``'s, with the recurrent unit before the last layer."""
        seen = [self.input_size, *self.hidden_sizes]
        shapes = self._layer_shapes(seen) | {
            "memory.input_weight": (3 * self.memory, seen[-1]),
            "memory.input_bias": (3 * self.memory,),
            "memory.weight": (3 * self.memory, self.memory),
            "memory.bias": (3 * self.memory,),
        }
        return shapes | self.output_shapes()

    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter after the recurrent unit."""
        return self._layer_shapes([self.memory, self.output_size], first=len(self.hidden_sizes))

    def apply(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        """Not for a network with memory.

        Raises:
            TypeError: always; ``step`` and ``sequence`` take the memory.
        """
        raise TypeError("a recurrent network needs its memory: use step or sequence")

    def step(self, parameters: dict[str, Tensor], x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """One step of many rows.

        Args:
            parameters: of one network, or of a stack of N.
            x: [M, input_size], or [N, M, input_size].
            memory: [M, H], or [N, M, H].

        Returns:
            The output [..., output_size] and the next memory [..., H].
        """
        following = self._advance(parameters, self._gates(parameters, x), memory)
        return self.output(parameters, following), following

    def sequence(self, parameters: dict[str, Tensor], x: Tensor, memory: Memory) -> Tensor:
        """Outputs at all rows of a batch, each chunk run through from its start.

        Args:
            parameters: of one network, or of a stack of N.
            x: [M, input_size], or [N, M, input_size], rows ordered as ``memory`` says.
            memory: the chunks.

        Returns:
            [M, output_size], or [N, M, output_size].
        """
        return self.output(parameters, self.remembered(parameters, x, memory))

    def remembered(self, parameters: dict[str, Tensor], x: Tensor, memory: Memory) -> Tensor:
        """[M, H], or [N, M, H]: the memory after each of the rows of ``sequence``."""
        chunks, length, batch, _ = memory.kept.shape
        lead = x.shape[:-2]
        # Unbound at once: the gradient of an indexed step would be an array of all steps, for every step.
        steps = self._gates(parameters, x).view(*lead, chunks, length, batch, -1).unbind(-3)
        held, remembered = memory.initial, []
        for t, gates in enumerate(steps):
            held = held * memory.kept[:, t].reshape(chunks * batch, 1)
            held = self._advance(parameters, gates.flatten(-3, -2), held)
            remembered.append(held.view(*lead, chunks, batch, self.memory))
        return torch.stack(remembered, dim=-3).flatten(-4, -2)

    def _gates(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        """[..., 3 H] what the input contributes to the gates, of all rows at once."""
        hidden = self.hidden(parameters, x)
        return linear(hidden, parameters["memory.input_weight"], parameters["memory.input_bias"])

    @staticmethod
    def _advance(parameters: dict[str, Tensor], gates: Tensor, memory: Tensor) -> Tensor:
        """[..., H] the memory one step later."""
        recurrent = linear(memory, parameters["memory.weight"], parameters["memory.bias"])
        reset, update, candidate = gates.chunk(3, dim=-1)
        recurrent_reset, recurrent_update, recurrent_candidate = recurrent.chunk(3, dim=-1)
        keep = torch.sigmoid(update + recurrent_update)
        new = torch.tanh(candidate + torch.sigmoid(reset + recurrent_reset) * recurrent_candidate)
        return new + keep * (memory - new)
