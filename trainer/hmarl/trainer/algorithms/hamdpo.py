"""HAMDPO: several gradient steps on a mirror-descent objective for one agent after the other.

    π^i_{k+1} ← argmax E[ π/π_k · F · Â ] − (1/η_k) · KL(π ‖ π_k)

Without a clip and without second derivatives, the divergence alone keeps the new policy near the old one. Solved
exactly for a tabular policy, the step is π_{k+1}(a|s) ∝ π_k(a|s) · exp(η_k Â(s, a)).

How large η may be depends on the task and on how far training has come. So each agent has an η of its own, which
follows the divergence that it brings (``step_size_schedule=adaptive``):

    KL(π^i_{k+1} ‖ π^i_k) > 1.5 · target  ⇒  η^i ← η^i / 2, and no epoch follows where it is so after one
    KL(π^i_{k+1} ‖ π^i_k) < target / 1.5  ⇒  η^i ← 2 · η^i

Source: Nasiri and Rezghi 2023, "Heterogeneous Multi-Agent Reinforcement Learning via Mirror Descent Policy
Optimization"; Tomar et al. 2022 (MDPO) for a single agent; Schulman et al. 2017, section 4, for adapting 1/η.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.contract.algorithm import Algorithm, StateDict
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.learning.critic import Critic
from hmarl.trainer.learning.metrics import Figure
from hmarl.trainer.networks.distributions import Distribution
from hmarl.trainer.networks.settings import (
    AlgorithmSettings,
    CreditFields,
    CriticFields,
    GradientStepFields,
    OnlyWith,
    PolicyGradientFields,
)
from hmarl.trainer.sequential.estimates import advantages_of_agents, fit_joint, joint_estimate, valued_agents
from hmarl.trainer.sequential.gradient_steps import GradientSteps
from hmarl.trainer.sequential.samples import TeamSamples
from hmarl.trainer.sequential.turns import Improvement, Turn, one_after_the_other, random_order

TOLERANCE = 1.5  # a factor about the target within which a divergence is as wished
RANGE = 100.0  # η stays within this factor of η₀


class HamdpoSettings(CreditFields, CriticFields, PolicyGradientFields, AlgorithmSettings, GradientStepFields):
    """Settings of HAMDPO; ``epochs`` × ``minibatches`` is the number of gradient steps per agent update."""

    before: ClassVar[Mapping[str, Any]] = {"step_size_schedule": "linear"}

    epochs: int = Field(10, ge=1, description="passes over the rollout per agent update")
    step_size: float = Field(1.0, gt=0, description="η₀, weight 1/η of the divergence at the start")
    step_size_schedule: Literal["adaptive", "linear"] = Field(
        "adaptive",
        description="adaptive: each agent's η follows its divergence, which is to be kl_target; linear: η falls to "
        "step_size_floor ⋅ η₀, as printed",
    )
    kl_target: Annotated[float, OnlyWith("step_size_schedule", "adaptive")] = Field(
        0.01,
        gt=0,
        description="KL(new ‖ old) of an agent's update; beyond 1.5 times of it no further epoch follows",
    )
    learning_rate_follows: Annotated[bool, OnlyWith("step_size_schedule", "adaptive")] = Field(
        False,
        description="an agent whose η is below η₀ takes Adam's steps in proportion "
        "smaller, so that they stay small beside what η allows; False: all are of learning_rate",
    )
    step_size_floor: Annotated[float, OnlyWith("step_size_schedule", "linear")] = Field(
        0.05, gt=0, le=1, description="η falls to this share of η₀"
    )
    sequential_factor: bool = Field(
        True, description="F, the ratios of the agents before, in each agent's advantage; False: Â alone (ablation)"
    )
    sequential_factor_clip: Annotated[float | None, OnlyWith("sequential_factor", True)] = Field(
        None,
        gt=0,
        lt=1,
        description="c, F is clipped to [1−c, 1+c], as A2PO clips the ratios of the agents before; null: F as it is",
    )
    kl_regularisation: bool = Field(True, description="False leaves the divergence out (ablation)")


def annealed_step_size(settings: HamdpoSettings, progress: float) -> float:
    """η_k = η₀ · max(1 − k/K_total, floor)."""
    return settings.step_size * max(1.0 - progress, settings.step_size_floor)


def adapted_step_size(step_size: float, divergence: float, settings: HamdpoSettings) -> float:
    """η of an agent's next update, by the KL(new ‖ old) that this one brought."""
    if divergence > TOLERANCE * settings.kl_target:
        return max(step_size / 2.0, settings.step_size / RANGE)
    if divergence < settings.kl_target / TOLERANCE:
        return min(step_size * 2.0, settings.step_size * RANGE)
    return step_size


def heeded(factor: Tensor, settings: HamdpoSettings) -> Tensor:
    """[M] F, or clip(F, 1 ± c): no sample may outweigh all others."""
    clip = settings.sequential_factor_clip
    return factor if clip is None else factor.clamp(1.0 - clip, 1.0 + clip)


def divergence(new: Distribution, turn: Turn) -> Tensor:
    """KL(π_new ‖ π_old), mean over the turn's samples, a scalar."""
    return turn.samples.mean(new.kl(turn.samples.old), turn.samples.kl_weight)


def mirror_descent_loss(new: Distribution, turn: Turn, settings: HamdpoSettings, step_size: float) -> Tensor:
    """−E[ r · F · Â ] + (1/η) · KL(π_new ‖ π_old) − c · H."""
    samples = turn.samples
    loss = -samples.mean(samples.ratio(new) * turn.advantages, samples.surrogate_weight)
    loss = loss - settings.entropy_coefficient * samples.mean(new.entropy())
    if settings.kl_regularisation:
        loss = loss + divergence(new, turn) / step_size
    return loss


def divergence_report(new: Distribution, turn: Turn, step_size: float) -> dict[str, Figure]:
    """The step size in force and the divergence that it weighs."""
    return {"step_size": step_size, "agent_reverse_kl": divergence(new, turn)}


class Hamdpo(Algorithm):
    """Each agent takes several gradient steps on its mirror-descent objective.

    The arguments are ``Algorithm``'s.

    Attributes:
        critic: V.
        steps: the agents' optimisers.
        step_sizes: [N] float32 η of every agent's next update, where they adapt.
    """

    settings_class: ClassVar[type[AlgorithmSettings]] = HamdpoSettings
    sees_images: ClassVar[bool] = True
    settings: HamdpoSettings

    def __init__(
        self, spec: EnvironmentSpec, settings: HamdpoSettings, generator: torch.Generator, device: torch.device
    ) -> None:
        super().__init__(spec, settings, generator, device)
        outputs = valued_agents(spec, settings.credit)
        self.critic = Critic(spec.state_size, settings, generator, device, outputs, spec.state_image)
        self.steps = GradientSteps(self.policies, settings, self.noise_generator)
        self.step_sizes = torch.full((len(spec.agents),), settings.step_size)

    def update(self, rollout: Rollout, progress: float) -> dict[str, float]:
        """θ^{i_m} ← descent on −E[ r·F·Â ] + KL(π ‖ π_k)/η_k for m = 1 … N."""
        settings, schedule = self.settings, self.schedule(progress)
        # Â(s, a) by GAE, and the λ-returns R; or each agent's own, Âⁱ and Rⁱ
        estimate = joint_estimate(rollout, self.critic, self.state_normaliser, settings)
        advantages = advantages_of_agents(rollout, estimate)

        def advantage(agent: int, factor: Tensor) -> Tensor:
            own = advantages[..., agent].flatten()
            return heeded(factor, settings) * own if settings.sequential_factor else own

        # for i_1 … i_N, a random permutation: θ^i ← descent on the mirror-descent loss; F ← F · π^i_new / π^i_old
        metrics = one_after_the_other(
            TeamSamples(rollout, self.policies, self.features(rollout)),
            order=random_order(self.generator),
            advantage=advantage,
            improve=self.improve,
            schedule=schedule,
            progress=progress,
        )
        # φ ← argmin E[ (V_φ(s) − R)² ]
        metrics |= fit_joint(self.critic, rollout, estimate, self.noise_generator, schedule)
        self.update_normalisers(rollout)
        return metrics

    def improve(self, turn: Turn) -> Improvement:
        """Descends one agent's loss, and fits its step size to the divergence that came of it."""
        settings, adaptive = self.settings, self.settings.step_size_schedule == "adaptive"
        step_size = float(self.step_sizes[turn.agent]) if adaptive else annealed_step_size(settings, turn.progress)

        def gone_far(new: Distribution) -> bool:
            return bool(divergence(new, turn) > TOLERANCE * settings.kl_target)

        loss = partial(mirror_descent_loss, settings=settings, step_size=step_size)
        report = partial(divergence_report, step_size=step_size)
        if adaptive and settings.learning_rate_follows:
            turn = replace(turn, schedule=turn.schedule * min(1.0, step_size / settings.step_size))
        improvement = self.steps.descend(turn, loss, report, gone_far if adaptive else None)
        active = turn.samples.active
        if adaptive and (active is None or bool(active.any())):  # one who was never there has not moved
            moved = float(divergence(improvement.policy, turn))
            self.step_sizes[turn.agent] = adapted_step_size(step_size, moved, settings)
        return improvement

    def components(self) -> StateDict:
        """The shared parts, the critic, the optimisers and the step sizes."""
        shared = super().components()
        adapted = {"step_sizes": self.step_sizes} if self.settings.step_size_schedule == "adaptive" else {}
        return {"critic": self.critic, **shared, **self.steps.components(), **adapted}
