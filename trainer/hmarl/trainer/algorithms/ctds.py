"""CTDS: a centralised teacher learns as if no agent had to follow it; decentralised students imitate it.

A reference for MAGPO: where the teacher's joint policy is no product of local ones, the students cannot be what they
imitate.

Source: Zhao et al. 2022, "CTDS: Centralized Teacher with Decentralized Student for Multi-Agent Reinforcement
Learning", in the form of MAGPO's comparison: MAT's surrogate for the teacher, KL(μ ‖ π) alone for the students.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from hmarl.trainer.algorithms.magpo import Magpo, MagpoSettings
from hmarl.trainer.contract.shown import ReturnGap
from hmarl.trainer.guiders.imitation_plot import IMITATION_GAP, ImitationPlot
from hmarl.trainer.networks.settings import AlgorithmSettings
from hmarl.trainer.records.plots import Plot, diagnostics


class CtdsSettings(MagpoSettings):
    """Settings of CTDS: MAGPO with nothing that binds teacher and students."""

    reinforcement_weight: float = Field(0.0, ge=0, description="λ, weight of the students' own surrogate; 0 is CTDS")
    double_clip: bool = Field(False, description="True would hold the teacher within δ of the students")
    backtracking: bool = Field(False, description="True would draw the teacher to the students")


class Ctds(Magpo):
    """Plain distillation of a centralised teacher into local policies, on the same batches."""

    settings_class: ClassVar[type[AlgorithmSettings]] = CtdsSettings
    live_metrics: ClassVar[tuple[str, ...]] = ("agent_kl", "imitation_kl", "explained_variance")
    plots: ClassVar[tuple[Plot, ...]] = (
        diagnostics(("agent_entropy", "learner_entropy"), ("agent_kl",)),
        ImitationPlot(),
    )
    gaps: ClassVar[tuple[ReturnGap, ...]] = (IMITATION_GAP,)
    settings: CtdsSettings

    @property
    def remedy(self) -> str:
        """Nothing binds the teacher here."""
        return "Nothing binds the teacher of ctds to its students; magpo does"
