"""HATRPO: a trust-region step for one agent after the other.

Source: Kuba et al. 2022, "Trust Region Policy Optimisation in Multi-Agent Reinforcement Learning", Algorithm 1.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.contract.algorithm import Algorithm, StateDict
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.learning.critic import Critic
from hmarl.trainer.networks.settings import AlgorithmSettings, CreditFields, CriticFields, PolicyGradientFields
from hmarl.trainer.sequential.constrained_steps import AgentLimitFields, TrustRegionFields, improve_by_trust_region
from hmarl.trainer.sequential.estimates import advantages_of_agents, fit_joint, joint_estimate, valued_agents
from hmarl.trainer.sequential.samples import TeamSamples
from hmarl.trainer.sequential.turns import one_after_the_other, random_order


class HatrpoSettings(
    AgentLimitFields, TrustRegionFields, CreditFields, CriticFields, PolicyGradientFields, AlgorithmSettings
):
    """Settings of HATRPO."""


class Hatrpo(Algorithm):
    """Each agent maximises E[ratio ⋅ F⋅Â] subject to a mean KL of at most δ."""

    settings_class: ClassVar[type[AlgorithmSettings]] = HatrpoSettings
    sees_images: ClassVar[bool] = True
    settings: HatrpoSettings

    def __init__(
        self, spec: EnvironmentSpec, settings: HatrpoSettings, generator: torch.Generator, device: torch.device
    ) -> None:
        super().__init__(spec, settings, generator, device)
        outputs = valued_agents(spec, settings.credit)
        self.critic = Critic(spec.state_size, settings, generator, device, outputs, spec.state_image)

    def update(self, rollout: Rollout, progress: float) -> dict[str, float]:
        """Algorithm 1: θ^{i_m} ← argmax E[ π/π_old · F·Â ] subject to E[ KL(π_old ‖ π) ] ≤ δ for m = 1 … N."""
        settings, schedule = self.settings, self.schedule(progress)
        # line 4: Â(s, a) by GAE, and the λ-returns R; or each agent's own, Âⁱ and Rⁱ
        estimate = joint_estimate(rollout, self.critic, self.state_normaliser, settings)
        advantages = advantages_of_agents(rollout, estimate)
        # lines 5 to 11, i_1 … i_N a random permutation: θ^i ← θ^i + αʲβ·H⁻¹g; F ← F · π^i_new / π^i_old
        metrics = one_after_the_other(
            TeamSamples(rollout, self.policies, self.features(rollout)),
            order=random_order(self.generator),
            advantage=lambda agent, factor: factor * advantages[..., agent].flatten(),
            improve=lambda turn: improve_by_trust_region(
                turn.policy,
                turn.member,
                turn.samples,
                turn.advantages,
                settings,
                kl_limit=settings.kl_limit,
                entropy_coefficient=settings.entropy_coefficient,
            ),
            schedule=schedule,
        )
        # line 12: φ ← argmin E[ (V_φ(s) − R)² ]
        metrics |= fit_joint(self.critic, rollout, estimate, self.noise_generator, schedule)
        self.update_normalisers(rollout)
        return metrics

    def components(self) -> StateDict:
        """The shared parts and the critic."""
        return {"critic": self.critic, **super().components()}
