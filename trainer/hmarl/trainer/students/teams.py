"""Teachers, and students that see more than their agents will, as teams for ``evaluate``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.trainer.contract.algorithm import Algorithm
from hmarl.trainer.contract.teacher import Teacher
from hmarl.trainer.contract.team_inputs import as_tensors, drawn_noise, joint_seed
from hmarl.trainer.students.student import Students


class TeacherTeam:
    """A teacher acting by itself.

    Args:
        algorithm: whose teacher.
        teacher: who acts.
        sample: draw actions, with noise seeded by the episodes' seeds, instead of taking the modes.
    """

    def __init__(self, algorithm: Algorithm, teacher: Teacher, sample: bool = False) -> None:
        self.name = teacher.name
        self._algorithm, self._teacher, self._sample = algorithm, teacher, sample
        self._generator = torch.Generator()

    def reset(self, seeds: npt.NDArray[np.int64]) -> None:
        """Start episodes with nothing remembered."""
        self._generator.manual_seed(joint_seed(seeds))
        self._teacher.begin(len(seeds))

    def act(self, observation: Observation, running: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[Any], ...]:
        """The teacher's actions; it remembers that they were taken."""
        algorithm, seen = self._algorithm, as_tensors(observation, self._algorithm.device)
        noise = drawn_noise(algorithm, len(running), self._generator) if self._sample else None
        actions = self._teacher.act(seen, noise)
        self._teacher.label(seen, actions)
        return tuple(action.cpu().numpy() for action in algorithm.to_environment(actions))

    def close(self) -> None:
        """Nothing to free."""


class InformedTeam:
    """Students that see more than their agents will, which no deployable policy does.

    Args:
        algorithm: whose team they imitate.
        students: who act.
        sample: draw actions, with noise seeded by the episodes' seeds, instead of taking the modes.
    """

    name = "informed students"

    def __init__(self, algorithm: Algorithm, students: Students, sample: bool = False) -> None:
        self._algorithm, self._students, self._sample = algorithm, students, sample
        self._generator = torch.Generator()
        self._memories: list[Tensor] = []

    def reset(self, seeds: npt.NDArray[np.int64]) -> None:
        """Start episodes with nothing remembered."""
        self._generator.manual_seed(joint_seed(seeds))
        self._memories = self._students.no_memories(len(seeds))

    def act(self, observation: Observation, running: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[Any], ...]:
        """All agents' actions."""
        algorithm, noise = self._algorithm, None
        if self._sample:
            noise = drawn_noise(algorithm, len(running), self._generator)
        actions, self._memories = self._students.act(as_tensors(observation, algorithm.device), noise, self._memories)
        return tuple(action.cpu().numpy() for action in algorithm.to_environment(actions))

    def close(self) -> None:
        """Nothing to free."""
