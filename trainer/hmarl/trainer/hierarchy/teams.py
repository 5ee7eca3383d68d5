"""A whole hierarchy, as a team for ``evaluate``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.sdk.evaluation.annotation import TeamAnnotation
from hmarl.trainer.contract.team_inputs import as_tensors, drawn_noise, joint_seed
from hmarl.trainer.hierarchy.acting import HierarchyActors
from hmarl.trainer.hierarchy.hierarchy import Noise, Step


class HierarchyTeam:
    """A whole hierarchy: messages among the workers, goals from above.

    Args:
        together: the hierarchy's agents.
        sample: draw goals and actions, with noise seeded by the episodes' seeds, instead of taking the modes.

    Attributes:
        last: what was decided at the last step, None before the first.
    """

    name = "hierarchy"
    label = "whole hierarchy"
    colour = "#e69f00"

    def __init__(self, together: HierarchyActors, sample: bool = False) -> None:
        self._together, self._sample = together, sample
        self._generator = torch.Generator()
        self._standing = together.hierarchy.nothing_in_force(0)
        self.last: Step | None = None

    def reset(self, seeds: npt.NDArray[np.int64]) -> None:
        """Start episodes with nothing in force."""
        self._generator.manual_seed(joint_seed(seeds))
        self._standing, self.last = self._together.hierarchy.nothing_in_force(len(seeds)), None

    def act(self, observation: Observation, running: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[Any], ...]:
        """All agents' actions, goals before it where they have run out."""
        actors, noise = self._together.actors, None
        if self._sample:
            goals = self._together.hierarchy.draw_goal_noise((len(running),), self._generator)
            actions = drawn_noise(actors, len(running), self._generator)
            noise = Noise(actions, *(drawn.to(actors.device) for drawn in goals))
        self.last = self._together.decide(as_tensors(observation, actors.device), self._standing, noise)
        self._standing = self.last.standing
        return tuple(action.cpu().numpy() for action in actors.to_environment(self.last.actions))

    def explain(self, index: int = 0) -> TeamAnnotation | None:
        """Messages, clusters and goals at the last step."""
        if self.last is None:
            return None
        graph, record, settings = self.last.graph, self.last.record, self._together.hierarchy.settings

        def told(goals: Tensor | None, decided: str) -> tuple[npt.NDArray[Any] | None, npt.NDArray[np.bool_] | None]:
            if goals is None:
                return None, None
            seen = goals[index].cpu().numpy()
            return seen, np.full(len(seen), bool(record[decided][index]))

        goals, goals_set = told(graph.goal, "decided")
        sub_goals, sub_goals_set = told(graph.sub_goal, "manager_decided")
        edges = graph.edges[index] & (settings.message_rounds > 0)
        return TeamAnnotation(
            edges.nonzero().cpu().numpy(),
            graph.active[index].cpu().numpy(),
            graph.cluster[index].cpu().numpy() if settings.levels > 1 else None,
            goals,
            goals_set,
            sub_goals,
            sub_goals_set,
            settings.goal_space == "discrete",
        )

    def close(self) -> None:
        """Nothing to free."""
