"""The two-step game of QMIX's paper (Rashid et al. 2018, section 5): what a sum of utilities cannot say, a monotone
mixture can.

In the first step agent 0's action alone counts: 0 leads to a game that always pays 7, and 1 to one that pays 8 where
both say 1, 1 where one of them does, and else 0. Nothing is paid in the first step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from hmarl.sdk.environment import Observation, StepResult
from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec

PAYOFF = np.array([[[7.0, 7.0], [7.0, 7.0]], [[0.0, 1.0], [1.0, 8.0]]], np.float32)


class TwoStepGame:
    """B copies; a ``VectorEnvironment``. All agents, and the state, are told which of the three games it is."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        agents = tuple(AgentSpec(f"player_{i}", 3, spaces.Discrete(2)) for i in range(2))
        self.spec = EnvironmentSpec("two_step_game", agents, 3, 2, "mean")
        self._game = np.zeros(batch_size, np.int64)

    def reset(self, seeds: npt.NDArray[np.int64]) -> Observation:
        self._game = np.zeros(self.batch_size, np.int64)
        return self._observe()

    def step(self, actions: tuple[Any, ...]) -> StepResult:
        chosen = np.asarray(actions[0])
        over = self._game > 0
        paid = np.where(over, PAYOFF[self._game - 1, chosen[:, 0], chosen[:, 1]], 0.0).astype(np.float32)
        self._game = np.where(over, 0, 1 + chosen[:, 0])
        observation = self._observe()
        rewards, final = np.stack([paid, paid], axis=1), observation if over.any() else None
        return StepResult(observation, rewards, over, np.zeros_like(over), final)

    def _observe(self) -> Observation:
        game = np.eye(3, dtype=np.float32)[self._game]
        seen = np.stack([game, game], axis=1)
        return Observation((seen,), (None,), game, np.ones((self.batch_size, 2), np.bool_))

    def get_state(self) -> Mapping[str, npt.NDArray[Any]]:
        return {"game": self._game.copy()}

    def set_state(self, state: Mapping[str, npt.NDArray[Any]]) -> Observation:
        self._game = np.array(state["game"])
        return self._observe()

    def render(self, index: int = 0) -> None:
        """There is nothing to draw."""

    def close(self) -> None:
        """Nothing to free."""


def make(batch_size: int) -> TwoStepGame:
    return TwoStepGame(batch_size)
