"""HAMDPO: several gradient steps on a mirror-descent objective for one agent after the other.

    π^i_{k+1} ← argmax E[ π/π_k · F · Â ] − (1/η_k) · KL(π ‖ π_k)

Without a clip and without second derivatives, the divergence alone keeps the new policy near the old one. Solved
exactly for a tabular policy, the step is π_{k+1}(a|s) ∝ π_k(a|s) · exp(η_k Â(s, a)).

Source: Nasiri and Rezghi 2023, "Heterogeneous Multi-Agent Reinforcement Learning via Mirror Descent Policy
Optimization"; Tomar et al. 2022 (MDPO) for a single agent.
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
from hmarl.trainer.learning.critic import Critic
from hmarl.trainer.networks.distributions import Distribution
from hmarl.trainer.networks.settings import (
    AlgorithmSettings,
    CreditFields,
    CriticFields,
    GradientStepFields,
    PolicyGradientFields,
)
from hmarl.trainer.sequential.estimates import advantages_of_agents, fit_joint, joint_estimate, valued_agents
from hmarl.trainer.sequential.gradient_steps import GradientSteps
from hmarl.trainer.sequential.samples import TeamSamples
from hmarl.trainer.sequential.turns import Turn, one_after_the_other, random_order


class HamdpoSettings(CreditFields, CriticFields, PolicyGradientFields, AlgorithmSettings, GradientStepFields):
    """Settings of HAMDPO; ``epochs`` × ``minibatches`` is the number of gradient steps per agent update."""

    epochs: int = Field(10, ge=1, description="passes over the rollout per agent update")
    step_size: float = Field(1.0, gt=0, description="η₀, weight 1/η of the divergence at the start")
    step_size_floor: float = Field(0.05, gt=0, le=1, description="η falls linearly to this share of η₀")
    kl_regularisation: bool = Field(True, description="False leaves the divergence out (ablation)")


def step_size(settings: HamdpoSettings, progress: float) -> float:
    """η_k = η₀ · max(1 − k/K_total, floor)."""
    return settings.step_size * max(1.0 - progress, settings.step_size_floor)


def mirror_descent_loss(new: Distribution, turn: Turn, settings: HamdpoSettings) -> Tensor:
    """−E[ r · F · Â ] + (1/η_k) · KL(π_new ‖ π_old) − c · H."""
    samples = turn.samples
    loss = -samples.mean(samples.ratio(new) * turn.advantages, samples.surrogate_weight)
    loss = loss - settings.entropy_coefficient * samples.mean(new.entropy())
    if settings.kl_regularisation:
        loss = loss + samples.mean(new.kl(samples.old), samples.kl_weight) / step_size(settings, turn.progress)
    return loss


def divergence_report(new: Distribution, turn: Turn, settings: HamdpoSettings) -> dict[str, float]:
    """The step size in force and the divergence that it weighs."""
    divergence = turn.samples.mean(new.kl(turn.samples.old))
    return {"step_size": step_size(settings, turn.progress), "agent_reverse_kl": float(divergence)}


class Hamdpo(Algorithm):
    """Each agent takes several gradient steps on its mirror-descent objective."""

    settings_class: ClassVar[type[AlgorithmSettings]] = HamdpoSettings
    settings: HamdpoSettings

    def __init__(
        self, spec: EnvironmentSpec, settings: HamdpoSettings, generator: torch.Generator, device: torch.device
    ) -> None:
        super().__init__(spec, settings, generator, device)
        self.critic = Critic(spec.state_size, settings, generator, device, valued_agents(spec, settings.credit))
        self.steps = GradientSteps(self.policies, settings, self.noise_generator)

    def update(self, rollout: Rollout, progress: float) -> dict[str, float]:
        """θ^{i_m} ← descent on −E[ r·F·Â ] + KL(π ‖ π_k)/η_k for m = 1 … N."""
        settings, schedule = self.settings, self.schedule(progress)
        # Â(s, a) by GAE, and the λ-returns R; or each agent's own, Âⁱ and Rⁱ
        estimate = joint_estimate(rollout, self.critic, self.state_normaliser, settings)
        advantages = advantages_of_agents(rollout, estimate)
        # for i_1 … i_N, a random permutation: θ^i ← descent on the mirror-descent loss; F ← F · π^i_new / π^i_old
        loss = partial(mirror_descent_loss, settings=settings)
        report = partial(divergence_report, settings=settings)
        metrics = one_after_the_other(
            TeamSamples(rollout, self.policies, self.features(rollout)),
            order=random_order(self.generator),
            advantage=lambda agent, factor: factor * advantages[..., agent].flatten(),
            improve=lambda turn: self.steps.descend(turn, loss, report),
            schedule=schedule,
            progress=progress,
        )
        # φ ← argmin E[ (V_φ(s) − R)² ]
        metrics |= fit_joint(self.critic, rollout, estimate, self.noise_generator, schedule)
        self.update_normalisers(rollout)
        return metrics

    def components(self) -> StateDict:
        """The shared parts, the critic and the optimisers."""
        return {"critic": self.critic, **super().components(), **self.steps.components()}
