"""A guider, and the local policies that follow it: what each of them descends on, with the other held fixed.

The guider descends on (MAGPO, Eqs. 7 and 8)

    −E[ min( r·Â, clip(r', 1−ε, 1+ε)·Â ) ] + E[ KL(μ_φ ‖ π_θ) · 1[ μ_φ/π_θ outside (1/δ, δ) ] ] − c·H + c_v·L_V
    with r = μ_φ/μ_old, r' = exp( clip(log μ_φ − log π_θ, ±log δ) + log π_θ − log μ_old )

and the local policies on (Eq. 10)

    λ · (−E[ min( r_π·Â, clip(r_π, 1−ε, 1+ε)·Â ) ]) + E[ KL(μ_φ ‖ π_θ) ],  r_π = π_θ/μ_old

A ``Bond`` says which of these terms there are: all of them in MAGPO, none that binds the guider in CTDS.

Source: Li et al. 2025, "Multi-Agent Guided Policy Optimization", section 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from hmarl.trainer.guiders.batch import TeamBatch
from hmarl.trainer.guiders.guider import Judged
from hmarl.trainer.guiders.trained import Minibatch, TrainedGuider
from hmarl.trainer.learning.imitation import imitation_loss, mean_of_each
from hmarl.trainer.networks.distributions import Distribution
from hmarl.trainer.networks.optimiser import FlatAdam
from hmarl.trainer.networks.policies import GroupPolicy
from hmarl.trainer.sequential.gradient_steps import clipped_surrogate

# What delta=auto starts from, the bounds between which it moves, and by how much in one update.
_FIRST_DELTA, _LEAST_DELTA, _LARGEST_DELTA, _DELTA_RATE = 1.5, 1.05, 4.0, 1.1


class BondSettings(Protocol):
    """The settings that bind a guider and its followers."""

    clip: float
    double_clip: bool
    backtracking: bool
    reinforcement_weight: float


@dataclass(frozen=True)
class Bond:
    """What holds a guider and its followers together.

    Attributes:
        clip: ε.
        delta: δ.
        double_clip: whether the guider's ratio is clipped about the local policies as well.
        drawn: whether the KL draws the guider to the local policies where they have parted by more than δ.
        reinforcement_weight: λ.
    """

    clip: float
    delta: float
    double_clip: bool
    drawn: bool
    reinforcement_weight: float

    @classmethod
    def of(cls, settings: BondSettings, delta: float, guider: TrainedGuider) -> Bond:
        """As the settings say; a guider that becomes what its followers are after every update is not drawn as well."""
        drawn = settings.backtracking and not guider.network.backtracks
        return cls(settings.clip, delta, settings.double_clip, drawn, settings.reinforcement_weight)


class Delta:
    """δ: a number, or ``auto``, which follows the imitation gap.

    Args:
        setting: as the user chose it.
        gap: mean KL(μ ‖ π) per agent, in nats, around which it moves.
        device: where it lives.

    Attributes:
        value: scalar float64.
    """

    def __init__(self, setting: float | Literal["auto"], gap: float, device: torch.device) -> None:
        first = _FIRST_DELTA if setting == "auto" else setting
        self.value = torch.tensor(first, dtype=torch.float64, device=device)
        self._gap, self._moves = gap, setting == "auto"

    def adapt(self, gap: float) -> None:
        """δ shrinks when the local policies cannot follow, and grows when they follow with ease."""
        if self._moves and (gap > 1.5 * self._gap or gap < self._gap / 1.5):
            bound = self.value.log() * (_DELTA_RATE if gap < self._gap else 1.0 / _DELTA_RATE)
            self.value.copy_(bound.exp().clamp(_LEAST_DELTA, _LARGEST_DELTA))


def doubly_clipped_surrogate(
    log_prob: Tensor, old_log_prob: Tensor, local_log_prob: Tensor, advantages: Tensor, clip: float, delta: float
) -> Tensor:
    """[N, M] min( r·A, clip(r', 1−ε, 1+ε)·A ) of the guider (MAGPO, Eq. 8).

    Args:
        log_prob: [N, M] log μ_φ of the actions.
        old_log_prob: [N, M] log μ_old.
        local_log_prob: [N, M] log π_θ, without gradient.
        advantages: [N, M], or [M] the same for all.
        clip: ε.
        delta: δ.
    """
    bound = math.log(delta)
    held = (log_prob - local_log_prob).clamp(-bound, bound) + local_log_prob  # log μ_φ, held within δ of π_θ
    doubly = (held - old_log_prob).exp().clamp(1.0 - clip, 1.0 + clip)
    return torch.minimum((log_prob - old_log_prob).exp() * advantages, doubly * advantages)


def outside(log_prob: Tensor, local_log_prob: Tensor, delta: float) -> Tensor:
    """[N, M] bool: where μ_φ/π_θ of the actions lies outside (1/δ, δ)."""
    return (log_prob - local_log_prob).abs() >= math.log(delta)


class Followers:
    """Local policies that follow a guider, and their optimisers.

    Args:
        policies: per group.
        learning_rate: Adam's step size.
        max_gradient_norm: gradients are scaled down to this norm.

    Attributes:
        optimisers: one a group.
    """

    def __init__(self, policies: list[GroupPolicy], learning_rate: float, max_gradient_norm: float) -> None:
        self.policies = policies
        self.optimisers = [FlatAdam(policy.theta, learning_rate, max_gradient_norm) for policy in policies]

    def distributions(self, part: TeamBatch) -> list[Distribution]:
        """Per group [N_group, L·C] π_θ(·|o^i) at the steps of a minibatch, with gradient."""
        view = part.view
        return [
            policy.along(
                view.features[g],
                view.instruction,
                view.action_masks[g],
                part.memories[g],
                part.begins,
                optimiser.parameter,
                None if view.there is None else view.there[g],
            )
            for g, (policy, optimiser) in enumerate(zip(self.policies, self.optimisers, strict=True))
        ]

    def components(self) -> dict[str, object]:
        """The optimisers, as ``Algorithm.components`` names them."""
        return {f"optimisers.{g}": optimiser for g, optimiser in enumerate(self.optimisers)}


@dataclass(frozen=True)
class Moment:
    """What guider and local policies learn from at the same time.

    Attributes:
        part: the minibatch.
        old_log_prob: [N, L·C] log μ_old of its actions.
        advantages: [N, L·C], or [L·C] the same for all.
    """

    part: TeamBatch
    old_log_prob: Tensor
    advantages: Tensor


def guide_and_follow(
    guider: TrainedGuider, followers: Followers, minibatch: Minibatch, bond: Bond, schedule: float
) -> dict[str, Tensor]:
    """Guider, then local policies, each with the other held fixed (Eqs. 8 and 10); the local policies alone where the
    guider learns no more.

    Returns:
        Metrics, scalars.
    """
    part = minibatch.part
    moment, local = Moment(part, minibatch.old_log_prob, part.normalised_advantages()), followers.distributions(part)
    if minibatch.teachers is not None:
        return follow(followers, moment, minibatch.teachers, local, bond, schedule)
    judged = guider.judge(part, minibatch.order)
    metrics = guide(guider, moment, judged, [each.detach() for each in local], bond, schedule)
    teachers = [teacher.detach() for teacher in judged.distributions]
    return metrics | follow(followers, moment, teachers, local, bond, schedule)


def guide(
    guider: TrainedGuider,
    moment: Moment,
    judged: Judged,
    local: Sequence[Distribution],
    bond: Bond,
    schedule: float,
) -> dict[str, Tensor]:
    """φ ← descent on the guider's loss (Eq. 8).

    Args:
        guider: who learns.
        moment: of the minibatch.
        judged: the guider there, with gradient.
        local: per group [N_group, L·C] the local policies there, without gradient.
        bond: which terms there are.
        schedule: factor on the step size.
    """
    part, old_log_prob, advantages = moment.part, moment.old_log_prob, moment.advantages
    log_prob, local_log_prob = part.log_prob(judged.distributions), part.log_prob(local)
    apart = outside(log_prob.detach(), local_log_prob, bond.delta).float()
    divergence = torch.cat([mu.kl(pi) for mu, pi in zip(judged.distributions, local, strict=True)])
    if bond.double_clip:
        objective = doubly_clipped_surrogate(log_prob, old_log_prob, local_log_prob, advantages, bond.clip, bond.delta)
    else:
        objective = clipped_surrogate((log_prob - old_log_prob).exp(), advantages, bond.clip)
    penalty = part.mean(divergence * apart) if bond.drawn else None
    metrics = guider.descend(part, judged, objective, penalty, schedule)
    with torch.no_grad():
        return metrics | {
            "agent_kl": part.moved(log_prob - old_log_prob),
            "imitation_kl": part.mean(divergence),
            "outside_share": part.mean(apart),
        }


def follow(
    followers: Followers,
    moment: Moment,
    teachers: Sequence[Distribution],
    local: Sequence[Distribution],
    bond: Bond,
    schedule: float,
) -> dict[str, Tensor]:
    """θ ← descent on the local policies' loss (Eq. 10).

    Args:
        followers: who learn.
        moment: of the minibatch.
        teachers: per group [N_group, L·C] the guider there, without gradient.
        local: the local policies there, with gradient.
        bond: which terms there are.
        schedule: factor on the step sizes.
    """
    part, old_log_prob, advantages = moment.part, moment.old_log_prob, moment.advantages
    first, norms, entropies = 0, [], []
    for g, (policy, optimiser) in enumerate(zip(followers.policies, followers.optimisers, strict=True)):
        rows = slice(first, first + policy.members)
        first = rows.stop
        active = None if part.active is None else part.active[rows]
        loss = imitation_loss(teachers[g], local[g], active)
        if bond.reinforcement_weight:
            ratio = (part.group_log_prob(g, local[g]) - old_log_prob[rows]).exp()
            surrogate = clipped_surrogate(ratio, advantages.expand_as(old_log_prob)[rows], bond.clip)
            loss = loss - bond.reinforcement_weight * mean_of_each(surrogate, active)
        norms.append(optimiser.step(loss.mean() if policy.shared else loss.sum(), schedule))
        entropies.append(local[g].entropy().detach())
    return {
        "learner_gradient_norm": torch.stack(norms).max(),
        "learner_entropy": part.mean(torch.cat(entropies)),
    }
