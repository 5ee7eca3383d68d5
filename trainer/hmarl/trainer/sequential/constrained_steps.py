"""A policy improved by one trust-region step: the surrogate, the constraint and what is reported of the step.

Agents (HATRPO, HCPO) and conductors take the same step, each with limits of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from hmarl.trainer.learning.metrics import Figure
from hmarl.trainer.learning.trust_region import TrustRegionSettings, trust_region_step
from hmarl.trainer.networks.distributions import Distribution
from hmarl.trainer.networks.policies import GroupPolicy
from hmarl.trainer.sequential.samples import AgentSamples
from hmarl.trainer.sequential.turns import Improvement


class StepSearch(Protocol):
    """The settings that a trust-region step is searched by."""

    curvature_fraction: float

    def trust_region(self, kl_limit: float) -> TrustRegionSettings:
        """The step's constants with the given δ."""
        ...


class TrustRegionFields(BaseModel):
    """Of algorithms that take trust-region steps: the search; their limits δ belong to those who take them."""

    conjugate_gradient_steps: int = Field(10, ge=1, description="iterations for the natural gradient")
    damping: float = Field(0.01, ge=0, description="added to the KL Hessian's diagonal")
    backtracks: int = Field(10, ge=1, description="tries of the line search")
    backtrack_coefficient: float = Field(0.8, gt=0, lt=1, description="the step shrinks by this factor per try")
    accept_ratio: float = Field(0.5, gt=0, lt=1, description="smallest realised share of the predicted improvement")
    curvature_fraction: float = Field(
        0.25,
        gt=0,
        le=1,
        description="share of the samples in the KL Hessian, every k-th with k = 1/share rounded; the KL limit is "
        "checked on all of them",
    )

    def trust_region(self, kl_limit: float) -> TrustRegionSettings:
        """The step's constants with the given δ."""
        return TrustRegionSettings(
            kl_limit,
            self.conjugate_gradient_steps,
            self.damping,
            self.backtracks,
            self.backtrack_coefficient,
            self.accept_ratio,
        )


class AgentLimitFields(BaseModel):
    """Of algorithms whose agents take trust-region steps."""

    kl_limit: float = Field(0.01, gt=0, description="δ, largest mean KL(old ‖ new) of one agent's step, in nats")
    entropy_coefficient: float = Field(0.0, ge=0, description="weight of the entropy in the surrogate")


def surrogate(new: Distribution, samples: AgentSamples, advantages: Tensor, entropy_coefficient: float = 0.0) -> Tensor:
    """E[ π_new/π_old · F·Â ] (HATRPO Eq. 10; HCPO Eqs. 16 and 17), plus an optional entropy bonus.

    Args:
        new: the candidate policy at the samples.
        samples: of one agent.
        advantages: [M] F·Â.
        entropy_coefficient: weight of the mean entropy.
    """
    value = samples.mean(samples.ratio(new) * advantages, samples.surrogate_weight)
    return value + entropy_coefficient * samples.mean(new.entropy()) if entropy_coefficient else value


def improve_by_trust_region(
    policy: GroupPolicy,
    member: int,
    samples: AgentSamples,
    advantages: Tensor,
    settings: StepSearch,
    *,
    kl_limit: float,
    entropy_coefficient: float = 0.0,
) -> Improvement:
    """θ ← θ + αʲ √(2δ / xᵀHx) · x with x = H⁻¹g (HATRPO Algorithm 1, lines 7–10; HCPO Algorithms 2 and 3), in place.

    Args:
        policy: of the agent's group.
        member: the agent's row in it.
        samples: the agent's part of the rollout; its weights enter the surrogate and the KL.
        advantages: [M] F·Â.
        settings: of the line search.
        kl_limit: δ, nats.
        entropy_coefficient: weight of the mean entropy in the surrogate.

    Returns:
        With the constrained KL, the true (unweighted) mean KL, acceptance, realised and predicted improvement, entropy.
    """
    row = policy.row(member)
    step = trust_region_step(
        row,
        model=lambda theta: samples.under(policy, theta),
        surrogate=lambda new: surrogate(new, samples, advantages, entropy_coefficient),
        kl=lambda new: samples.mean(samples.old.kl(new), samples.kl_weight),
        settings=settings.trust_region(kl_limit),
        curvature_kl=_thinned_kl(policy, samples, settings.curvature_fraction),
    )
    row.copy_(step.theta)
    metrics: dict[str, Figure] = {
        "agent_kl": step.kl,
        "agent_true_kl": samples.mean(samples.old.kl(step.policy)),
        "agent_accepted": float(step.accepted),
        "agent_improvement": step.improvement,
        "agent_predicted_improvement": step.predicted_improvement,
        "agent_entropy": samples.mean(step.policy.entropy()),
    }
    return Improvement(step.policy, metrics)


def _thinned_kl(policy: GroupPolicy, samples: AgentSamples, fraction: float) -> Callable[[Tensor], Tensor] | None:
    """The KL on every 1/fraction-th sample that counts (or chunk), for the Hessian at the old parameters alone; None
    for all.

    Of all samples, every fourth could be of environments or steps that never count: those that do are often as regular.
    """
    if fraction == 1.0:
        return None
    units = torch.arange(samples.units, device=samples.inputs.device)
    if samples.active is not None and samples.memory is None:
        units = units[samples.active > 0]
    part = samples.take(units[:: round(1.0 / fraction)])
    return lambda theta: part.mean(part.old.kl(part.under(policy, theta)), part.kl_weight)
