"""A whole hierarchy as a teacher of local students."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.trainer.contract.teacher import GoalKind, Labels
from hmarl.trainer.hierarchy.acting import HierarchyActors
from hmarl.trainer.networks.indices import on_device
from hmarl.trainer.networks.policies import select_all


class HierarchyTeacher:
    """The whole hierarchy, with its likeliest goals: what students are to do, and the goals that they are to guess.

    Args:
        together: the hierarchy's agents.
    """

    name = variant = "hierarchy"

    def __init__(self, together: HierarchyActors) -> None:
        self._together, hierarchy = together, together.hierarchy
        head = hierarchy.goal_head
        kind = GoalKind(head.output_size, not head.continuous) if hierarchy.settings.levels > 1 else None
        self.goal_kinds: Sequence[GoalKind | None] = (kind,) * len(hierarchy.spec.groups)
        self._standing = hierarchy.nothing_in_force(0)

    def begin(self, batch_size: int) -> None:
        """B new episodes, in which no goals are in force yet."""
        self._standing = self._together.hierarchy.nothing_in_force(batch_size)

    def act(self, observation: Observation, perturbations: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
        """Per group [B, N_group, ...] the workers' raw actions."""
        return select_all(self._together.decide(observation, self._standing, None).workers, perturbations)

    def label(self, observation: Observation, actions: Sequence[Tensor]) -> Labels:
        """What every worker would do, and its goal, whatever was done; goals run out by the steps."""
        step = self._together.decide(observation, self._standing, None)
        self._standing = step.standing
        groups, told = self._together.hierarchy.spec.groups, step.graph.goal
        goals = [
            None if told is None else told[:, on_device(group.agents, told.device)].transpose(0, 1) for group in groups
        ]
        return Labels(step.workers, goals)

    def episodes_ended(self, ended: Tensor) -> None:
        """[B] bool: nothing stays in force of what has ended."""
        self._standing = self._together.hierarchy.ended(self._standing, ended)
