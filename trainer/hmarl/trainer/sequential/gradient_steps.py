"""Agents that climb a surrogate by several epochs of minibatch Adam: everything but the surrogate itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.networks.distributions import Distribution
from hmarl.trainer.networks.optimiser import FlatAdam
from hmarl.trainer.networks.settings import ActorCriticSettings, AlgorithmSettings, StochasticGradientSettings
from hmarl.trainer.sequential.heterogeneous import AgentSamples, HeterogeneousAgents, Improvement


class GradientSettings(ActorCriticSettings, StochasticGradientSettings):
    """Settings of all heterogeneous agents that take gradient steps."""


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """[M] min( r · A, clip(r, 1−ε, 1+ε) · A ) (Schulman et al. 2017, Eq. 7)."""
    return torch.minimum(ratio * advantages, ratio.clamp(1.0 - clip, 1.0 + clip) * advantages)


def minibatches(units: int, epochs: int, parts: int, generator: torch.Generator) -> Iterator[Tensor | None]:
    """Which units [u] int64 make up each minibatch of all epochs; None where one minibatch is everything."""
    for _ in range(epochs):
        if parts == 1:
            yield None
        else:
            yield from torch.randperm(units, generator=generator, device=generator.device).split(-(-units // parts))


class GradientAgents(HeterogeneousAgents):
    """Each agent descends ``loss`` for several epochs; a member of the family says what the loss is."""

    settings_class: ClassVar[type[AlgorithmSettings]] = GradientSettings
    settings: GradientSettings

    def __init__(
        self, spec: EnvironmentSpec, settings: GradientSettings, generator: torch.Generator, device: torch.device
    ) -> None:
        super().__init__(spec, settings, generator, device)
        self.optimisers = [
            [FlatAdam(row, settings.learning_rate, settings.max_gradient_norm) for row in policy.theta]
            for policy in self.policies
        ]

    def loss(self, new: Distribution, samples: AgentSamples, advantages: Tensor) -> Tensor:
        """Scalar to be descended.

        Args:
            new: the candidate policy at the samples.
            samples: a minibatch of one agent's samples.
            advantages: [M] what ``advantages_given`` returned for them.
        """
        raise NotImplementedError

    def improve_agent(self, agent: int, samples: AgentSamples, advantages: Tensor, schedule: float) -> Improvement:
        """Minibatch Adam on the agent's loss."""
        return self.descend(*self.position[agent], samples, advantages, schedule)

    def descend(
        self, group: int, member: int, samples: AgentSamples, advantages: Tensor, schedule: float
    ) -> Improvement:
        """Minibatch Adam on the loss of one member of a group, or of all of it where they share parameters."""
        policy, settings = self.policies[group], self.settings
        optimiser = self.optimisers[group][0 if policy.shared else member]
        norms = []
        for units in minibatches(samples.units, settings.epochs, settings.minibatches, self.noise_generator):
            part = samples if units is None else samples.take(units)
            advantage = advantages if units is None else advantages[samples.rows(units)]
            loss = self.loss(part.under(policy, optimiser.parameter), part, advantage)
            norms.append(optimiser.step(loss, schedule))
        with torch.no_grad():
            new = samples.under(policy, policy.row(member))
            metrics = {
                "agent_kl": float(samples.mean(samples.old.kl(new))),
                "agent_entropy": float(samples.mean(new.entropy())),
                "agent_gradient_norm": float(torch.stack(norms).mean()),
            }
            return Improvement(new, metrics | self.report(new, samples))

    def report(self, new: Distribution, samples: AgentSamples) -> dict[str, float]:
        """Further metrics of one agent's update."""
        return {}

    def components(self) -> dict[str, object]:
        """The shared parts and one optimiser per row of parameters."""
        parts = super().components()
        for g, row in enumerate(self.optimisers):
            parts |= {f"optimisers.{g}.{member}": optimiser for member, optimiser in enumerate(row)}
        return parts
