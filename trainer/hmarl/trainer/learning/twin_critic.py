"""Two values of the state and all agents' actions, of which the smaller one is believed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from hmarl.trainer.networks.activation import Activation
from hmarl.trainer.networks.flat import Mlp
from hmarl.trainer.networks.optimiser import FlatAdam
from hmarl.trainer.networks.settings import HiddenSizes


class TwinCriticSettings(Protocol):
    """The settings that a twin critic reads."""

    critic_hidden_sizes: HiddenSizes
    activation: Activation
    normalise_layers: bool
    critic_learning_rate: float
    max_gradient_norm: float
    target_rate: float


class TwinCritic:
    """Q₁(s, a) and Q₂(s, a), and their target networks.

    Args:
        state_size: width of the state.
        action_size: of all agents' actions, as they are seen.
        settings: networks and optimiser.
        generator: CPU generator of the initial weights.

    Attributes:
        theta: [2, P] of both.
        target: [2, P] of the target networks.

    Source: Fujimoto et al. 2018, "Addressing Function Approximation Error in Actor-Critic Methods", section 4.2.
    """

    def __init__(
        self,
        state_size: int,
        action_size: int,
        settings: TwinCriticSettings,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.network = Mlp(
            state_size + action_size,
            settings.critic_hidden_sizes,
            1,
            settings.activation,
            output_gain=1.0,
            normalise_layers=settings.normalise_layers,
        )
        self.theta = torch.stack([self.network.initialise(generator) for _ in range(2)]).to(device)
        self.target = self.theta.clone()
        self.optimiser = FlatAdam(self.theta, settings.critic_learning_rate, settings.max_gradient_norm)
        self._target_rate = settings.target_rate

    def both(self, theta: Tensor, states: Tensor, actions: Sequence[Tensor]) -> Tensor:
        """[2, M] Q₁ and Q₂.

        Args:
            theta: [2, P].
            states: [M, state_size] normalised.
            actions: of every agent [M, A], as they are seen.
        """
        inputs = torch.cat([states, *actions], dim=-1)
        return self.network(theta, inputs.expand(2, -1, -1)).squeeze(-1)

    def smaller(self, theta: Tensor, states: Tensor, actions: Sequence[Tensor]) -> Tensor:
        """[M] min(Q₁, Q₂); the arguments are those of ``both``."""
        return self.both(theta, states, actions).amin(0)

    def fit(self, states: Tensor, actions: Sequence[Tensor], targets: Tensor, schedule: float) -> dict[str, Tensor]:
        """φ_j ← descent on E[ (Q_j(s, a) − y)² ], j = 1, 2; one step.

        Args:
            states: as of ``both``.
            actions: likewise.
            targets: [M] y.
            schedule: factor on the step size.
        """
        errors = self.both(self.optimiser.parameter, states, actions) - targets
        loss = errors.square().mean(-1).sum()
        norm = self.optimiser.step(loss, schedule)
        return {"critic_loss": loss.detach() / 2.0, "q_mean": targets.mean(), "critic_gradient_norm": norm}

    @torch.no_grad()
    def follow(self) -> None:
        """φ⁻ ← (1 − τ)·φ⁻ + τ·φ."""
        self.target.lerp_(self.theta, self._target_rate)

    def state_dict(self) -> dict[str, Tensor | dict[str, Tensor]]:
        """Parameters, target networks and optimiser."""
        return {"theta": self.theta, "target": self.target, "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Tensor | dict[str, Tensor]]) -> None:
        """Restore what ``state_dict`` returned."""
        theta, target, optimiser = state["theta"], state["target"], state.get("optimiser", {})
        assert isinstance(theta, Tensor)
        assert isinstance(target, Tensor)
        assert isinstance(optimiser, dict)
        self.theta.copy_(theta)
        self.target.copy_(target)
        self.optimiser.load_state_dict(optimiser)
