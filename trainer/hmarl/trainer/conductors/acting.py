"""A team that acts under a conductor."""

from __future__ import annotations

import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.trainer.conductors.level import ConductorLevel, InForce
from hmarl.trainer.conductors.local_share import LocalShare
from hmarl.trainer.contract.acting import ActingInContext, Outcome
from hmarl.trainer.experience.rollout import Decision


class ConductedActing:
    """M ∼ w(·|s) where an instruction has run out, then the team below acts on it (HCPO, Algorithm 1, line 3).

    Args:
        below: how the team acts on an instruction.
        conductor: the level above it.
        generator: of the instructions' noise, on the device.
        local_share: instead of the team below, where local conductors conduct a share of the environments.
    """

    def __init__(
        self,
        below: ActingInContext,
        conductor: ConductorLevel,
        generator: torch.Generator,
        local_share: LocalShare | None = None,
    ) -> None:
        self.below, self.conductor, self.local_share = below, conductor, local_share
        self.in_force = conductor.nothing_in_force(0)
        self._noise = torch.zeros(0, device=conductor.device)
        self._generator = generator

    def begin_rollout(self, steps: int, batch_size: int) -> None:
        """Draw the team's noise, then the conductor's."""
        self.below.begin_rollout(steps, batch_size)
        self._noise = self.conductor.draw_noise(steps, batch_size, self._generator)
        if len(self.in_force.step) != batch_size:
            self.in_force = self.conductor.nothing_in_force(batch_size)

    @torch.no_grad()
    def act(self, observation: Observation, step: int) -> Decision:
        """The team's actions under the instruction in force, which is recorded."""
        noise = self._noise[step]
        self.in_force, record = self.conductor.instruct(observation, self.in_force, noise)
        if self.local_share is not None:
            decision = self.local_share.act(observation, step, self.in_force, record["decided"], noise)
        else:
            context = self.conductor.seen_of(self.in_force.instruction)
            decision = self.below.act_in_context(observation, step, context)
        decision.extras |= record
        return decision

    def episodes_ended(self, ended: Tensor) -> None:
        """[B] bool: a new episode starts with a new instruction and nothing remembered."""
        self.below.episodes_ended(ended)
        if self.in_force.step.shape == ended.shape:  # else nothing has been instructed yet
            self.in_force = self.in_force.ended(ended)

    def state(self) -> dict[str, Tensor]:
        """The instructions in force and what the team remembers."""
        local = {} if self.local_share is None else self.local_share.state()
        return self.below.state() | self.in_force.state() | local

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        self.below.load_state(state)
        self.in_force = InForce.of_state(state)
        if self.local_share is not None:
            self.local_share.load_state(state)

    def outcome(self) -> Outcome:
        """The team's below."""
        return self.below.outcome()

    def take_over(self, outcome: Outcome) -> None:
        """The team's below."""
        self.below.take_over(outcome)
