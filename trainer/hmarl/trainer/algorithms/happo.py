"""HAPPO: the clipped surrogate for one agent after the other.

Source: Kuba et al. 2022, Algorithm 4; Zhong et al. 2024, section 4.4.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from pydantic import Field

from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.contract.algorithm import Algorithm, StateDict
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.learning.advice import given
from hmarl.trainer.learning.critic import Critic
from hmarl.trainer.networks.settings import (
    AlgorithmSettings,
    CreditFields,
    CriticFields,
    GradientStepFields,
    PolicyGradientFields,
)
from hmarl.trainer.sequential.advice import went_far
from hmarl.trainer.sequential.estimates import advantages_of_agents, fit_joint, joint_estimate, valued_agents
from hmarl.trainer.sequential.gradient_steps import GradientSteps, clipped_loss, clipped_share
from hmarl.trainer.sequential.samples import TeamSamples
from hmarl.trainer.sequential.turns import one_after_the_other, random_order


class HappoSettings(CreditFields, CriticFields, PolicyGradientFields, AlgorithmSettings, GradientStepFields):
    """Settings of HAPPO."""

    clip: float = Field(0.2, gt=0, lt=1, description="ε, the ratio is clipped to [1−ε, 1+ε]")


class Happo(Algorithm):
    """Each agent climbs its clipped surrogate for several epochs."""

    settings_class: ClassVar[type[AlgorithmSettings]] = HappoSettings
    many_seeds: ClassVar[bool] = True
    sees_images: ClassVar[bool] = True
    settings: HappoSettings

    def __init__(
        self, spec: EnvironmentSpec, settings: HappoSettings, generator: torch.Generator, device: torch.device
    ) -> None:
        super().__init__(spec, settings, generator, device)
        outputs = valued_agents(spec, settings.credit)
        self.critic = Critic(spec.state_size, settings, generator, device, outputs, spec.state_image)
        self.steps = GradientSteps(self.policies, settings, self.noise_generator)

    def update(self, rollout: Rollout, progress: float) -> dict[str, float]:
        """Algorithm 4: θ^{i_m} ← descent on −E[ min(r·F·Â, clip(r, 1−ε, 1+ε)·F·Â) ] − c·H for m = 1 … N."""
        settings, schedule = self.settings, self.schedule(progress)
        # Â(s, a) by GAE, and the λ-returns R; or each agent's own, Âⁱ and Rⁱ
        estimate = joint_estimate(rollout, self.critic, self.state_normaliser, settings)
        advantages = advantages_of_agents(rollout, estimate)
        # for i_1 … i_N, a random permutation: θ^i ← descent on the clipped loss of F·Â; F ← F · π^i_new / π^i_old
        loss = partial(clipped_loss, clip=settings.clip, entropy_coefficient=settings.entropy_coefficient)
        report = partial(clipped_share, clip=settings.clip)
        metrics = one_after_the_other(
            TeamSamples(rollout, self.policies, self.features(rollout)),
            order=random_order(self.generator),
            advantage=lambda agent, factor: factor * advantages[..., agent].flatten(),
            improve=lambda turn: self.steps.descend(turn, loss, report),
            schedule=schedule,
        )
        # φ ← argmin E[ (V_φ(s) − R)² ]
        metrics |= fit_joint(self.critic, rollout, estimate, self.noise_generator, schedule)
        self.update_normalisers(rollout)
        return metrics

    def advice(self, metrics: dict[str, float]) -> list[str]:
        """Steps that have become too long."""
        return given(went_far(metrics, self.settings))

    def components(self) -> StateDict:
        """The shared parts, the critic and the optimisers."""
        return {"critic": self.critic, **super().components(), **self.steps.components()}
