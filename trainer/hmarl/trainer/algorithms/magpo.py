"""MAGPO: a guider explores as one mind, and is held where local policies can follow.

    1  collect with the guider μ_φ(a|s) = Π_m μ_φ(a^{i_m} | o^{1:N}, a^{i_{1:m−1}})
    2  φ ← descent on
           −E[ min( r·Â, clip(r', 1−ε, 1+ε)·Â ) ] + E[ KL(μ_φ ‖ π_θ) · 1[ μ_φ/π_θ outside (1/δ, δ) ] ] − c·H + c_v·L_V
       with r = μ_φ/μ_old, r' = exp( clip(log μ_φ − log π_θ, ±log δ) + log π_θ − log μ_old )      (Eqs. 7 and 8)
    3  θ ← descent on  λ · (−E[ min( r_π·Â, clip(r_π, 1−ε, 1+ε)·Â ) ]) + E[ KL(μ_φ ‖ π_θ) ],  r_π = π_θ/μ_old (Eq. 10)
    4  backtrack: the guider becomes what the local policies are where it is built as they are (guider=factorised);
       elsewhere the double clip and the masked KL hold it near them

All ratios, clips and divergences are taken agent by agent, μ_φ(·|o^{1:N}, a^{i_{1:m−1}}) beside π_θ(·|o^{i_m}), with
the same Â, and averaged over the agents: on the joint product δ would depend on their number.

Source: Li et al. 2025, "Multi-Agent Guided Policy Optimization", section 4.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.contract.algorithm import StateDict
from hmarl.trainer.contract.shown import ReturnGap
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.guiders.guided_team import GuidedTeam
from hmarl.trainer.guiders.guider import Judged
from hmarl.trainer.guiders.imitation_plot import IMITATION_GAP, ImitationPlot
from hmarl.trainer.guiders.settings import GuidedSettings
from hmarl.trainer.guiders.team_batch import TeamBatch
from hmarl.trainer.learning.imitation import imitation_loss, mean_of_each
from hmarl.trainer.networks.distributions import Distribution
from hmarl.trainer.networks.optimiser import FlatAdam
from hmarl.trainer.networks.settings import AlgorithmSettings
from hmarl.trainer.records.plots import Plot, diagnostics
from hmarl.trainer.sequential.gradient_steps import clipped_surrogate

# Share of actions outside (1/δ, δ) beyond which guider and local policies have parted.
_PARTED = 0.5
# Bounds between which delta=auto moves, and by how much in one update.
_LEAST_DELTA, _LARGEST_DELTA, _DELTA_RATE = 1.05, 4.0, 1.1


class MagpoSettings(GuidedSettings):
    """Settings of MAGPO."""

    recurrent: bool = Field(True, description="local policies remember: a gated recurrent unit after the hidden layers")
    delta: Annotated[float, Field(gt=1)] | Literal["auto"] = Field(
        1.5,
        description="δ, how far guider and local policies may part: ratios μ/π within (1/δ, δ); auto (an "
        "extension): from 1.5 on, as imitation_gap says",
    )
    imitation_gap: float = Field(
        0.02, gt=0, description="with delta=auto: mean KL(μ ‖ π) per agent, in nats, around which δ shrinks or grows"
    )
    reinforcement_weight: float = Field(
        1.0, ge=0, description="λ, weight of the local policies' own surrogate; 0: they only imitate"
    )
    double_clip: bool = Field(
        True,
        description="the guider's surrogate has no gradient away from the local policies beyond δ; False: its ratio is "
        "clipped once, to 1 ± ε (ablation)",
    )
    backtracking: bool = Field(
        True,
        description="where actions lie outside (1/δ, δ) the KL draws the guider to the local policies, or (factorised) "
        "it becomes what they are after every update; False: neither (ablation)",
    )
    learner_learning_rate: float | None = Field(
        None, gt=0, description="Adam's step size for the local policies; by default learning_rate, the guider's"
    )


def doubly_clipped_surrogate(
    log_prob: Tensor, old_log_prob: Tensor, local_log_prob: Tensor, advantages: Tensor, clip: float, delta: float
) -> Tensor:
    """[N, M] min( r·A, clip(r', 1−ε, 1+ε)·A ) of the guider (MAGPO, Eq. 8).

    Args:
        log_prob: [N, M] log μ_φ of the actions.
        old_log_prob: [N, M] log μ_old.
        local_log_prob: [N, M] log π_θ, without gradient.
        advantages: [M].
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


class Magpo(GuidedTeam):
    """A guider learns as one mind, local policies imitate it and hold it where they can follow."""

    settings_class: ClassVar[type[AlgorithmSettings]] = MagpoSettings
    live_metrics: ClassVar[tuple[str, ...]] = ("agent_kl", "imitation_kl", "explained_variance")
    plots: ClassVar[tuple[Plot, ...]] = (
        diagnostics(("agent_entropy", "learner_entropy"), ("agent_kl",)),
        ImitationPlot(),
    )
    gaps: ClassVar[tuple[ReturnGap, ...]] = (IMITATION_GAP,)
    settings: MagpoSettings

    def __init__(
        self, spec: EnvironmentSpec, settings: MagpoSettings, generator: torch.Generator, device: torch.device
    ) -> None:
        super().__init__(spec, settings, generator, device)
        rate = settings.learner_learning_rate or settings.learning_rate
        self.optimisers = [FlatAdam(policy.theta, rate, settings.max_gradient_norm) for policy in self.policies]
        first = 1.5 if settings.delta == "auto" else settings.delta
        self.adapted_delta = torch.tensor(first, dtype=torch.float64, device=device)
        self._delta = first

    # --- learning ---------------------------------------------------------------------------------------------------

    def update(self, rollout: Rollout, progress: float) -> dict[str, float]:
        """As every guided team; then δ follows the imitation gap where it may."""
        self._delta = float(self.adapted_delta)
        metrics = super().update(rollout, progress)
        if self.settings.backtracking and self.guider.backtracks:
            self.guider.backtrack(self.guider_theta, self.policies)
        if self.settings.delta == "auto":
            self._adapt(metrics["imitation_kl"])
        return metrics | {"delta": self._delta}

    def _adapt(self, gap: float) -> None:
        """δ shrinks when the local policies cannot follow, and grows when they follow with ease."""
        limit = self.settings.imitation_gap
        if gap > 1.5 * limit or gap < limit / 1.5:
            bound = self.adapted_delta.log() * (_DELTA_RATE if gap < limit else 1.0 / _DELTA_RATE)
            self.adapted_delta.copy_(bound.exp().clamp(_LEAST_DELTA, _LARGEST_DELTA))

    def advice(self, metrics: dict[str, float]) -> str | None:
        """Guider and local policies have parted when most actions lie beyond δ."""
        if metrics.get("outside_share", 0.0) <= _PARTED:
            return None
        return (
            f"guider and local policies part: more than {_PARTED:.0%} of the actions lie outside (1/δ, δ); what is "
            f"deployed will do worse than the guider. {self.remedy}"
        )

    @property
    def remedy(self) -> str:
        """What helps when guider and local policies part."""
        return (
            f"Lower algorithm.delta (now {self.settings.delta}) or algorithm.learning_rate, or raise "
            "algorithm.learner_learning_rate or algorithm.epochs, so that the local policies can follow"
        )

    def learn(self, part: TeamBatch, order: Tensor, old_log_prob: Tensor, schedule: float) -> dict[str, Tensor]:
        """Guider, then local policies, each with the other held fixed (Eqs. 8 and 10)."""
        judged = self.judge(part, order, self.guider_optimiser.parameter)
        local = self.local_policies(part)
        advantages = part.normalised_advantages()
        metrics = self._guide(part, judged, [each.detach() for each in local], old_log_prob, advantages, schedule)
        teachers = [teacher.detach() for teacher in judged.distributions]
        return metrics | self._follow(part, teachers, local, old_log_prob, advantages, schedule)

    def _guide(
        self,
        part: TeamBatch,
        judged: Judged,
        local: list[Distribution],
        old_log_prob: Tensor,
        advantages: Tensor,
        schedule: float,
    ) -> dict[str, Tensor]:
        """φ ← descent on the guider's loss; ``local`` without gradient."""
        log_prob, local_log_prob = part.log_prob(judged.distributions), part.log_prob(local)
        apart = outside(log_prob.detach(), local_log_prob, self._delta).float()
        divergence = torch.cat([mu.kl(pi) for mu, pi in zip(judged.distributions, local, strict=True)])
        if self.settings.double_clip:
            objective = doubly_clipped_surrogate(
                log_prob, old_log_prob, local_log_prob, advantages, self.settings.clip, self._delta
            )
        else:
            objective = clipped_surrogate((log_prob - old_log_prob).exp(), advantages, self.settings.clip)
        held = self.settings.backtracking and not self.guider.backtracks
        penalty = part.mean(divergence * apart) if held else None
        metrics = self.guider_step(part, judged, objective, penalty, schedule)
        with torch.no_grad():
            return metrics | {
                "agent_kl": part.moved(log_prob - old_log_prob), "imitation_kl": part.mean(divergence),
                "outside_share": part.mean(apart),
            }  # fmt: skip

    def _follow(
        self,
        part: TeamBatch,
        teachers: list[Distribution],
        local: list[Distribution],
        old_log_prob: Tensor,
        advantages: Tensor,
        schedule: float,
    ) -> dict[str, Tensor]:
        """θ ← descent on the local policies' loss; ``teachers`` without gradient."""
        first, norms, entropies = 0, [], []
        for g, (policy, optimiser) in enumerate(zip(self.policies, self.optimisers, strict=True)):
            rows = slice(first, first + policy.members)
            first = rows.stop
            active = None if part.active is None else part.active[rows]
            loss = imitation_loss(teachers[g], local[g], active)
            if self.settings.reinforcement_weight:
                ratio = (part.group_log_prob(g, local[g]) - old_log_prob[rows]).exp()
                surrogate = clipped_surrogate(ratio, advantages, self.settings.clip)
                loss = loss - self.settings.reinforcement_weight * mean_of_each(surrogate, active)
            norms.append(optimiser.step(loss.mean() if policy.shared else loss.sum(), schedule))
            entropies.append(local[g].entropy().detach())
        return {
            "learner_gradient_norm": torch.stack(norms).max(),
            "learner_entropy": part.mean(torch.cat(entropies)),
        }

    def local_policies(self, part: TeamBatch) -> list[Distribution]:
        """Per group [N_group, L·C] π_θ(·|o^i) at the steps of a minibatch, with gradient."""
        view = part.view
        return [
            policy.along(
                view.features[g], view.instruction, view.action_masks[g], part.memories[g], part.begins,
                optimiser.parameter,
            )
            for g, (policy, optimiser) in enumerate(zip(self.policies, self.optimisers, strict=True))
        ]  # fmt: skip

    # --- persistence ------------------------------------------------------------------------------------------------

    def components(self) -> StateDict:
        """The shared parts, the local policies' optimisers and δ."""
        optimisers = {f"optimisers.{g}": optimiser for g, optimiser in enumerate(self.optimisers)}
        return super().components() | optimisers | {"delta": self.adapted_delta}
