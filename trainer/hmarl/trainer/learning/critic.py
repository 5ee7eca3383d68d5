"""The centralised critic: V(s), one output per agent, or Q(s, ·) with one output per instruction."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from hmarl.sdk.spaces import ImageFormat
from hmarl.trainer.learning.returns import explained_variance
from hmarl.trainer.networks.activation import Activation, EncoderKind
from hmarl.trainer.networks.flat import Mlp
from hmarl.trainer.networks.images import ImageEncoder
from hmarl.trainer.networks.normalisation import ValueNormaliser
from hmarl.trainer.networks.optimiser import FlatAdam
from hmarl.trainer.networks.settings import HiddenSizes


class CriticSettings(Protocol):
    """The settings that a critic reads."""

    critic_hidden_sizes: HiddenSizes
    activation: Activation
    normalise_layers: bool
    image_encoder: EncoderKind
    image_downsample: int
    normalise_values: bool
    critic_learning_rate: float
    max_gradient_norm: float
    critic_epochs: int
    critic_minibatches: int
    critic_loss: Literal["mse", "huber"]
    huber_delta: float


class Critic:
    """Regresses λ-returns on normalised states.

    Args:
        state_size: width of the state.
        settings: network, optimiser and loss.
        generator: CPU generator of the initial weights.
        outputs: 1 for V(s); N for V^1(s) … V^N(s); K for Q(s, M).
        image: what picture the state begins with, if any.
    """

    def __init__(
        self,
        state_size: int,
        settings: CriticSettings,
        generator: torch.Generator,
        device: torch.device,
        outputs: int = 1,
        image: ImageFormat | None = None,
    ) -> None:
        self.settings = settings
        self.network = Mlp(
            state_size,
            settings.critic_hidden_sizes,
            outputs,
            settings.activation,
            output_gain=1.0,
            normalise_layers=settings.normalise_layers,
            encoder=ImageEncoder.of(image, settings),
        )
        self.theta = self.network.initialise(generator).to(device)
        self.normaliser = ValueNormaliser(device, settings.normalise_values)
        self.optimiser = FlatAdam(self.theta, settings.critic_learning_rate, settings.max_gradient_norm)

    @torch.no_grad()
    def values(self, states: Tensor) -> Tensor:
        """Values in units of returns: [..., state_size] -> [..., outputs], or [...] when there is one output."""
        values = self.normaliser.denormalise(self.network(self.theta, states))
        return values.squeeze(-1) if self.network.output_size == 1 else values

    def _loss_where(self, there: Tensor, predictions: Tensor, targets: Tensor) -> Tensor:
        """The loss over the entries that count; the others cost nothing, whatever stands there."""
        known = torch.where(there, targets, predictions.detach())
        return self._loss(predictions, known) * there.numel() / there.sum().clamp(min=1)

    def _loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        if self.settings.critic_loss == "huber":
            return functional.huber_loss(predictions, targets, delta=self.settings.huber_delta)
        return functional.mse_loss(predictions, targets)

    def fit(
        self,
        states: Tensor,
        targets: Tensor,
        generator: torch.Generator,
        schedule: float = 1.0,
        chosen: Tensor | None = None,
        there: Tensor | None = None,
    ) -> dict[str, float]:
        """φ_{k+1} = argmin Σ (V_φ(s_t) − R̂_t)², by minibatch Adam (HCPO Algorithm 1, line 14).

        Args:
            states: [M, state_size] normalised.
            targets: [M] λ-returns, or [M, outputs] of each output.
            generator: of the minibatches.
            schedule: factor on the step size.
            chosen: [M] int64, which output each target belongs to; None with one output, or one target an output.
            there: [M, outputs] bool, which targets count; None: all.
        """
        values, counted = self._pick(self.values(states), chosen), targets
        if there is not None:
            values, counted = values[there], targets[there]
        explained = explained_variance(values, counted)
        self.normaliser.update(counted)
        scaled = self.normaliser.normalise(targets)
        losses, size = [], -(-len(targets) // self.settings.critic_minibatches)
        for _ in range(self.settings.critic_epochs):
            order = torch.randperm(len(targets), generator=generator, device=generator.device)
            for rows in order.split(size):
                output = self.network(self.optimiser.parameter, states[rows])
                picked = self._pick(output.squeeze(-1) if chosen is None else output, chosen, rows)
                wanted = scaled[rows]
                loss = self._loss(picked, wanted) if there is None else self._loss_where(there[rows], picked, wanted)
                self.optimiser.step(loss, schedule)
                losses.append(loss.detach())
        return {"critic_loss": float(torch.stack(losses).mean()), "explained_variance": explained}

    @staticmethod
    def _pick(values: Tensor, chosen: Tensor | None, rows: Tensor | None = None) -> Tensor:
        if chosen is None:
            return values
        index = chosen if rows is None else chosen[rows]
        return values.gather(-1, index.unsqueeze(-1)).squeeze(-1)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Parameters, optimiser and value moments."""
        return {
            "network": {"theta": self.theta},
            "optimiser": self.optimiser.state_dict(),
            "normaliser": self.normaliser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Restore what ``state_dict`` returned."""
        self.theta.copy_(state["network"]["theta"])
        self.optimiser.load_state_dict(state.get("optimiser", {}))
        self.normaliser.load_state_dict(state["normaliser"])
