"""Guided HCPO: a conductor above MAGPO's guider and local policies.

An extension that joins two ideas: HCPO's conductor says what the team shall do, MAGPO's guider finds out how to do it
as one mind, and the agents learn to follow both. In each iteration

    1  a conductor w(M|s) instructs, the guider μ(a|s, M) acts
    2  w improves by a trust-region step and the local conductors follow it (HCPO, Algorithm 2; Algorithm 1, line 10)
    3  guider and local policies π^i(a^i|o^i, M) improve as in MAGPO (Eqs. 8 and 10), every step weighted by
       w_new(M|s)/w_old(M|s)

The guider's value does not see the instruction, so that the advantage tells how good the instruction was. What is
deployed is HCPO's: each agent draws its instruction from its local conductor, and acts on its own observation.

Source: Liu et al. 2025 (HCPO) and Li et al. 2025 (MAGPO); the combination is this project's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.conductors.acting import ConductedActing
from hmarl.trainer.conductors.advice import conductor_advice
from hmarl.trainer.conductors.level import ConductorLevel
from hmarl.trainer.conductors.settings import ConductorFields
from hmarl.trainer.conductors.stand_ins import LocalStandIns
from hmarl.trainer.conductors.teacher import ConductedTeacher
from hmarl.trainer.conductors.teams import conducted_teams
from hmarl.trainer.contract.algorithm import Algorithm, StateDict
from hmarl.trainer.contract.deployable import Instructing
from hmarl.trainer.contract.shown import EvaluatedTeam, ReturnGap
from hmarl.trainer.contract.stand_ins import StandIns
from hmarl.trainer.contract.teacher import Teacher
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.guiders.acting import GuidedActing
from hmarl.trainer.guiders.advice import alike, collapsed, parted, to_follow
from hmarl.trainer.guiders.guidance import Guidance
from hmarl.trainer.guiders.imitation_plot import IMITATION_GAP, ImitationPlot
from hmarl.trainer.guiders.settings import FollowerFields, GuiderFields
from hmarl.trainer.guiders.teams import CentralTeam
from hmarl.trainer.guiders.trained import TrainedGuider
from hmarl.trainer.learning.advice import given
from hmarl.trainer.networks.settings import AlgorithmSettings, GradientStepFields, PolicyGradientFields
from hmarl.trainer.records.plots import Plot, diagnostics
from hmarl.trainer.sequential.constrained_steps import TrustRegionFields


class GuidedHcpoSettings(
    FollowerFields,
    GuiderFields,
    PolicyGradientFields,
    ConductorFields,
    TrustRegionFields,
    AlgorithmSettings,
    GradientStepFields,
):
    """Settings of guided HCPO: those of MAGPO and of HCPO's conductor."""

    before: ClassVar[Mapping[str, Any]] = {}
    without_effect: ClassVar[frozenset[str]] = frozenset({"team_value"})

    recurrent: bool = Field(
        False, description="local policies remember: a gated recurrent unit after the hidden layers"
    )
    credit: Literal["team"] = Field("team", description="instructions are judged by the team's reward")
    instruction_weight: Literal["ratio"] = Field("ratio", description="steps are weighted by w_new/w_old")


class GuidedHcpo(Algorithm):
    """MAGPO under HCPO's conductor, with local conductors for deployment (an extension)."""

    settings_class: ClassVar[type[AlgorithmSettings]] = GuidedHcpoSettings
    live_metrics: ClassVar[tuple[str, ...]] = (
        "agent_kl",
        "imitation_kl",
        "conductor_kl",
        "instruction_entropy",
        "explained_variance",
    )
    plots: ClassVar[tuple[Plot, ...]] = (
        diagnostics(("agent_entropy", "learner_entropy", "instruction_entropy"), ("agent_kl", "conductor_kl")),
        ImitationPlot(),
    )
    gaps: ClassVar[tuple[ReturnGap, ...]] = (IMITATION_GAP,)
    settings: GuidedHcpoSettings

    def __init__(
        self, spec: EnvironmentSpec, settings: GuidedHcpoSettings, generator: torch.Generator, device: torch.device
    ) -> None:
        settings.check_roles(spec.groups)
        super().__init__(spec, settings, generator, device)
        self.guider = TrainedGuider(self.actors, self.state_normaliser, settings, self.context_size, generator)
        self.guidance = Guidance(self.guider, self.policies, settings, device)
        self.conductor = ConductorLevel(spec, settings, self.state_normaliser, generator, device)
        self.guided = GuidedActing(self.guider, self.local_acting)
        self.acting = ConductedActing(self.guided, self.conductor, self.noise_generator)

    @property
    def context_size(self) -> int:
        """K, the width of the one-hot instruction, or D of a continuous one."""
        return self.settings.instruction_head.output_size

    @property
    def roles(self) -> int:
        """K, where instructions hand out roles."""
        return self.settings.roles

    def update(self, rollout: Rollout, progress: float) -> dict[str, float]:
        """Lines 2 and 3; then δ follows the imitation gap where it may."""
        settings, schedule = self.settings, self.schedule(progress)
        # V as it was said when acting, Â(s, a) by GAE, and the λ-returns R
        estimate = self.guider.estimate(rollout, self.guided.remembered())
        # 2: Ψ ← trust-region step on A(M|s); ψ^i ← argmin −E_{w_new}[log ψ^i]
        instructed = self.conductor.improve(
            rollout,
            estimate.states,
            self.conductor.decision_advantages(rollout, estimate, settings.gae_lambda),
            self.features(rollout),
            self.noise_generator,
            schedule,
        )
        # 3: every step weighted by w_new(M|s)/w_old(M|s), for every epoch and minibatch as in MAGPO:
        #     φ ← descent on −E[ min(r·Â, clip(r')·Â) ] + E[ KL(μ_φ ‖ π_θ) · 1[outside (1/δ, δ)] ] − c·H + c_v·L_V
        #     θ ← descent on λ · (−E[ min(r_π·Â, clip(r_π)·Â) ]) + E[ KL(μ_φ ‖ π_θ) ]
        explained = self.guider.adopt_units(rollout, estimate)
        batch = self.guider.batch(
            rollout,
            estimate,
            self.guided.order,
            self.conductor.seen_of(rollout.extras["instruction"]),
            instructed.ratio.view(rollout.terminated.shape),
        )
        metrics = self.guidance.learn(batch, self.noise_generator, schedule)
        # the guider becomes what the local policies are, where it is built as they are
        self.guidance.backtrack(metrics["imitation_kl"])
        self.update_normalisers(rollout)
        self.conductor.sight.learn(rollout)
        return instructed.metrics | metrics | alike(rollout) | {"explained_variance": explained}

    def advice(self, metrics: dict[str, float]) -> list[str]:
        """Guider and local policies have parted when most actions lie beyond δ; all agents do the same; and what a
        conductor may bring.
        """
        of_guider = parted(metrics, to_follow(self.settings))
        return given(of_guider, collapsed(metrics, self.settings)) + conductor_advice(metrics)

    # --- what it is judged by, and distilled ------------------------------------------------------------------------

    def teams(self, sample: bool = False) -> dict[str, EvaluatedTeam]:
        """The local policies, the guider under the conductor, and the conductors that are not deployed."""
        guided = CentralTeam(self.guider, sample, self.conductor)
        conducted = conducted_teams(self.actors, self.conductor, sample)
        return super().teams(sample) | {CentralTeam.name: guided} | conducted

    def teacher(self) -> Teacher | None:
        """The agents under the central conductor; none where every agent has a copy of it."""
        return ConductedTeacher(self.actors, self.conductor) if self.conductor.common is None else None

    def stand_ins(self) -> StandIns | None:
        """The local conductors; none where every agent has a copy of the conductor."""
        return LocalStandIns.of(self.actors, self.conductor)

    def instructing(self, agent: int) -> Instructing:
        """w^i, which stands in for the conductor when deployed, or a copy of it."""
        return self.conductor.instructing(agent, *self.position[agent])

    def components(self) -> StateDict:
        """The shared parts, the guider, the local policies' optimisers, δ and the conductor's level."""
        return super().components() | self.guidance.components() | self.conductor.components()
