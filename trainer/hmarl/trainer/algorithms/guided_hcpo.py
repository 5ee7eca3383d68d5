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

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.algorithms.magpo import Magpo, MagpoSettings
from hmarl.trainer.conductors.conducted import Conducted
from hmarl.trainer.conductors.level import ConductorSettings
from hmarl.trainer.contract.shown import ReturnGap
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.guiders.imitation_plot import IMITATION_GAP, ImitationPlot
from hmarl.trainer.networks.settings import AlgorithmSettings
from hmarl.trainer.records.plots import Plot, diagnostics
from hmarl.trainer.sequential.heterogeneous import Estimate


class GuidedHcpoSettings(MagpoSettings, ConductorSettings):
    """Settings of guided HCPO: those of MAGPO and of HCPO's conductor."""

    recurrent: bool = Field(
        False, description="local policies remember: a gated recurrent unit after the hidden layers"
    )
    instruction_weight: Literal["ratio"] = Field("ratio", description="steps are weighted by w_new/w_old")


class GuidedHcpo(Conducted, Magpo):
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
        super().__init__(spec, settings, generator, device)
        self._weight: Tensor | None = None

    # --- acting -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def likeliest_instruction(self, observation: Observation) -> tuple[Tensor, int]:
        """The mode of w(·|s)."""
        states = self.state_normaliser(observation.state)
        likeliest = self.conductor.seen_of(self.conductor.distribution(states).mode())
        return likeliest, self.settings.instruction_interval

    # --- learning ---------------------------------------------------------------------------------------------------

    def update_conductor(self, rollout: Rollout, estimate: Estimate, schedule: float) -> dict[str, float]:
        """The conductor's trust-region step; then the local conductors follow."""
        advantages = self.conductor.decision_advantages(rollout, estimate, self.settings.gae_lambda)
        improvement = self.conductor.improve(
            rollout, estimate.states, advantages, self.features(rollout), self.noise_generator, schedule
        )
        self._weight = improvement.ratio
        return improvement.metrics

    def instructions(self, rollout: Rollout) -> tuple[Tensor, Tensor | None]:
        """[T, B, K] what was instructed, and [T, B] the ratio that the conductor's step has left."""
        weight = None if self._weight is None else self._weight.view(rollout.terminated.shape)
        return self.conductor.seen_of(rollout.extras["instruction"]), weight
