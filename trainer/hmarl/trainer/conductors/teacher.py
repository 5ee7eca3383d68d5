"""A conductor's team as a teacher of local students."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.trainer.conductors.level import ConductorLevel
from hmarl.trainer.contract.actors import Actors
from hmarl.trainer.contract.teacher import GoalKind, Labels
from hmarl.trainer.learning.instructions import held_until_renewed, no_instructions
from hmarl.trainer.networks.distributions import Distribution
from hmarl.trainer.networks.normalisation import RunningNormaliser
from hmarl.trainer.networks.policies import select_all


class ConductedTeacher:
    """The actors under the central conductor's likeliest instruction, renewed where it has run out.

    Args:
        actors: the local policies.
        conductor: the level above them.
        state_normaliser: of what the conductor sees.
    """

    name = "central conductor"

    def __init__(self, actors: Actors, conductor: ConductorLevel, state_normaliser: RunningNormaliser) -> None:
        self._actors, self._conductor, self._state_normaliser = actors, conductor, state_normaliser
        self.goal_kinds: Sequence[GoalKind | None] = (None,) * len(actors.spec.groups)
        self._instruction = no_instructions(conductor.head, 0, actors.device)
        self._remaining = torch.zeros(0, dtype=torch.int64, device=actors.device)
        self._memories: list[Tensor] = []

    def begin(self, batch_size: int) -> None:
        """B new episodes, in which no instruction is in force yet."""
        self._instruction = no_instructions(self._conductor.head, batch_size, self._actors.device)
        self._remaining = torch.zeros(batch_size, dtype=torch.int64, device=self._actors.device)
        self._memories = self._actors.no_memories(batch_size)

    def act(self, observation: Observation, perturbations: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
        """Per group [B, N_group, ...] the actors' raw actions."""
        distributions, _ = self._step(observation, self._instructed(observation))
        return select_all(distributions, perturbations)

    def label(self, observation: Observation, actions: Sequence[Tensor]) -> Labels:
        """π^i(·|o^i, M), whatever the others did."""
        self._instruction = self._instructed(observation)
        ran_out, interval = self._remaining <= 0, self._conductor.settings.instruction_interval
        self._remaining = torch.where(ran_out, interval, self._remaining) - 1
        distributions, self._memories = self._step(observation, self._instruction)
        return Labels(distributions, [None] * len(distributions))

    def episodes_ended(self, ended: Tensor) -> None:
        """[B] bool: the next step renews the instruction; nothing is remembered of what has ended."""
        self._remaining = self._remaining.masked_fill(ended, 0)
        self._memories = [memory.masked_fill(ended.view(1, -1, 1), 0.0) for memory in self._memories]

    @torch.no_grad()
    def _step(self, observation: Observation, instruction: Tensor) -> tuple[list[Distribution], list[Tensor]]:
        return self._actors.distributions(observation, self._conductor.seen_of(instruction), self._memories)

    @torch.no_grad()
    def _instructed(self, observation: Observation) -> Tensor:
        """[B] or [B, D] what is in force at this step."""
        likeliest = self._conductor.likeliest(self._state_normaliser(observation.state))
        return held_until_renewed(self._remaining <= 0, likeliest, self._instruction)
