"""HAPPO: the clipped surrogate for one agent after the other.

Source: Kuba et al. 2022, Algorithm 4; Zhong et al. 2024, section 4.4.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from hmarl.trainer.networks.distributions import Distribution
from hmarl.trainer.networks.settings import AlgorithmSettings
from hmarl.trainer.sequential.gradient_steps import GradientAgents, GradientSettings, clipped_surrogate
from hmarl.trainer.sequential.heterogeneous import AgentSamples


class HappoSettings(GradientSettings):
    """Settings of HAPPO."""

    clip: float = Field(0.2, gt=0, lt=1, description="ε, the ratio is clipped to [1−ε, 1+ε]")


class Happo(GradientAgents):
    """Each agent climbs its clipped surrogate for several epochs."""

    settings_class: ClassVar[type[AlgorithmSettings]] = HappoSettings
    settings: HappoSettings

    def loss(self, new: Distribution, samples: AgentSamples, advantages: Tensor) -> Tensor:
        """−E[ min(r·F·Â, clip(r, 1−ε, 1+ε)·F·Â) ] − c·H (Zhong et al. 2024, Eq. 16)."""
        ratio = samples.ratio(new)
        objective = samples.mean(clipped_surrogate(ratio, advantages, self.settings.clip), samples.surrogate_weight)
        return -objective - self.settings.entropy_coefficient * samples.mean(new.entropy())

    def report(self, new: Distribution, samples: AgentSamples) -> dict[str, float]:
        """The share of samples beyond the clipping range."""
        beyond = (samples.ratio(new) - 1.0).abs() > self.settings.clip
        return {"agent_clipped": float(samples.mean(beyond.float()))}
