"""Local policies under conductors that are not deployed, as teams for ``evaluate``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.trainer.conductors.level import ConductorLevel
from hmarl.trainer.contract.actors import Actors
from hmarl.trainer.contract.shown import EvaluatedTeam
from hmarl.trainer.contract.team_inputs import as_tensors
from hmarl.trainer.learning.instructions import random_instructions
from hmarl.trainer.networks.normalisation import RunningNormaliser

CONDUCTORS = ("central", "random", "none")
_LABELS = {"central": "central conductor", "random": "random conductor", "none": "no conductor"}
_COLOURS = {"central": "#d55e00", "random": "#999999", "none": "#cc79a7"}


class ConductedTeam:
    """Local policies under one of the four conductors of the paper's Fig. 8(c).

    Args:
        actors: the local policies.
        level: the level above them.
        state_normaliser: of what the central conductor sees.
        conductor: ``central`` (sees the state), ``random`` (uniform or standard normal instructions) or ``none`` (the
            instruction is withheld: an all-zero input). The fourth, ``local``, is ``LocalTeam``.
    """

    def __init__(
        self, actors: Actors, level: ConductorLevel, state_normaliser: RunningNormaliser, conductor: str
    ) -> None:
        self.name, self.label, self.colour = conductor, _LABELS[conductor], _COLOURS[conductor]
        self._actors, self._level, self._state_normaliser = actors, level, state_normaliser
        self._generator = np.random.default_rng(0)
        self._step = 0
        self._instruction = torch.zeros(0, dtype=torch.int64)
        self._memories: list[Tensor] = []

    def reset(self, seeds: npt.NDArray[np.int64]) -> None:
        """Start episodes; random instructions are seeded by the episodes' seeds."""
        self._generator = np.random.default_rng(np.asarray(seeds, dtype=np.uint64))
        self._step = 0
        self._memories = self._actors.no_memories(len(seeds))

    @torch.no_grad()
    def act(self, observation: Observation, running: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[Any], ...]:
        """The modes of all actors given the conductor's instruction."""
        seen = as_tensors(observation, self._actors.device)
        if self._step % self._level.settings.instruction_interval == 0:
            self._instruction = self._choose(seen.state)
        self._step += 1
        context = self._level.seen_of(self._instruction)
        withheld = torch.zeros_like(context) if self.name == "none" else context
        decision, self._memories = self._actors.decide(seen, withheld, None, self._memories)
        return tuple(action.cpu().numpy() for action in decision.environment_actions)

    def _choose(self, state: Tensor) -> Tensor:
        if self.name == "central":
            return self._level.likeliest(self._state_normaliser(state))
        return random_instructions(self._level.head, len(state), self._generator).to(state.device)

    def close(self) -> None:
        """Nothing to free."""


def conducted_teams(
    actors: Actors, level: ConductorLevel, state_normaliser: RunningNormaliser
) -> dict[str, EvaluatedTeam]:
    """The local policies under every conductor that is not deployed, by name."""
    return {name: ConductedTeam(actors, level, state_normaliser, name) for name in CONDUCTORS}
