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
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from hmarl.trainer.networks.activation import Activation
from hmarl.trainer.networks.images import ImageEncoder
from hmarl.trainer.networks.layers import DenseLayers, Parameters, Shapes, dense, initial_gain, linear

# What a layer makes of so many rows is still in the processor's cache when the next one reads it, and on the gradient's
# way back. Of more rows at a time each layer would wait for the memory.
ROWS = 4096


def in_parts(evaluate: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``evaluate`` on rows [..., M, in] that do not depend on one another: at most ``ROWS`` at a time on the CPU."""
    if x.dim() < 2 or x.shape[-2] <= ROWS or x.device.type != "cpu":
        return evaluate(x)
    return torch.cat([evaluate(rows) for rows in x.split(ROWS, dim=-2)], dim=-2)


class FlatNetwork(ABC):
    """A network whose parameters are one vector ``theta`` [P]."""

    @property
    @abstractmethod
    def shapes(self) -> Shapes:
        """Name and shape of every parameter, in the order in which they lie in the flat vector."""

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def named(self, theta: Tensor) -> Parameters:
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
    """A multi-layer perceptron, ``input_size`` → (an encoder of pictures →) ``hidden_sizes`` → ``output_size``.

    Attributes:
        activation: after every hidden layer.
        output_gain: gain of the last layer's orthogonal initialisation; small values start a policy near uniform.
        normalise_layers: layer normalisation of the input and after each hidden layer (as HARL's ``MLPBase`` does).
        encoder: the first layers, where a picture is seen.
    """

    input_size: int
    hidden_sizes: Sequence[int]
    output_size: int
    activation: Activation = "relu"
    output_gain: float = 0.01
    normalise_layers: bool = False
    encoder: ImageEncoder | None = None

    @cached_property
    def layers(self) -> DenseLayers:
        """All of them after the encoder."""
        sizes = [_encoded_size(self.encoder, self.input_size), *self.hidden_sizes, self.output_size]
        return DenseLayers(sizes, self.activation, self.normalise_layers)

    @cached_property
    def shapes(self) -> Shapes:
        """Name and shape of every parameter, in the order in which they lie in the flat vector."""
        return _encoder_shapes(self.encoder) | self.layers.shapes

    @property
    def memory_size(self) -> int:
        """H, the width of what the network remembers from step to step: 0."""
        return 0

    def _gain(self, name: str) -> float:
        return self.output_gain if name == f"{self.layers.last}.weight" else initial_gain(self.activation)

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """Evaluate.

        Args:
            theta: [P], or [N, P] for a stack of N networks.
            x: [..., input_size] for one network; [N, M, input_size] for a stack.

        Returns:
            [..., output_size] or [N, M, output_size].
        """
        parameters = self.named(theta)
        return in_parts(lambda rows: self.apply(parameters, rows), x)

    def apply(self, parameters: Parameters, x: Tensor) -> Tensor:
        """Evaluate with parameters that ``named`` returned (saves the slicing when they do not change)."""
        return self.layers(parameters, _encoded(self.encoder, parameters, x))


def _encoded(encoder: ImageEncoder | None, parameters: Parameters, x: Tensor) -> Tensor:
    return x if encoder is None else encoder(parameters, x)


def _encoded_size(encoder: ImageEncoder | None, input_size: int) -> int:
    return input_size if encoder is None else encoder.width(input_size)


def _encoder_shapes(encoder: ImageEncoder | None) -> Shapes:
    return {} if encoder is None else encoder.shapes


@dataclass(frozen=True)
class Memory:
    """How the rows of a batch follow one another in time, for networks that remember.

    The M = n·L·B rows lie as [n, L, B]: n·B chunks of L steps each, through which gradients flow back. A rollout of T
    steps in B environments, flattened to M = T·B rows, is n = T / L chunks per environment.

    Attributes:
        initial: [..., n·B, H] the memory with which each chunk starts.
        kept: [..., n, L, B, 1] float32, 0 where a row begins an episode, or its agent was restarted (the memory is then
            zero before it), else 1.
        there: [..., n, L, B, 1] bool, False where an agent is away: the next row has the memory that this one had.
            None: it is always there.
    """

    initial: Tensor
    kept: Tensor
    there: Tensor | None = None

    @property
    def chunks(self) -> int:
        """n·B."""
        return self.kept.shape[-4] * self.kept.shape[-2]

    def rows(self, chosen: Tensor) -> Tensor:
        """[L·c] int64: the rows of the chunks ``chosen`` [c], in the order in which ``take`` describes them."""
        length, batch = self.kept.shape[-3:-1]
        first = (chosen // batch) * (length * batch) + chosen % batch
        return (first + batch * torch.arange(length, device=chosen.device).unsqueeze(-1)).flatten()

    def take(self, chosen: Tensor) -> Memory:
        """Of the chunks ``chosen`` [c] alone, as [1, L, c]."""

        def pick(x: Tensor) -> Tensor:
            return x.transpose(-3, -2).flatten(-4, -3)[..., chosen, :, :].transpose(-3, -2).unsqueeze(-4)

        there = None if self.there is None else pick(self.there)
        return Memory(self.initial[..., chosen, :], pick(self.kept), there)


class GoalShape(Protocol):
    """What a recurrent network predicts from its memory, and decides by."""

    @property
    def size(self) -> int:
        """G, its width."""
        ...

    @property
    def discrete(self) -> bool:
        """Whether it is one of G, so that logits are predicted."""
        ...


@dataclass(frozen=True)
class RecurrentNetwork(FlatNetwork):
    """(Encoder of pictures →) hidden layers → gated recurrent unit → (predicted goal →) hidden layers → output layer.

    Attributes:
        hidden_sizes: before the recurrent unit.
        activation, output_gain, normalise_layers, encoder: as an ``Mlp``'s.
        memory: H, the width of the recurrent state.
        decision_sizes: hidden layers between the memory and the output layer.
        goal: what is predicted from the memory and seen beside it by the layers after it; None leaves it out.

    Source: Cho et al. 2014, in the form of ``torch.nn.GRU``: r, z = σ(W x + U h), n = tanh(W x + r ⊙ U h),
    h' = (1 − z) ⊙ n + z ⊙ h.
    """

    input_size: int
    hidden_sizes: Sequence[int]
    output_size: int
    activation: Activation = "relu"
    output_gain: float = 0.01
    normalise_layers: bool = False
    memory: int = 64
    decision_sizes: Sequence[int] = ()
    goal: GoalShape | None = None
    encoder: ImageEncoder | None = None

    @property
    def memory_size(self) -> int:
        """H."""
        return self.memory

    @cached_property
    def before(self) -> DenseLayers:
        """The layers before the recurrent unit."""
        sizes = [_encoded_size(self.encoder, self.input_size), *self.hidden_sizes]
        return DenseLayers(sizes, self.activation, self.normalise_layers)

    @cached_property
    def decision(self) -> DenseLayers:
        """The layers after it, numbered on."""
        sizes = [self.memory + (self.goal.size if self.goal else 0), *self.decision_sizes, self.output_size]
        return DenseLayers(sizes, self.activation, self.normalise_layers, first=len(self.hidden_sizes))

    @cached_property
    def shapes(self) -> Shapes:
        """Name and shape of every parameter, in the order in which they lie in the flat vector."""
        shapes = _encoder_shapes(self.encoder) | self.before.shapes
        shapes |= {
            "memory.input_weight": (3 * self.memory, self.before.sizes[-1]),
            "memory.input_bias": (3 * self.memory,),
            "memory.weight": (3 * self.memory, self.memory),
            "memory.bias": (3 * self.memory,),
        }
        if self.goal:
            shapes |= {"goal.weight": (self.goal.size, self.memory), "goal.bias": (self.goal.size,)}
        return shapes | self.decision.shapes

    def _gain(self, name: str) -> float:
        if name.startswith("memory"):
            return 1.0
        return self.output_gain if name == f"{self.decision.last}.weight" else initial_gain(self.activation)

    def output(self, parameters: Parameters, remembered: Tensor) -> Tensor:
        """[..., output_size] from what is remembered [..., H]."""
        if self.goal is not None:
            goal = self.predicted_goal(parameters, remembered)
            remembered = torch.cat([remembered, goal.softmax(-1) if self.goal.discrete else goal], dim=-1)
        return self.decision(parameters, remembered)

    def predicted_goal(self, parameters: Parameters, remembered: Tensor) -> Tensor:
        """[..., G] goals, or logits of discrete ones, from what is remembered [..., H]."""
        return dense(parameters, "goal", remembered)

    def step(
        self, parameters: Parameters, x: Tensor, memory: Tensor, there: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step of many rows.

        Args:
            parameters: of one network, or of a stack of N.
            x: [M, input_size], or [N, M, input_size].
            memory: [M, H], or [N, M, H].
            there: [M] or [N, M] bool, False where an agent is away: its memory stays as it is. None: all are there.

        Returns:
            The output [..., output_size] and the next memory [..., H].
        """
        following = self._advance(parameters, self._gates(parameters, x), memory)
        output = self.output(parameters, following)
        return output, following if there is None else torch.where(there.unsqueeze(-1), following, memory)

    def sequence(self, parameters: Parameters, x: Tensor, memory: Memory) -> Tensor:
        """Outputs at all rows of a batch, each chunk run through from its start.

        Args:
            parameters: of one network, or of a stack of N.
            x: [M, input_size], or [N, M, input_size], rows ordered as ``memory`` says.
            memory: the chunks.

        Returns:
            [M, output_size], or [N, M, output_size].
        """
        return self.output(parameters, self.remembered(parameters, x, memory))

    def remembered(self, parameters: Parameters, x: Tensor, memory: Memory) -> Tensor:
        """[M, H], or [N, M, H]: the memory by which each of the rows of ``sequence`` is decided."""
        return self._through(parameters, x, memory)[0]

    def carried(self, parameters: Parameters, x: Tensor, memory: Memory) -> Tensor:
        """[M, H], or [N, M, H]: the memory with which each row of ``sequence`` is followed by the next one."""
        return self._through(parameters, x, memory)[1]

    def _through(self, parameters: Parameters, x: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """What ``remembered`` and ``carried`` return; they differ where an agent is away."""
        chunks, length, batch, _ = memory.kept.shape[-4:]
        lead = x.shape[:-2]
        # Unbound at once: the gradient of an indexed step would be an array of all steps, for every step.
        steps = self._gates(parameters, x).view(*lead, chunks, length, batch, -1).unbind(-3)
        held, remembered, carried = memory.initial, [], []
        for t, gates in enumerate(steps):
            held = held * memory.kept[..., t, :, :].flatten(-3, -2)
            after = self._advance(parameters, gates.flatten(-3, -2), held)
            remembered.append(after.view(*lead, chunks, batch, self.memory))
            there = memory.there
            held = after if there is None else torch.where(there[..., t, :, :].flatten(-3, -2), after, held)
            carried.append(held.view(*lead, chunks, batch, self.memory))
        together = torch.stack(remembered, dim=-3).flatten(-4, -2)
        return together, together if memory.there is None else torch.stack(carried, dim=-3).flatten(-4, -2)

    def _gates(self, parameters: Parameters, x: Tensor) -> Tensor:
        """[..., 3 H] what the input contributes to the gates, of all rows at once."""
        hidden = self.before.activated(parameters, _encoded(self.encoder, parameters, x))
        return linear(hidden, parameters["memory.input_weight"], parameters["memory.input_bias"])

    @staticmethod
    def _advance(parameters: Parameters, gates: Tensor, memory: Tensor) -> Tensor:
        """[..., H] the memory one step later."""
        recurrent = linear(memory, parameters["memory.weight"], parameters["memory.bias"])
        reset, update, candidate = gates.chunk(3, dim=-1)
        recurrent_reset, recurrent_update, recurrent_candidate = recurrent.chunk(3, dim=-1)
        keep = torch.sigmoid(update + recurrent_update)
        new = torch.tanh(candidate + torch.sigmoid(reset + recurrent_reset) * recurrent_candidate)
        return new + keep * (memory - new)
