"""Fragments of episodes that were collected ε-greedily, and are learnt from again and again.

What VDN, QMIX and MAVEN have in common around the team's value (``team_value``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Protocol

import torch

from hmarl.trainer.experience.replay import Replay, Rows, all_finite, cut_into_fragments
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.mixing.acting import Exploration


class ReplaySettings(Protocol):
    """The settings that it reads."""

    chunk_length: int | None
    replay_capacity: int
    gradient_steps: int
    batch_fragments: int
    epsilon_start: float
    epsilon_final: float
    exploration_steps: int


class ReplayedFragments:
    """The replay buffer of fragments, and the exploration by which they are collected.

    Args:
        settings: of the buffer, of what is drawn from it, and of ε.
        generator: of what is drawn, on the device.

    Attributes:
        replay: the buffer.
        exploration: ε, by the environment steps that have been stored.
    """

    def __init__(self, settings: ReplaySettings, generator: torch.Generator) -> None:
        self._settings, self._generator = settings, generator
        self.replay = Replay(settings.replay_capacity)
        self.exploration = Exploration(
            settings.epsilon_start, settings.epsilon_final, settings.exploration_steps, generator.device
        )

    def store(self, rollout: Rollout, without: Collection[str] = ()) -> None:
        """Keep a rollout's fragments, unless a number among them is not finite.

        Args:
            rollout: full.
            without: names of rows that nothing is learnt from later.
        """
        self.exploration.frames += rollout.steps * rollout.batch_size
        rows = cut_into_fragments(rollout, self._settings.chunk_length or rollout.steps)
        if all_finite(rows):
            self.replay.add({name: values for name, values in rows.items() if name not in without})

    def draws(self) -> Iterator[Rows]:
        """``batch_fragments`` rows for each of the gradient steps; none while nothing is stored."""
        for _ in range(self._settings.gradient_steps if len(self.replay) else 0):
            yield self.replay.sample(self._settings.batch_fragments, self._generator)

    def metrics(self) -> dict[str, float]:
        """How much is left to chance, and what is kept."""
        return {"epsilon": self.exploration.epsilon, "replay_fragments": float(len(self.replay))}

    def components(self) -> dict[str, Any]:
        """What ε depends on, as ``Algorithm.components`` names it."""
        return {"frames": self.exploration.frames}

    def experience(self) -> dict[str, Any]:
        """The buffer, as ``Algorithm.experience`` names it."""
        return {"replay": self.replay}
