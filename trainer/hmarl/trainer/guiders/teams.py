"""A guider that acts for the whole team, as a team for ``evaluate``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.trainer.contract.team_inputs import as_tensors, drawn_noise, joint_seed
from hmarl.trainer.guiders.trained import TrainedGuider

Instruct = Callable[[Observation], Tensor]
"""What a conductor would most likely instruct all agents to do, [B, K]."""


class CentralTeam:
    """A guider acting for the whole team, agents in their natural order.

    Args:
        guider: who acts.
        sample: draw actions, with noise seeded by the episodes' seeds, instead of taking the modes.
        instruct: of a conductor above the guider; None without one.
        interval: steps for which an instruction holds.
    """

    name = "guider"
    label = "guider"
    colour = "#009e73"

    def __init__(
        self, guider: TrainedGuider, sample: bool = False, instruct: Instruct | None = None, interval: int = 1
    ) -> None:
        self._guider, self._sample = guider, sample
        self._instruct, self._interval = instruct, interval
        self._generator = torch.Generator()
        self._memory = guider.no_memory(0)
        self._instruction: Tensor | None = None
        self._step = 0

    def reset(self, seeds: npt.NDArray[np.int64]) -> None:
        """Start episodes with nothing remembered, and no instruction in force."""
        self._step = 0
        self._generator.manual_seed(joint_seed(seeds))
        self._memory = self._guider.no_memory(len(seeds))

    @torch.no_grad()
    def act(self, observation: Observation, running: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[Any], ...]:
        """All agents' actions, one agent after the other."""
        actors = self._guider.actors
        noise = drawn_noise(actors, len(running), self._generator) if self._sample else None
        seen = as_tensors(observation, actors.device)
        if self._instruct is not None and self._step % self._interval == 0:
            self._instruction = self._instruct(seen)
        self._step += 1
        acted = self._guider.act(seen, self._instruction, noise, self._memory)
        self._memory = acted.memory
        return tuple(action.cpu().numpy() for action in actors.to_environment(acted.actions))

    def close(self) -> None:
        """Nothing to free."""
