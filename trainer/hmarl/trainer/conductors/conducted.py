"""Algorithms with a conductor above their agents: what they pass on to it, whatever the agents do below."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.conductors.level import ConductorLevel, ConductorSettings
from hmarl.trainer.conductors.teams import CONDUCTORS, ConductedTeam
from hmarl.trainer.contract.algorithm import Algorithm, StateDict
from hmarl.trainer.contract.shown import EvaluatedTeam
from hmarl.trainer.contract.teacher import GoalKind, Labels, Teacher
from hmarl.trainer.learning.instructions import held_until_renewed, no_instructions
from hmarl.trainer.networks.distributions import Distribution
from hmarl.trainer.networks.policies import GroupPolicy, select_all, step_all


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

    def teams(self, sample: bool = False) -> dict[str, EvaluatedTeam]:
        """As below, and the local policies under the conductors that are not deployed."""
        return super().teams(sample) | {name: ConductedTeam(self, name) for name in CONDUCTORS}

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


class ConductedTeacher:
    """The actors under the central conductor's likeliest instruction, renewed where it has run out.

    Args:
        algorithm: with a conductor.
    """

    name = "central conductor"

    def __init__(self, algorithm: Conducted) -> None:
        self._algorithm = algorithm
        self.goal_kinds: Sequence[GoalKind | None] = (None,) * len(algorithm.spec.groups)
        self.begin(0)

    def begin(self, batch_size: int) -> None:
        """B new episodes, in which no instruction is in force yet."""
        algorithm = self._algorithm
        self._instruction = no_instructions(algorithm.conductor.head, batch_size, algorithm.device)
        self._remaining = torch.zeros(batch_size, dtype=torch.int64, device=algorithm.device)
        self._memories = algorithm.no_memories(batch_size) if algorithm.settings.recurrent else []

    def act(self, observation: Observation, perturbations: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
        """Per group [B, N_group, ...] the actors' raw actions."""
        distributions, _ = self._step(observation, self._instructed(observation))
        return select_all(distributions, perturbations)

    def label(self, observation: Observation, actions: Sequence[Tensor]) -> Labels:
        """π^i(·|o^i, M), whatever the others did."""
        self._instruction = self._instructed(observation)
        ran_out = self._remaining <= 0
        interval = self._algorithm.settings.instruction_interval
        self._remaining = torch.where(ran_out, interval, self._remaining) - 1
        distributions, self._memories = self._step(observation, self._instruction)
        return Labels(distributions, [None] * len(distributions))

    def episodes_ended(self, ended: Tensor) -> None:
        """[B] bool: the next step renews the instruction; nothing is remembered of what has ended."""
        self._remaining = self._remaining.masked_fill(ended, 0)
        self._memories = [memory.masked_fill(ended.view(1, -1, 1), 0.0) for memory in self._memories]

    @torch.no_grad()
    def _step(self, observation: Observation, instruction: Tensor) -> tuple[list[Distribution], list[Tensor]]:
        algorithm = self._algorithm
        return step_all(
            algorithm.policies, algorithm.normalised(observation.observations), observation.action_masks,
            algorithm.conductor.seen_of(instruction), self._memories,
        )  # fmt: skip

    @torch.no_grad()
    def _instructed(self, observation: Observation) -> Tensor:
        """[B] or [B, D] what is in force at this step."""
        algorithm = self._algorithm
        states = algorithm.state_normaliser(observation.state)
        likeliest = algorithm.conductor.distribution(states).mode()
        return held_until_renewed(self._remaining <= 0, likeliest, self._instruction)
