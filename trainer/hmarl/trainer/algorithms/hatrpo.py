"""HATRPO: a trust-region step for one agent after the other.

Source: Kuba et al. 2022, "Trust Region Policy Optimisation in Multi-Agent Reinforcement Learning", Algorithm 1.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from hmarl.trainer.networks.settings import ActorCriticSettings
from hmarl.trainer.sequential.heterogeneous import AgentSamples, HeterogeneousAgents, Improvement
from hmarl.trainer.sequential.trust_region_steps import TrustRegionImprovementSettings, improve_by_trust_region


class HatrpoSettings(TrustRegionImprovementSettings, ActorCriticSettings):
    """Settings of HATRPO."""

    kl_limit: float = Field(0.01, gt=0, description="δ, largest mean KL(old ‖ new) of one agent's step, in nats")
    entropy_coefficient: float = Field(0.0, ge=0, description="weight of the entropy in the surrogate")


class Hatrpo(HeterogeneousAgents):
    """Each agent maximises E[ratio · F·Â] subject to a mean KL of at most δ."""

    settings_class = HatrpoSettings
    settings: HatrpoSettings

    def improve_agent(self, agent: int, samples: AgentSamples, advantages: Tensor, schedule: float) -> Improvement:
        """One trust-region step."""
        group, member = self.position[agent]
        return improve_by_trust_region(
            self.policies[group], member, samples, advantages, self.settings,
            kl_limit=self.settings.kl_limit, entropy_coefficient=self.settings.entropy_coefficient,
        )  # fmt: skip
