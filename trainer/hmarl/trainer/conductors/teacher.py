"""A conductor's team as a teacher of local students."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.trainer.conductors.level import ConductorLevel, InForce
from hmarl.trainer.contract.actors import Actors
from hmarl.trainer.contract.teacher import GoalKind, Labels
from hmarl.trainer.networks.distributions import Distribution
from hmarl.trainer.networks.policies import select_all


class ConductedTeacher:
    """The actors under the central conductor's likeliest instruction, renewed where it has run out.

    Args:
        actors: the local policies.
        conductor: the level above them.
    """

    name, variant = "central conductor", "central"

    def __init__(self, actors: Actors, conductor: ConductorLevel) -> None:
        self._actors, self._conductor = actors, conductor
        self.goal_kinds: Sequence[GoalKind | None] = (None,) * len(actors.spec.groups)
        self._in_force = conductor.nothing_in_force(0)
        self._memories: list[Tensor] = []

    def begin(self, batch_size: int) -> None:
        """B new episodes, in which no instruction is in force yet."""
        self._in_force = self._conductor.nothing_in_force(batch_size)
        self._memories = self._actors.no_memories(batch_size)

    def act(self, observation: Observation, perturbations: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
        """Per group [B, N_group, ...] the actors' raw actions."""
        distributions, _ = self._step(observation, self._instructed(observation))
        return select_all(distributions, perturbations)

    def label(self, observation: Observation, actions: Sequence[Tensor]) -> Labels:
        """π^i(·|o^i, M), whatever the others did."""
        self._in_force = self._instructed(observation)
        distributions, self._memories = self._step(observation, self._in_force)
        return Labels(distributions, [None] * len(distributions))

    def episodes_ended(self, ended: Tensor) -> None:
        """[B] bool: the next step renews the instruction; nothing is remembered of what has ended."""
        self._in_force = self._in_force.ended(ended)
        self._memories = [memory.masked_fill(ended.view(1, -1, 1), 0.0) for memory in self._memories]

    @torch.no_grad()
    def _step(self, observation: Observation, in_force: InForce) -> tuple[list[Distribution], list[Tensor]]:
        return self._actors.distributions(observation, self._conductor.seen_of(in_force.instruction), self._memories)

    def _instructed(self, observation: Observation) -> InForce:
        return self._conductor.instruct(observation, self._in_force, None)[0]
