"""The teachers of teams that a guider, a central conductor or a hierarchy leads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.trainer.distributions import Distribution
from hmarl.trainer.instructions import held_until_renewed, no_instructions
from hmarl.trainer.policies import select_all, step_all
from hmarl.trainer.students.teacher import GoalKind, Labels

if TYPE_CHECKING:
    from hmarl.trainer.algorithms.himpo import Himpo
    from hmarl.trainer.conducted import Conducted
    from hmarl.trainer.guided import GuidedTeam


class GuiderTeacher:
    """A guider, agents in their natural order: an agent's label depends on what those before it really did.

    Args:
        algorithm: whose guider.
    """

    name = "guider"

    def __init__(self, algorithm: GuidedTeam) -> None:
        self._algorithm = algorithm
        self.goal_kinds: Sequence[GoalKind | None] = (None,) * len(algorithm.spec.groups)
        self.begin(0)

    def begin(self, batch_size: int) -> None:
        """B new episodes, of which nothing is remembered."""
        self._memory = self._algorithm.guider.no_memory(batch_size, self._algorithm.device)

    def act(self, observation: Observation, perturbations: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
        """Per group [B, N_group, ...] the guider's own raw actions."""
        return self._algorithm.act_centrally(observation, perturbations, self._memory).actions

    def label(self, observation: Observation, actions: Sequence[Tensor]) -> Labels:
        """μ(·|o, a of those before); what the guider remembers follows the actions."""
        algorithm, memory = self._algorithm, self._memory
        distributions = algorithm.judge_centrally(observation, actions, memory)
        if algorithm.guider.memory_shape != (0,):
            self._memory = algorithm.act_centrally(observation, None, memory, actions).memory
        return Labels(distributions, [None] * len(distributions))

    def episodes_ended(self, ended: Tensor) -> None:
        """[B] bool: nothing is remembered of what has ended."""
        self._memory = self._memory.masked_fill(ended.view(-1, *(1,) * (self._memory.dim() - 1)), 0.0)


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


class HierarchyTeacher:
    """The whole hierarchy, with its likeliest goals: what students are to do, and the goals that they are to guess.

    Args:
        algorithm: whose hierarchy.
    """

    name = "hierarchy"

    def __init__(self, algorithm: Himpo) -> None:
        self._algorithm, head = algorithm, algorithm.hierarchy.goal_head
        kind = GoalKind(head.output_size, not head.continuous) if algorithm.settings.levels > 1 else None
        self.goal_kinds: Sequence[GoalKind | None] = (kind,) * len(algorithm.spec.groups)
        self.begin(0)

    def begin(self, batch_size: int) -> None:
        """B new episodes, in which no goals are in force yet."""
        self._standing = self._algorithm.hierarchy.nothing_in_force(batch_size)

    def act(self, observation: Observation, perturbations: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
        """Per group [B, N_group, ...] the workers' raw actions."""
        return select_all(self._algorithm.decide_together(observation, self._standing, None).workers, perturbations)

    def label(self, observation: Observation, actions: Sequence[Tensor]) -> Labels:
        """What every worker would do, and its goal, whatever was done; goals run out by the steps."""
        step = self._algorithm.decide_together(observation, self._standing, None)
        self._standing = step.standing
        groups, told = self._algorithm.spec.groups, step.graph.goal
        goals = [None if told is None else told[:, list(group.agents)].transpose(0, 1) for group in groups]
        return Labels(step.workers, goals)

    def episodes_ended(self, ended: Tensor) -> None:
        """[B] bool: nothing stays in force of what has ended."""
        self._standing = self._algorithm.hierarchy.ended(self._standing, ended)
