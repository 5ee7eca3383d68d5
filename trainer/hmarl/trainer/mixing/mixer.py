"""Mixing of the agents' utilities into the team's value, such that each agent's best action is the team's.

Source: Rashid et al. 2018, "QMIX: Monotonic Value Function Factorisation for Deep Multi-Agent Reinforcement Learning",
section 4; Sunehag et al. 2018, "Value-Decomposition Networks For Cooperative Multi-Agent Learning", section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from hmarl.trainer.networks.activation import Activation
from hmarl.trainer.networks.flat import Mlp


class Mixer(Protocol):
    """Q_tot of all agents' utilities: it never falls when one of them rises."""

    def initialise(self, generator: torch.Generator) -> Tensor | None:
        """Fresh parameters [P], None where it has none."""
        ...

    def __call__(self, theta: Tensor | None, utilities: Tensor, context: Tensor) -> Tensor:
        """[...] the team's value.

        Args:
            theta: [P], or None.
            utilities: [..., N], 0 for agents that are not there.
            context: [..., context_size].
        """
        ...


@dataclass(frozen=True)
class SumMixer:
    """Q_tot(u) = Σᵢ uⁱ: ∂Q_tot/∂uⁱ = 1, whatever the state (Sunehag et al. 2018, Eq. 1)."""

    def initialise(self, generator: torch.Generator) -> None:
        """There is nothing to learn."""

    def __call__(self, theta: Tensor | None, utilities: Tensor, context: Tensor) -> Tensor:
        """[...] of ``utilities`` [..., N]."""
        return utilities.sum(-1)


@dataclass(frozen=True)
class MonotoneMixer:
    """Q_tot(u, c) = |w₂(c)|ᵀ elu(|W₁(c)| u + b₁(c)) + b₂(c), so that ∂Q_tot/∂uⁱ ≥ 0: each agent's own best action
    maximises the team's value.

    Differs: one hypernetwork with shared hidden layers gives W₁, b₁, w₂ and b₂; the source has one each.

    Attributes:
        agents: N.
        context_size: width of what the weights depend on (the state and, for MAVEN, the latent).
        hidden_sizes: hidden layers of the hypernetwork.
        embedding: E, width of the mixing network's hidden layer.
    """

    agents: int
    context_size: int
    hidden_sizes: Sequence[int]
    embedding: int
    activation: Activation = "relu"

    @cached_property
    def network(self) -> Mlp:
        """The hypernetwork."""
        outputs = self.agents * self.embedding + 2 * self.embedding + 1
        return Mlp(self.context_size, self.hidden_sizes, outputs, self.activation, output_gain=0.3)

    def initialise(self, generator: torch.Generator) -> Tensor:
        """Of the hypernetwork, [P]."""
        return self.network.initialise(generator)

    def __call__(self, theta: Tensor | None, utilities: Tensor, context: Tensor) -> Tensor:
        """[...] the team's value.

        Args:
            theta: [P] parameters of the hypernetwork.
            utilities: [..., N], 0 for agents that are not there.
            context: [..., context_size].
        """
        assert theta is not None
        size = self.embedding
        first, first_bias, second, second_bias = self.network(theta, context).split(
            [self.agents * size, size, size, 1], dim=-1
        )
        weights = first.abs().unflatten(-1, (self.agents, size))
        hidden = functional.elu((utilities.unsqueeze(-1) * weights).sum(-2) + first_bias)
        return (hidden * second.abs()).sum(-1) + second_bias.squeeze(-1)
