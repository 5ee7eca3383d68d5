"""A guider that acts for the whole team, as a team for ``evaluate``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.trainer.conductors.level import ConductorLevel
from hmarl.trainer.contract.team_inputs import as_tensors, drawn_noise, joint_seed
from hmarl.trainer.guiders.trained import TrainedGuider


class CentralTeam:
    """A guider acting for the whole team, agents in their natural order.

    Args:
        guider: who acts.
        sample: draw actions, and a conductor's instructions, with noise seeded by the episodes' seeds, instead of
            taking the modes.
        conductor: above the guider, whose instructions it follows; None without one.
    """

    name = "guider"
    label = "guider"
    colour = "#009e73"

    def __init__(self, guider: TrainedGuider, sample: bool = False, conductor: ConductorLevel | None = None) -> None:
        self._guider, self._sample = guider, sample
        self._conductor = conductor
        self._in_force = None if conductor is None else conductor.nothing_in_force(0)
        self._generator = torch.Generator()
        self._memory = guider.no_memory(0)

    def reset(self, seeds: npt.NDArray[np.int64]) -> None:
        """Start episodes with nothing remembered, and no instruction in force."""
        if self._conductor is not None:
            self._in_force = self._conductor.nothing_in_force(len(seeds))
        self._generator.manual_seed(joint_seed(seeds))
        self._memory = self._guider.no_memory(len(seeds))

    @torch.no_grad()
    def act(self, observation: Observation, running: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[Any], ...]:
        """All agents' actions, one agent after the other."""
        actors = self._guider.actors
        noise = drawn_noise(actors, len(running), self._generator) if self._sample else None
        seen = as_tensors(observation, actors.device)
        acted = self._guider.act(seen, self._instructed(seen), noise, self._memory)
        self._memory = acted.memory
        return tuple(action.cpu().numpy() for action in actors.to_environment(acted.actions))

    def _instructed(self, observation: Observation) -> Tensor | None:
        """[B, K] what the agents see of the instruction in force; None without a conductor."""
        if self._conductor is None or self._in_force is None:
            return None
        noise = self._conductor.step_noise(len(self._in_force.step), self._generator) if self._sample else None
        self._in_force, _ = self._conductor.instruct(observation, self._in_force, noise)
        return self._conductor.seen_of(self._in_force.instruction)

    def close(self) -> None:
        """Nothing to free."""
