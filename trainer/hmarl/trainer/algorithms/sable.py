"""Sable: MAT's surrogate on a retention network, which remembers the episode.

Source: Mahjoub et al. 2025, "Sable: a Performant, Efficient and Scalable Sequence Model for MARL", section 3.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field

from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.contract.algorithm import Algorithm, StateDict
from hmarl.trainer.contract.shown import EvaluatedTeam
from hmarl.trainer.contract.teacher import Teacher
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.guiders.acting import GuidedActing
from hmarl.trainer.guiders.alone import guide_alone, refuse_export
from hmarl.trainer.guiders.settings import GuiderFields
from hmarl.trainer.guiders.teacher import GuiderTeacher
from hmarl.trainer.guiders.teams import CentralTeam
from hmarl.trainer.guiders.trained import TrainedGuider
from hmarl.trainer.learning.captured import CapturedSteps
from hmarl.trainer.learning.metrics import mean_metrics
from hmarl.trainer.networks.settings import AlgorithmSettings, CreditFields, GradientStepFields, PolicyGradientFields


class SableSettings(GuiderFields, CreditFields, PolicyGradientFields, AlgorithmSettings, GradientStepFields):
    """Settings of Sable."""

    without_effect: ClassVar[frozenset[str]] = frozenset({"hidden_sizes", "recurrent", "memory_size", "guider_epochs"})

    guider: Literal["sable"] = Field("sable", description="retention over agents and time, which remembers")


class Sable(Algorithm):
    """Centralised execution: one retention network that remembers; only students of it are exported."""

    settings_class: ClassVar[type[AlgorithmSettings]] = SableSettings
    exportable: ClassVar[bool] = False
    settings: SableSettings

    def __init__(
        self, spec: EnvironmentSpec, settings: SableSettings, generator: torch.Generator, device: torch.device
    ) -> None:
        super().__init__(spec, settings, generator, device)
        self.guider = TrainedGuider(self.actors, self.state_normaliser, settings, 0, generator)
        self.steps = CapturedSteps([self.guider.optimiser], device, settings.cuda_graphs)
        self.acting = self.guided = GuidedActing(self.guider, self.local_acting)

    def update(self, rollout: Rollout, progress: float) -> dict[str, float]:
        """φ ← descent on −E[ min(r·Â, clip(r, 1−ε, 1+ε)·Â) ] − c·H + c_v·L_V, all agents as one sequence."""
        settings, schedule = self.settings, self.schedule(progress)
        # V as it was said when acting, Â(s, a) by GAE, and the λ-returns R; or each agent's own, Vⁱ, Âⁱ and Rⁱ
        estimate = self.guider.estimate(rollout, self.guided.remembered())
        explained = self.guider.adopt_units(rollout, estimate)
        batch = self.guider.batch(rollout, estimate, self.guided.order)
        # for every epoch, with an order i_1 … i_N of its own, and every minibatch: a step on the clipped loss
        step = self.steps.of(partial(guide_alone, self.guider), settings.clip, schedule)
        metrics = mean_metrics(step(minibatch) for minibatch in self.guider.minibatches(batch, self.noise_generator))
        self.update_normalisers(rollout)
        return metrics | {"explained_variance": explained}

    # --- what it is judged by, and distilled ------------------------------------------------------------------------

    def teams(self, sample: bool = False) -> dict[str, EvaluatedTeam]:
        """The guider acting for the whole team."""
        return {CentralTeam.name: CentralTeam(self.guider, sample)}

    def teacher(self) -> Teacher:
        """The guider."""
        return GuiderTeacher(self.guider)

    @classmethod
    def check_exportable(cls, settings: AlgorithmSettings) -> None:
        """Always refused."""
        assert isinstance(settings, SableSettings)
        refuse_export("sable", settings.guider)

    def components(self) -> StateDict:
        """The shared parts and the guider."""
        return super().components() | self.guider.components()
