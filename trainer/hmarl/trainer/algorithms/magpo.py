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

from typing import ClassVar

import torch
from pydantic import Field

from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.contract.algorithm import Algorithm, StateDict
from hmarl.trainer.contract.shown import EvaluatedTeam, ReturnGap
from hmarl.trainer.contract.teacher import Teacher
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.guiders.acting import GuidedActing
from hmarl.trainer.guiders.advice import alike, collapsed, parted, to_follow
from hmarl.trainer.guiders.guidance import Guidance
from hmarl.trainer.guiders.imitation_plot import IMITATION_GAP, ImitationPlot
from hmarl.trainer.guiders.improvement import ImprovementPlot, promises
from hmarl.trainer.guiders.settings import FollowerFields, GuiderFields
from hmarl.trainer.guiders.teacher import GuiderTeacher
from hmarl.trainer.guiders.teams import CentralTeam
from hmarl.trainer.guiders.trained import TrainedGuider
from hmarl.trainer.learning.advice import given
from hmarl.trainer.learning.performance import Performance
from hmarl.trainer.networks.settings import AlgorithmSettings, CreditFields, GradientStepFields, PolicyGradientFields
from hmarl.trainer.records.plots import Plot, diagnostics


class MagpoSettings(
    FollowerFields, GuiderFields, CreditFields, PolicyGradientFields, AlgorithmSettings, GradientStepFields
):
    """Settings of MAGPO."""

    recurrent: bool = Field(True, description="local policies remember: a gated recurrent unit after the hidden layers")


class Magpo(Algorithm):
    """A guider learns as one mind, local policies imitate it and hold it where they can follow."""

    settings_class: ClassVar[type[AlgorithmSettings]] = MagpoSettings
    live_metrics: ClassVar[tuple[str, ...]] = ("agent_kl", "imitation_kl", "explained_variance")
    plots: ClassVar[tuple[Plot, ...]] = (
        diagnostics(("agent_entropy", "learner_entropy"), ("agent_kl",)),
        ImitationPlot(),
        ImprovementPlot(),
    )
    gaps: ClassVar[tuple[ReturnGap, ...]] = (IMITATION_GAP,)
    settings: MagpoSettings

    def __init__(
        self, spec: EnvironmentSpec, settings: MagpoSettings, generator: torch.Generator, device: torch.device
    ) -> None:
        super().__init__(spec, settings, generator, device)
        self.guider = TrainedGuider(self.actors, self.state_normaliser, settings, 0, generator)
        self.guidance = Guidance(self.guider, self.policies, settings, device)
        self.acting = self.guided = GuidedActing(self.guider, self.local_acting)
        self.performance = Performance(settings.gamma, device)

    def update(self, rollout: Rollout, progress: float) -> dict[str, float]:
        """Lines 2 to 4; then δ follows the imitation gap where it may."""
        schedule = self.schedule(progress)
        # V as it was said when acting, Â(s, a) by GAE, and the λ-returns R; or each agent's own, Vⁱ, Âⁱ and Rⁱ
        estimate = self.guider.estimate(rollout, self.guided.remembered())
        explained = self.guider.adopt_units(rollout, estimate)
        batch = self.guider.batch(rollout, estimate, self.guided.order)
        # for every epoch, with an order i_1 … i_N of its own, and every minibatch:
        #     2: φ ← descent on −E[ min(r·Â, clip(r')·Â) ] + E[ KL(μ_φ ‖ π_θ) · 1[outside (1/δ, δ)] ] − c·H + c_v·L_V
        #     3: θ ← descent on λ · (−E[ min(r_π·Â, clip(r_π)·Â) ]) + E[ KL(μ_φ ‖ π_θ) ]
        metrics = self.guidance.learn(batch, self.noise_generator, schedule)
        metrics |= promises(self.guider, self.guidance.followers, batch)
        # 4: the guider becomes what the local policies are, where it is built as they are
        self.guidance.backtrack(metrics["imitation_kl"])
        self.update_normalisers(rollout)
        known = self.performance.of(rollout.team_rewards) | alike(rollout)
        return metrics | known | {"explained_variance": explained}

    def advice(self, metrics: dict[str, float]) -> list[str]:
        """Guider and local policies have parted when most actions lie beyond δ; or all agents do the same."""
        of_guider = parted(metrics, to_follow(self.settings))
        return given(of_guider, collapsed(metrics, self.settings))

    # --- what it is judged by, and distilled ------------------------------------------------------------------------

    def teams(self, sample: bool = False) -> dict[str, EvaluatedTeam]:
        """The local policies, and the guider acting for the whole team."""
        return super().teams(sample) | {CentralTeam.name: CentralTeam(self.guider, sample)}

    def teacher(self) -> Teacher:
        """The guider."""
        return GuiderTeacher(self.guider)

    def components(self) -> StateDict:
        """The shared parts, the guider, the local policies' optimisers, δ and what improvements are compared with."""
        return super().components() | self.guidance.components() | {"performance": self.performance}
