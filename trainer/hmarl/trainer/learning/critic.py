"""The centralised critic: V(s), one output per agent, or Q(s, ·) with one output per instruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from hmarl.sdk.spaces import ImageFormat
from hmarl.trainer.learning.metrics import read
from hmarl.trainer.learning.returns import explained_variance
from hmarl.trainer.networks.activation import Activation, EncoderKind
from hmarl.trainer.networks.flat import Mlp
from hmarl.trainer.networks.images import ImageEncoder
from hmarl.trainer.networks.normalisation import ValueNormaliser
from hmarl.trainer.networks.optimiser import FlatAdam
from hmarl.trainer.networks.settings import HiddenSizes
from hmarl.trainer.together.company import ask
from hmarl.trainer.together.descent import Descent, shape_of, stack_of


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


@dataclass(frozen=True)
class _Targets:
    """What a critic is to say of states: see ``Critic.fit``; all tensors are [S, M, ...] in a stack."""

    states: Tensor
    wanted: Tensor
    chosen: Tensor | None
    there: Tensor | None

    @property
    def units(self) -> int:
        """M."""
        return len(self.states)

    def take(self, units: Tensor) -> _Targets:
        """Of the states ``units`` [u] int64."""
        chosen, there = (None if each is None else each[units] for each in (self.chosen, self.there))
        return _Targets(self.states[units], self.wanted[units], chosen, there)

    @staticmethod
    def stacked(targets: Sequence[_Targets]) -> _Targets:
        """A stack of those with equal shapes."""
        return _Targets(
            torch.stack([each.states for each in targets]),
            torch.stack([each.wanted for each in targets]),
            stack_of([each.chosen for each in targets]),
            stack_of([each.there for each in targets]),
        )


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

    def _loss(self, theta: Tensor, targets: _Targets) -> Tensor:
        """The mean loss over what counts, a scalar; of a stack of parameters [S, P] and of targets [S]."""
        output = self.network(theta, targets.states)
        predictions = self._pick(output.squeeze(-1) if targets.chosen is None else output, targets.chosen)
        wanted, there = targets.wanted, targets.there
        if there is not None:  # the others cost nothing, whatever stands there
            wanted = torch.where(there, wanted, predictions.detach())
        if self.settings.critic_loss == "huber":
            errors = functional.huber_loss(predictions, wanted, reduction="none", delta=self.settings.huber_delta)
        else:
            errors = functional.mse_loss(predictions, wanted, reduction="none")
        rows = theta.dim() - 1
        loss = errors.flatten(rows).mean(-1)
        if there is not None:
            counted = there.flatten(rows)
            loss = loss * counted.shape[-1] / counted.sum(-1).clamp(min=1)
        return loss

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
        told = _Targets(states, self.normaliser.normalise(targets), chosen, there)
        parts: list[Tensor] = []
        for _ in range(self.settings.critic_epochs):
            order = torch.randperm(len(targets), generator=generator, device=generator.device)
            parts += order.split(-(-len(targets) // self.settings.critic_minibatches))
        shapes = tuple(shape_of(each) for each in (states, targets, chosen, there))
        kind = (self.network, self.settings.critic_loss, self.settings.huber_delta, shapes)
        losses = ask(Descent(self.optimiser, told, parts, self._loss, schedule, _Targets.stacked, kind)).losses
        return read({"critic_loss": losses.mean(), "explained_variance": explained})

    @staticmethod
    def _pick(values: Tensor, chosen: Tensor | None) -> Tensor:
        return values if chosen is None else values.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)

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
