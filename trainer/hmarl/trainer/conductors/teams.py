"""Local policies under conductors that are not deployed, as teams for ``evaluate``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.trainer.conductors.level import ConductorLevel, InForce
from hmarl.trainer.contract.actors import Actors
from hmarl.trainer.contract.shown import EvaluatedTeam
from hmarl.trainer.contract.team_inputs import as_tensors, drawn_noise, joint_seed
from hmarl.trainer.learning.instructions import random_instructions

NOT_CONDUCTED = ("random", "none")
_LABELS = {"central": "central conductor", "random": "random conductor", "none": "no conductor"}
_COLOURS = {"central": "#d55e00", "random": "#999999", "none": "#cc79a7"}


class ConductedTeam:
    """Local policies under one of the four conductors of the paper's Fig. 8(c).

    Args:
        actors: the local policies.
        level: the level above them.
        conductor: ``central`` (sees the state), ``random`` (uniform or standard normal instructions) or ``none`` (the
            instruction is withheld: an all-zero input). The fourth, ``local``, is ``LocalTeam``.
        sample: draw actions, and the central conductor's instructions, with noise seeded by the episodes' seeds,
            instead of taking the modes.
    """

    def __init__(self, actors: Actors, level: ConductorLevel, conductor: str, sample: bool = False) -> None:
        self.name, self.label, self.colour = conductor, _LABELS[conductor], _COLOURS[conductor]
        self._actors, self._level, self._sample = actors, level, sample
        self._generator = np.random.default_rng(0)
        self._noise_generator = torch.Generator()
        self._in_force = level.nothing_in_force(0)
        self._memories: list[Tensor] = []

    def reset(self, seeds: npt.NDArray[np.int64]) -> None:
        """Start episodes; random instructions are seeded by the episodes' seeds."""
        self._generator = np.random.default_rng(np.asarray(seeds, dtype=np.uint64))
        self._noise_generator.manual_seed(joint_seed(seeds))
        self._in_force = self._level.nothing_in_force(len(seeds))
        self._memories = self._actors.no_memories(len(seeds))

    @torch.no_grad()
    def act(self, observation: Observation, running: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[Any], ...]:
        """All actors' actions given the conductor's instruction."""
        seen = as_tensors(observation, self._actors.device)
        self._in_force = self._instructed(seen)
        context = self._level.seen_of(self._in_force.instruction)
        withheld = torch.zeros_like(context) if self.name == "none" else context
        noise = drawn_noise(self._actors, len(running), self._noise_generator) if self._sample else None
        decision, self._memories = self._actors.decide(seen, withheld, noise, self._memories)
        return tuple(action.cpu().numpy() for action in decision.environment_actions)

    def _instructed(self, observation: Observation) -> InForce:
        if self.name == "central":
            noise = self._level.step_noise(len(self._in_force.step), self._noise_generator) if self._sample else None
            return self._level.instruct(observation, self._in_force, noise)[0]
        if not bool((self._in_force.remaining <= 0).any()):
            return self._level.renewed(self._in_force, self._in_force.instruction)
        drawn = random_instructions(self._level.head, len(self._in_force.step), self._generator)
        return self._level.renewed(self._in_force, drawn.to(self._actors.device))

    def close(self) -> None:
        """Nothing to free."""


def conducted_teams(actors: Actors, level: ConductorLevel, sample: bool = False) -> dict[str, EvaluatedTeam]:
    """The local policies under every conductor that is not deployed, by name; see ``ConductedTeam``."""
    names = ("central", *NOT_CONDUCTED) if level.common is None else NOT_CONDUCTED
    return {name: ConductedTeam(actors, level, name, sample) for name in names}
