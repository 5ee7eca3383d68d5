"""IPPO: every agent learns from its own reward and values its own observation.

Source: de Witt et al. 2020, "Is Independent Learning All You Need in the StarCraft Multi-Agent Challenge?"
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
from hmarl.trainer.learning.returns import normalise_advantages
from hmarl.trainer.networks.settings import AlgorithmSettings, CriticFields, GradientStepFields, PolicyGradientFields
from hmarl.trainer.sequential.advice import went_far
from hmarl.trainer.sequential.estimates import LocalCritics
from hmarl.trainer.sequential.gradient_steps import GradientSteps, clipped_loss, clipped_share
from hmarl.trainer.sequential.samples import TeamSamples
from hmarl.trainer.sequential.turns import all_at_once


class IppoSettings(CriticFields, PolicyGradientFields, AlgorithmSettings, GradientStepFields):
    """Settings of IPPO."""

    share_parameters: bool = Field(
        True, description="agents of a group share one network, told apart by a one-hot input"
    )
    clip: float = Field(0.2, gt=0, lt=1, description="ε, the ratio is clipped to [1−ε, 1+ε]")


class Ippo(Algorithm):
    """MAPPO's step on local values V(o^i), one critic per group."""

    settings_class: ClassVar[type[AlgorithmSettings]] = IppoSettings
    many_seeds: ClassVar[bool] = True
    sees_images: ClassVar[bool] = True
    settings: IppoSettings

    def __init__(
        self, spec: EnvironmentSpec, settings: IppoSettings, generator: torch.Generator, device: torch.device
    ) -> None:
        super().__init__(spec, settings, generator, device)
        self.critics = LocalCritics(spec, settings, self.observation_normalisers, generator, device)
        self.steps = GradientSteps(self.policies, settings, self.noise_generator)

    def update(self, rollout: Rollout, progress: float) -> dict[str, float]:
        """θ ← descent on −E[ min(r·Âⁱ, clip(r, 1−ε, 1+ε)·Âⁱ) ] − c·H, a shared θ over all who share it."""
        settings, schedule = self.settings, self.schedule(progress)
        # Âⁱ(oⁱ, aⁱ) by GAE of each agent's own reward, and its own λ-returns Rⁱ
        estimate = self.critics.estimate(rollout, settings)
        there = None if rollout.all_active else rollout.active.float()
        advantages = normalise_advantages(estimate.advantages, there)
        # θ ← descent on the clipped loss of Âⁱ
        loss = partial(clipped_loss, clip=settings.clip, entropy_coefficient=settings.entropy_coefficient)
        report = partial(clipped_share, clip=settings.clip)
        metrics = all_at_once(
            TeamSamples(rollout, self.policies, self.features(rollout)),
            advantages,
            improve=lambda turn: self.steps.descend(turn, loss, report),
            schedule=schedule,
        )
        # φ ← argmin E[ (V_φ(oⁱ, i) − Rⁱ)² ], one φ per group
        metrics |= self.critics.fit(rollout, estimate.returns, self.noise_generator, schedule)
        self.update_normalisers(rollout)
        return metrics

    def advice(self, metrics: dict[str, float]) -> list[str]:
        """Steps that have become too long."""
        return given(went_far(metrics, self.settings))

    def components(self) -> StateDict:
        """The shared parts, the critics and the optimisers."""
        return {**self.critics.components(), **super().components(), **self.steps.components()}
