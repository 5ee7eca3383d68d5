"""HAPPO: the clipped surrogate for one agent after the other.

Source: Kuba et al. 2022, Algorithm 4; Zhong et al. 2024, section 4.4.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.config import AlgorithmSettings
from hmarl.trainer.distributions import Distribution
from hmarl.trainer.heterogeneous import AgentSamples, HeterogeneousAgents
from hmarl.trainer.optimiser import FlatAdam


class HappoSettings(AlgorithmSettings):
    """Settings of HAPPO."""

    clip: float = Field(0.2, gt=0, lt=1, description="ε, the ratio is clipped to [1−ε, 1+ε]")
    learning_rate: float = Field(5e-4, gt=0, description="Adam's step size for the policies")
    epochs: int = Field(5, ge=1, description="passes over the rollout per agent update")
    minibatches: int = Field(1, ge=1, description="parts into which a pass is divided")
    entropy_coefficient: float = Field(0.01, ge=0, description="weight of the entropy bonus")


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """[M] min( r · F·Â, clip(r, 1−ε, 1+ε) · F·Â ) (Zhong et al. 2024, Eq. 16)."""
    return torch.minimum(ratio * advantages, ratio.clamp(1.0 - clip, 1.0 + clip) * advantages)


class Happo(HeterogeneousAgents):
    """Each agent climbs its clipped surrogate for several epochs."""

    settings_class = HappoSettings
    settings: HappoSettings

    def __init__(
        self, spec: EnvironmentSpec, settings: HappoSettings, generator: torch.Generator, device: torch.device
    ) -> None:
        super().__init__(spec, settings, generator, device)
        self.optimisers = [
            [
                FlatAdam(row, settings.learning_rate, settings.max_gradient_norm)
                for row in policy.theta
            ]
            for policy in self.policies
        ]  # fmt: skip

    def improve_agent(self, agent: int, samples: AgentSamples, advantages: Tensor, schedule: float) -> dict[str, float]:
        """θ ← argmax E[ min(r·F·Â, clip(r)·F·Â) ] + c·H by minibatch Adam."""
        group, member = self.position[agent]
        policy, settings = self.policies[group], self.settings
        optimiser = self.optimisers[group][0 if policy.shared else member]
        size = -(-len(advantages) // settings.minibatches)
        norms = []
        for _ in range(settings.epochs):
            order = torch.randperm(len(advantages), generator=self.noise_generator, device=self.device)
            for rows in order.split(size):
                part = samples if settings.minibatches == 1 else samples.take(rows)
                advantage = advantages if settings.minibatches == 1 else advantages[rows]
                new = policy.distribution(optimiser.parameter, part.inputs, part.mask)
                norms.append(optimiser.step(self._loss(new, part, advantage), schedule))
        with torch.no_grad():
            new = policy.distribution(policy.row(member), samples.inputs, samples.mask)
            ratio = (new.log_prob(samples.actions) - samples.old_log_prob).exp()
            return {
                "agent_kl": float(samples.mean(samples.old.kl(new))),
                "agent_entropy": float(samples.mean(new.entropy())),
                "agent_clipped": float(samples.mean(((ratio - 1.0).abs() > settings.clip).float())),
                "agent_gradient_norm": float(torch.stack(norms).mean()),
            }

    def _loss(self, new: Distribution, samples: AgentSamples, advantages: Tensor) -> Tensor:
        ratio = (new.log_prob(samples.actions) - samples.old_log_prob).exp()
        objective = samples.mean(clipped_surrogate(ratio, advantages, self.settings.clip), samples.surrogate_weight)
        return -objective - self.settings.entropy_coefficient * samples.mean(new.entropy())

    def components(self) -> dict[str, object]:
        """The shared parts and one optimiser per row of parameters."""
        parts = super().components()
        for g, row in enumerate(self.optimisers):
            parts |= {f"optimisers.{g}.{member}": optimiser for member, optimiser in enumerate(row)}
        return parts
