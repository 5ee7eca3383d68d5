"""A team that acts under a conductor."""

from __future__ import annotations

import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.trainer.conductors.level import ConductorLevel
from hmarl.trainer.contract.acting import ActingInContext
from hmarl.trainer.experience.rollout import Decision
from hmarl.trainer.networks.normalisation import RunningNormaliser


class ConductedActing:
    """M ∼ w(·|s) where an instruction has run out, then the team below acts on it (HCPO, Algorithm 1, line 3).

    Args:
        below: how the team acts on an instruction.
        conductor: the level above it.
        state_normaliser: of what the conductor sees.
        generator: of the instructions' noise, on the device.
    """

    def __init__(
        self,
        below: ActingInContext,
        conductor: ConductorLevel,
        state_normaliser: RunningNormaliser,
        generator: torch.Generator,
    ) -> None:
        self.below, self.conductor = below, conductor
        self._state_normaliser, self._generator = state_normaliser, generator

    def begin_rollout(self, steps: int, batch_size: int) -> None:
        """Draw the team's noise, then the conductor's."""
        self.below.begin_rollout(steps, batch_size)
        self.conductor.begin_rollout(steps, batch_size, self._generator)

    @torch.no_grad()
    def act(self, observation: Observation, step: int) -> Decision:
        """The team's actions under the instruction in force, which is recorded."""
        context, record = self.conductor.instruct(self._state_normaliser(observation.state), step)
        decision = self.below.act_in_context(observation, step, context)
        decision.extras |= record
        return decision

    def episodes_ended(self, ended: Tensor) -> None:
        """[B] bool: a new episode starts with a new instruction and nothing remembered."""
        self.below.episodes_ended(ended)
        self.conductor.episodes_ended(ended)

    def state(self) -> dict[str, Tensor]:
        """The instructions in force and what the team remembers."""
        return self.below.state() | self.conductor.acting_state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        self.below.load_state(state)
        self.conductor.load_acting_state(state)
