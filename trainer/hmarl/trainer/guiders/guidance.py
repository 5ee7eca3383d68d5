"""A guider and the local policies that follow it, learning side by side."""

from __future__ import annotations

from functools import partial
from typing import Literal, Protocol

import torch

from hmarl.trainer.guiders.batch import TeamBatch
from hmarl.trainer.guiders.following import Bond, BondSettings, Delta, Followers, guide_and_follow
from hmarl.trainer.guiders.trained import TrainedGuider
from hmarl.trainer.learning.captured import CapturedSteps
from hmarl.trainer.learning.metrics import mean_metrics
from hmarl.trainer.networks.policies import GroupPolicy


class GuidanceSettings(BondSettings, Protocol):
    """How guider and followers learn, and what binds them."""

    learning_rate: float
    learner_learning_rate: float | None
    max_gradient_norm: float
    guider_epochs: int | None
    delta: float | Literal["auto"]
    imitation_gap: float
    cuda_graphs: bool


class Guidance:
    """A guider, its followers, and the δ that binds them.

    Args:
        guider: of the team.
        policies: per group, the local ones.
        settings: of all of them.
        device: where they learn.

    Attributes:
        guider: φ and its optimiser.
        followers: θ and their optimisers.
        delta: δ of the next update.
        steps: of both, captured where that is wanted.
    """

    def __init__(
        self, guider: TrainedGuider, policies: list[GroupPolicy], settings: GuidanceSettings, device: torch.device
    ) -> None:
        self._settings, self.guider = settings, guider
        rate = settings.learner_learning_rate or settings.learning_rate
        self.followers = Followers(policies, rate, settings.max_gradient_norm)
        self.delta = Delta(settings.delta, settings.imitation_gap, device)
        self.steps = CapturedSteps([guider.optimiser, *self.followers.optimisers], device, settings.cuda_graphs)

    def learn(self, batch: TeamBatch, generator: torch.Generator, schedule: float) -> dict[str, float]:
        """In every epoch, with an order of the agents of its own, and for every minibatch: a step of φ and one of θ.

        Args:
            batch: the rollout.
            generator: draws orders and minibatches.
            schedule: factor on the step sizes.

        Returns:
            Means over the minibatches, and the δ that was in force.
        """
        bond = Bond.of(self._settings, float(self.delta.value), self.guider)
        step = self.steps.of(partial(guide_and_follow, self.guider, self.followers), bond, schedule)
        minibatches = self.guider.minibatches(batch, generator, self._settings.guider_epochs)
        return mean_metrics(step(minibatch) for minibatch in minibatches) | {"delta": bond.delta}

    def backtrack(self, gap: float) -> None:
        """The guider becomes what the local policies are, where it is built as they are; and δ follows the gap.

        Args:
            gap: mean KL(μ ‖ π) per agent over the update, in nats.
        """
        if self._settings.backtracking and self.guider.network.backtracks:
            self.guider.network.backtrack(self.guider.theta, self.followers.policies)
        self.delta.adapt(gap)

    def components(self) -> dict[str, object]:
        """The guider, the local policies' optimisers and δ, as ``Algorithm.components`` names them."""
        return {**self.guider.components(), **self.followers.components(), "delta": self.delta.value}
