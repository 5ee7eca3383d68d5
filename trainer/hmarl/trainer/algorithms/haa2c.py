"""HAA2C: one unclipped policy-gradient step for one agent after the other.

Source: Zhong et al. 2024, "Heterogeneous-Agent Reinforcement Learning", section 5.2.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from hmarl.trainer.networks.distributions import Distribution
from hmarl.trainer.sequential.gradient_steps import GradientAgents, GradientSettings
from hmarl.trainer.sequential.heterogeneous import AgentSamples


class Haa2cSettings(GradientSettings):
    """Settings of HAA2C."""

    epochs: int = Field(1, ge=1, description="gradient steps per agent; with more than one it is no policy gradient")


class Haa2c(GradientAgents):
    """Each agent takes one step up the policy gradient."""

    settings_class = Haa2cSettings
    settings: Haa2cSettings

    def loss(self, new: Distribution, samples: AgentSamples, advantages: Tensor) -> Tensor:
        """−E[ r · F · Â ] − c · H; at r = 1 its gradient is the policy gradient's."""
        objective = samples.mean(samples.ratio(new) * advantages, samples.surrogate_weight)
        return -objective - self.settings.entropy_coefficient * samples.mean(new.entropy())
