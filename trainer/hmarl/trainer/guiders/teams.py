"""A guider that acts for the whole team, as a team for ``evaluate``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.trainer.contract.acting import as_tensors, drawn_noise, joint_seed

if TYPE_CHECKING:
    from hmarl.trainer.guiders.guided_team import GuidedTeam


class CentralTeam:
    """A guider acting for the whole team, agents in their natural order.

    Args:
        algorithm: whose guider.
        sample: draw actions, with noise seeded by the episodes' seeds, instead of taking the modes.
    """

    name = "guider"
    label = "guider"
    colour = "#009e73"

    def __init__(self, algorithm: GuidedTeam, sample: bool = False) -> None:
        self._algorithm, self._sample = algorithm, sample
        self._generator = torch.Generator()
        self._memory = algorithm.guider.no_memory(0, algorithm.device)
        self._instruction: Tensor | None = None
        self._holds = 0

    def reset(self, seeds: npt.NDArray[np.int64]) -> None:
        """Start episodes with nothing remembered, and no instruction in force."""
        self._holds = 0
        self._generator.manual_seed(joint_seed(seeds))
        self._memory = self._algorithm.guider.no_memory(len(seeds), self._algorithm.device)

    def act(self, observation: Observation, running: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[Any], ...]:
        """All agents' actions, one agent after the other."""
        algorithm = self._algorithm
        noise = drawn_noise(algorithm, len(running), self._generator) if self._sample else None
        seen = as_tensors(observation, algorithm.device)
        if self._holds == 0:
            self._instruction, self._holds = algorithm.likeliest_instruction(seen)
        self._holds -= 1
        acted = algorithm.act_centrally(seen, self._instruction, noise, self._memory)
        self._memory = acted.memory
        return tuple(action.cpu().numpy() for action in algorithm.to_environment(acted.actions))

    def close(self) -> None:
        """Nothing to free."""
