"""Algorithms with a conductor above their agents: what they pass on to it, whatever the agents do below."""

from __future__ import annotations

import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.algorithm import Algorithm, StateDict
from hmarl.trainer.conductor import ConductorLevel, ConductorSettings
from hmarl.trainer.policies import GroupPolicy
from hmarl.trainer.students.teacher import Teacher
from hmarl.trainer.students.teachers import ConductedTeacher


class Conducted(Algorithm):
    """A base beside the one that says how the agents act and learn: ``class Hcpo(Conducted, HeterogeneousAgents)``.

    Args:
        spec: the environment.
        settings: of the member's own class.
        generator: CPU generator of the initial weights.
        device: where networks and rollouts live.

    Attributes:
        conductor: the level above the agents.
    """

    settings: ConductorSettings

    def __init__(
        self, spec: EnvironmentSpec, settings: ConductorSettings, generator: torch.Generator, device: torch.device
    ) -> None:
        super().__init__(spec, settings, generator, device)
        self.conductor = ConductorLevel(spec, settings, generator, device)

    @property
    def context_size(self) -> int:
        """K, the width of the one-hot instruction, or D of a continuous one."""
        return self.settings.instruction_head.output_size

    def begin_rollout(self, steps: int, batch_size: int) -> None:
        """Draw the agents' noise and the conductor's."""
        super().begin_rollout(steps, batch_size)
        self.conductor.begin_rollout(steps, batch_size, self.noise_generator)

    def instruct(self, observation: Observation, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """M ∼ w(·|s) where an instruction has run out: what the agents see of it, and what to record."""
        return self.conductor.instruct(self.state_normaliser(observation.state), step)

    def episodes_ended(self, ended: Tensor) -> None:
        """A new episode starts with a new instruction and nothing remembered."""
        super().episodes_ended(ended)
        self.conductor.episodes_ended(ended)

    def acting_state(self) -> dict[str, Tensor]:
        """The instructions in force and what the agents remember."""
        return super().acting_state() | self.conductor.acting_state()

    def load_acting_state(self, state: dict[str, Tensor]) -> None:
        """Restore what ``acting_state`` returned."""
        super().load_acting_state(state)
        self.conductor.load_acting_state(state)

    def local_conductor(self, group: int) -> tuple[GroupPolicy | None, int]:
        """w^i, which stands in for the conductor when deployed."""
        return self.conductor.local_conductor(group)

    def teacher(self) -> Teacher:
        """The agents under the central conductor."""
        return ConductedTeacher(self)

    def components(self) -> StateDict:
        """The agents' parts and the conductor's level."""
        return super().components() | self.conductor.components()
