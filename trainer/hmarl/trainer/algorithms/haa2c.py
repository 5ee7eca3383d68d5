"""HAA2C: a few unclipped policy-gradient steps for one agent after the other.

Source: Zhong et al. 2024, "Heterogeneous-Agent Reinforcement Learning", section 5.2.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.contract.algorithm import Algorithm, StateDict
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.learning.advice import given
from hmarl.trainer.learning.critic import Critic
from hmarl.trainer.networks.distributions import Distribution
from hmarl.trainer.networks.settings import (
    AlgorithmSettings,
    CreditFields,
    CriticFields,
    GradientStepFields,
    PolicyGradientFields,
)
from hmarl.trainer.sequential.advice import went_far
from hmarl.trainer.sequential.estimates import advantages_of_agents, fit_joint, joint_estimate, valued_agents
from hmarl.trainer.sequential.gradient_steps import GradientSteps
from hmarl.trainer.sequential.samples import TeamSamples
from hmarl.trainer.sequential.turns import Turn, one_after_the_other, random_order


class Haa2cSettings(CreditFields, CriticFields, PolicyGradientFields, AlgorithmSettings, GradientStepFields):
    """Settings of HAA2C."""

    epochs: int = Field(
        5, ge=1, description="gradient steps per agent, 5 in the source's code; the first is the policy gradient"
    )


def policy_gradient_loss(new: Distribution, turn: Turn, entropy_coefficient: float) -> Tensor:
    """−E[ r · F · Â ] − c · H; at r = 1 its gradient is the policy gradient's."""
    samples = turn.samples
    objective = samples.mean(samples.ratio(new) * turn.advantages, samples.surrogate_weight)
    return -objective - entropy_coefficient * samples.mean(new.entropy())


class Haa2c(Algorithm):
    """Each agent takes a few steps up the policy gradient, which is exact in the first."""

    settings_class: ClassVar[type[AlgorithmSettings]] = Haa2cSettings
    many_seeds: ClassVar[bool] = True
    sees_images: ClassVar[bool] = True
    settings: Haa2cSettings

    def __init__(
        self, spec: EnvironmentSpec, settings: Haa2cSettings, generator: torch.Generator, device: torch.device
    ) -> None:
        super().__init__(spec, settings, generator, device)
        outputs = valued_agents(spec, settings.credit)
        self.critic = Critic(spec.state_size, settings, generator, device, outputs, spec.state_image)
        self.steps = GradientSteps(self.policies, settings, self.noise_generator)

    def update(self, rollout: Rollout, progress: float) -> dict[str, float]:
        """θ^{i_m} ← steps up E[ r · F·Â ] for m = 1 … N."""
        settings, schedule = self.settings, self.schedule(progress)
        # Â(s, a) by GAE, and the λ-returns R; or each agent's own, Âⁱ and Rⁱ
        estimate = joint_estimate(rollout, self.critic, self.state_normaliser, settings)
        advantages = advantages_of_agents(rollout, estimate)
        # for i_1 … i_N, a random permutation: θ^i ← steps up the policy gradient; F ← F · π^i_new / π^i_old
        loss = partial(policy_gradient_loss, entropy_coefficient=settings.entropy_coefficient)
        metrics = one_after_the_other(
            TeamSamples(rollout, self.policies, self.features(rollout)),
            order=random_order(self.generator),
            advantage=lambda agent, factor: factor * advantages[..., agent].flatten(),
            improve=lambda turn: self.steps.descend(turn, loss),
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
