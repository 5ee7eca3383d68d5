"""Local policies under conductors that are not deployed, as teams for ``evaluate``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.trainer.contract.acting import as_tensors
from hmarl.trainer.learning.instructions import random_instructions

if TYPE_CHECKING:
    from hmarl.trainer.conductors.conducted import Conducted

CONDUCTORS = ("central", "random", "none")
_LABELS = {"central": "central conductor", "random": "random conductor", "none": "no conductor"}
_COLOURS = {"central": "#d55e00", "random": "#999999", "none": "#cc79a7"}


class ConductedTeam:
    """Local policies under one of the four conductors of the paper's Fig. 8(c).

    Args:
        algorithm: with a conductor.
        conductor: ``central`` (sees the state), ``random`` (uniform or standard normal instructions) or ``none`` (the
            instruction is withheld: an all-zero input). The fourth, ``local``, is ``LocalTeam``.
    """

    def __init__(self, algorithm: Conducted, conductor: str) -> None:
        self.name, self.label, self.colour = conductor, _LABELS[conductor], _COLOURS[conductor]
        self._algorithm = algorithm
        self._generator = np.random.default_rng(0)
        self._step = 0
        self._instruction = torch.zeros(0, dtype=torch.int64)
        self._memories: list[Tensor] = []

    def reset(self, seeds: npt.NDArray[np.int64]) -> None:
        """Start episodes; random instructions are seeded by the episodes' seeds."""
        self._generator = np.random.default_rng(np.asarray(seeds, dtype=np.uint64))
        self._step = 0
        self._memories = self._algorithm.no_memories(len(seeds)) if self._algorithm.settings.recurrent else []

    @torch.no_grad()
    def act(self, observation: Observation, running: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[Any], ...]:
        """The modes of all actors given the conductor's instruction."""
        algorithm = self._algorithm
        seen = as_tensors(observation, algorithm.device)
        if self._step % algorithm.settings.instruction_interval == 0:
            self._instruction = self._choose(seen.state)
        self._step += 1
        context = algorithm.conductor.seen_of(self._instruction)
        withheld = torch.zeros_like(context) if self.name == "none" else context
        decision, self._memories = algorithm.decide(seen, withheld, None, self._memories)
        return tuple(action.cpu().numpy() for action in decision.environment_actions)

    def _choose(self, state: Tensor) -> Tensor:
        if self.name == "central":
            return self._algorithm.conductor.distribution(self._algorithm.state_normaliser(state)).mode()
        return random_instructions(self._algorithm.conductor.head, len(state), self._generator).to(state.device)

    def close(self) -> None:
        """Nothing to free."""
