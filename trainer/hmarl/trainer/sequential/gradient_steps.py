"""A policy improved by several epochs of minibatch Adam on a loss, and the clipped loss that many have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from hmarl.trainer.learning.metrics import Figure
from hmarl.trainer.networks.distributions import Distribution
from hmarl.trainer.networks.optimiser import FlatAdam
from hmarl.trainer.networks.policies import GroupPolicy
from hmarl.trainer.sequential.turns import Improvement, Turn
from hmarl.trainer.together.company import ask
from hmarl.trainer.together.descent import Descent, told_apart

Loss = Callable[[Distribution, Turn], Tensor]
"""The candidate policy at a turn's samples ↦ the scalar to be descended, or of a stack of turns one each."""

Report = Callable[[Distribution, Turn], dict[str, Figure]]
"""The new policy at a turn's samples ↦ further metrics."""


class GradientStepSettings(Protocol):
    """The settings that gradient steps read."""

    learning_rate: float
    max_gradient_norm: float
    epochs: int
    minibatches: int


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """[M] min( r · A, clip(r, 1−ε, 1+ε) · A ) (Schulman et al. 2017, Eq. 7)."""
    return torch.minimum(ratio * advantages, ratio.clamp(1.0 - clip, 1.0 + clip) * advantages)


def clipped_loss(new: Distribution, turn: Turn, clip: float, entropy_coefficient: float) -> Tensor:
    """−E[ min(r·A, clip(r, 1−ε, 1+ε)·A) ] − c·H; one after the other A = F·Â (Zhong et al. 2024, Eq. 16)."""
    samples = turn.samples
    objective = samples.mean(clipped_surrogate(samples.ratio(new), turn.advantages, clip), samples.surrogate_weight)
    return -objective - entropy_coefficient * samples.mean(new.entropy())


def clipped_share(new: Distribution, turn: Turn, clip: float) -> dict[str, Figure]:
    """The share of samples beyond the clipping range."""
    beyond = (turn.samples.ratio(new) - 1.0).abs() > clip
    return {"agent_clipped": turn.samples.mean(beyond.float())}


Enough = Callable[[Distribution], bool]
"""The candidate policy at a turn's samples ↦ whether it has moved far enough."""


def no_report(new: Distribution, turn: Turn) -> dict[str, Figure]:
    """Nothing."""
    return {}


def minibatches(units: int, epochs: int, parts: int, generator: torch.Generator) -> Iterator[Tensor | None]:
    """Which units [u] int64 make up each minibatch of all epochs; None where one minibatch is everything."""
    for _ in range(epochs):
        if parts == 1:
            yield None
        else:
            yield from torch.randperm(units, generator=generator, device=generator.device).split(-(-units // parts))


def _loss_under(theta: Tensor, turn: Turn, loss: Loss) -> Tensor:
    """The loss of the policy with parameters [P]; of a stack of them and of turns, [S] losses."""
    return loss(turn.samples.under(turn.policy, theta), turn)


class GradientSteps:
    """One Adam for every row of parameters of a team's policies.

    Args:
        policies: per group.
        settings: of the steps.
        generator: of the minibatches, on the device.

    Attributes:
        optimisers: per group, one a row.
    """

    def __init__(
        self, policies: Sequence[GroupPolicy], settings: GradientStepSettings, generator: torch.Generator
    ) -> None:
        self.settings, self.generator = settings, generator
        self.optimisers = [
            [FlatAdam(row, settings.learning_rate, settings.max_gradient_norm) for row in policy.theta]
            for policy in policies
        ]

    def descend(self, turn: Turn, loss: Loss, report: Report = no_report, enough: Enough | None = None) -> Improvement:
        """Epochs of minibatches on the loss of one turn; the turn's policy is changed in place.

        Args:
            turn: whose.
            loss: to be descended.
            report: adds metrics.
            enough: asked after every epoch but the last; none follows where it says so.
        """
        policy, samples, settings = turn.policy, turn.samples, self.settings
        optimiser = self.optimisers[turn.group][0 if policy.shared else turn.member]
        kind = None if turn.kind is None else (turn.kind, told_apart(loss))
        norms: list[Tensor] = []
        for epochs in [settings.epochs] if enough is None else [1] * settings.epochs:
            if norms and enough is not None and self._has(turn, enough):
                break
            parts = tuple(minibatches(samples.units, epochs, settings.minibatches, self.generator))
            of_part = partial(_loss_under, loss=loss)
            descent = Descent(optimiser, turn, parts, of_part, turn.schedule, Turn.stacked, kind)
            norms.append(ask(descent).norms)
        with torch.no_grad():
            new = samples.under(policy, policy.row(turn.member))
            metrics: dict[str, Figure] = {
                "agent_kl": samples.mean(samples.old.kl(new)),
                "agent_entropy": samples.mean(new.entropy()),
                "agent_gradient_norm": torch.cat(norms).mean(),
            }
            return Improvement(new, metrics | report(new, turn))

    @staticmethod
    @torch.no_grad()
    def _has(turn: Turn, enough: Enough) -> bool:
        """Whether the turn's policy, as it is now, has moved far enough."""
        return enough(turn.samples.under(turn.policy, turn.policy.row(turn.member)))

    def components(self) -> dict[str, object]:
        """The optimisers, as ``Algorithm.components`` names them."""
        return {
            f"optimisers.{g}.{member}": optimiser
            for g, row in enumerate(self.optimisers)
            for member, optimiser in enumerate(row)
        }
