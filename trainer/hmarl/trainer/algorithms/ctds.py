"""CTDS: a centralised teacher learns as if no agent had to follow it; decentralised students imitate it.

A reference for MAGPO: where the teacher's joint policy is no product of local ones, the students cannot be what they
imitate.

Source: Zhao et al. 2022, "CTDS: Centralized Teacher with Decentralized Student for Multi-Agent Reinforcement
Learning", in the form of MAGPO's comparison: MAT's surrogate for the teacher, KL(μ ‖ π) alone for the students.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.contract.algorithm import Algorithm, StateDict
from hmarl.trainer.contract.shown import EvaluatedTeam, ReturnGap
from hmarl.trainer.contract.teacher import Teacher
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.guiders.acting import GuidedActing
from hmarl.trainer.guiders.advice import alike, collapsed, parted
from hmarl.trainer.guiders.guidance import Guidance
from hmarl.trainer.guiders.imitation_plot import IMITATION_GAP, ImitationPlot
from hmarl.trainer.guiders.settings import FollowerFields, GuiderFields
from hmarl.trainer.guiders.teacher import GuiderTeacher
from hmarl.trainer.guiders.teams import CentralTeam
from hmarl.trainer.guiders.trained import TrainedGuider
from hmarl.trainer.learning.advice import given
from hmarl.trainer.networks.settings import AlgorithmSettings, CreditFields, GradientStepFields, PolicyGradientFields
from hmarl.trainer.records.plots import Plot, diagnostics


class CtdsSettings(
    FollowerFields, GuiderFields, CreditFields, PolicyGradientFields, AlgorithmSettings, GradientStepFields
):
    """Settings of CTDS: MAGPO with nothing that binds teacher and students."""

    recurrent: bool = Field(True, description="local policies remember: a gated recurrent unit after the hidden layers")
    reinforcement_weight: float = Field(0.0, ge=0, description="λ, weight of the students' own surrogate; 0 is CTDS")
    double_clip: bool = Field(False, description="True would hold the teacher within δ of the students")
    backtracking: bool = Field(False, description="True would draw the teacher to the students")


class Ctds(Algorithm):
    """Plain distillation of a centralised teacher into local policies, on the same batches."""

    settings_class: ClassVar[type[AlgorithmSettings]] = CtdsSettings
    live_metrics: ClassVar[tuple[str, ...]] = ("agent_kl", "imitation_kl", "explained_variance")
    plots: ClassVar[tuple[Plot, ...]] = (
        diagnostics(("agent_entropy", "learner_entropy"), ("agent_kl",)),
        ImitationPlot(),
    )
    gaps: ClassVar[tuple[ReturnGap, ...]] = (IMITATION_GAP,)
    settings: CtdsSettings

    def __init__(
        self, spec: EnvironmentSpec, settings: CtdsSettings, generator: torch.Generator, device: torch.device
    ) -> None:
        super().__init__(spec, settings, generator, device)
        self.guider = TrainedGuider(self.actors, self.state_normaliser, settings, 0, generator)
        self.guidance = Guidance(self.guider, self.policies, settings, device)
        self.acting = self.guided = GuidedActing(self.guider, self.local_acting)

    def update(self, rollout: Rollout, progress: float) -> dict[str, float]:
        """Teacher and students learn side by side; the bond between them has no terms unless the settings add some."""
        schedule = self.schedule(progress)
        # V as it was said when acting, Â(s, a) by GAE, and the λ-returns R; or each agent's own, Vⁱ, Âⁱ and Rⁱ
        estimate = self.guider.estimate(rollout, self.guided.remembered())
        explained = self.guider.adopt_units(rollout, estimate)
        batch = self.guider.batch(rollout, estimate, self.guided.order)
        # for every epoch, with an order i_1 … i_N of its own, and every minibatch:
        #     φ ← descent on −E[ min(r·Â, clip(r, 1−ε, 1+ε)·Â) ] − c·H + c_v·L_V    (MAT, Eq. 5)
        #     θ ← descent on E[ KL(μ_φ ‖ π_θ) ]
        metrics = self.guidance.learn(batch, self.noise_generator, schedule)
        # off by default: the teacher becomes what the students are, where it is built as they are
        self.guidance.backtrack(metrics["imitation_kl"])
        self.update_normalisers(rollout)
        return metrics | alike(rollout) | {"explained_variance": explained}

    def advice(self, metrics: dict[str, float]) -> list[str]:
        """Guider and local policies have parted when most actions lie beyond δ; or all agents do the same."""
        of_guider = parted(metrics, "Nothing binds the teacher of ctds to its students; magpo does")
        return given(of_guider, collapsed(metrics, self.settings))

    # --- what it is judged by, and distilled ------------------------------------------------------------------------

    def teams(self, sample: bool = False) -> dict[str, EvaluatedTeam]:
        """The local policies, and the guider acting for the whole team."""
        return super().teams(sample) | {CentralTeam.name: CentralTeam(self.guider, sample)}

    def teacher(self) -> Teacher:
        """The guider."""
        return GuiderTeacher(self.guider)

    def components(self) -> StateDict:
        """The shared parts, the guider, the local policies' optimisers and δ."""
        return super().components() | self.guidance.components()
