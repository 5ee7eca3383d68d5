"""HAMDPO: several gradient steps on a mirror-descent objective for one agent after the other.

    π^i_{k+1} ← argmax E[ π/π_k · F · Â ] − (1/η_k) · KL(π ‖ π_k)

Without a clip and without second derivatives, the divergence alone keeps the new policy near the old one. Solved
exactly for a tabular policy, the step is π_{k+1}(a|s) ∝ π_k(a|s) · exp(η_k Â(s, a)).

Source: Nasiri and Rezghi 2023, "Heterogeneous Multi-Agent Reinforcement Learning via Mirror Descent Policy
Optimization"; Tomar et al. 2022 (MDPO) for a single agent.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from hmarl.trainer.networks.distributions import Distribution
from hmarl.trainer.sequential.gradient_steps import GradientAgents, GradientSettings
from hmarl.trainer.sequential.heterogeneous import AgentSamples


class HamdpoSettings(GradientSettings):
    """Settings of HAMDPO; ``epochs`` × ``minibatches`` is the number of gradient steps per agent update."""

    epochs: int = Field(10, ge=1, description="passes over the rollout per agent update")
    step_size: float = Field(1.0, gt=0, description="η₀, weight 1/η of the divergence at the start")
    step_size_floor: float = Field(0.05, gt=0, le=1, description="η falls linearly to this share of η₀")
    kl_regularisation: bool = Field(True, description="False leaves the divergence out (ablation)")


class Hamdpo(GradientAgents):
    """Each agent takes several gradient steps on its mirror-descent objective."""

    settings_class = HamdpoSettings
    settings: HamdpoSettings

    @property
    def step_size(self) -> float:
        """η_k = η₀ · max(1 − k/K_total, floor)."""
        return self.settings.step_size * max(1.0 - self.progress, self.settings.step_size_floor)

    def loss(self, new: Distribution, samples: AgentSamples, advantages: Tensor) -> Tensor:
        """−E[ r · F · Â ] + (1/η_k) · KL(π_new ‖ π_old) − c · H."""
        loss = -samples.mean(samples.ratio(new) * advantages, samples.surrogate_weight)
        loss = loss - self.settings.entropy_coefficient * samples.mean(new.entropy())
        if self.settings.kl_regularisation:
            loss = loss + samples.mean(new.kl(samples.old), samples.kl_weight) / self.step_size
        return loss

    def report(self, new: Distribution, samples: AgentSamples) -> dict[str, float]:
        """The step size in force and the divergence that it weighs."""
        return {"step_size": self.step_size, "agent_reverse_kl": float(samples.mean(new.kl(samples.old)))}
