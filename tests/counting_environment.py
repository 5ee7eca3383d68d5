"""A deterministic toy ``VectorEnvironment`` whose returns can be worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from hmarl.sdk.environment import Observation, StepResult
from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec

HORIZON = 6


class CountingEnvironment:
    """Two agents with unequal spaces; an episode of seed s lasts ``s % 8 + 1`` steps, cut off after ``HORIZON``.

    Agent ``walker`` is rewarded with its action (0 … 4), agent ``arm`` with the sum of its two components. After its
    second step ``arm`` leaves. An episode is a success when it ends by itself. The one after it has seed 0.
    """

    def __init__(self, batch_size: int, honest: bool = True) -> None:
        box = spaces.Box(-np.ones(2, np.float32), np.ones(2, np.float32))
        self.batch_size = batch_size
        self.spec = EnvironmentSpec(
            name="toy/counting",
            agents=(AgentSpec("walker", 2, spaces.Discrete(5), has_action_mask=True), AgentSpec("arm", 3, box)),
            state_size=2,
            horizon=HORIZON,
            team_reward="sum",
            has_success=True,
        )
        self._horizon = HORIZON if honest else 10**9
        self.resets: list[list[int]] = []

    def reset(self, seeds: np.ndarray) -> Observation:
        self.resets.append(seeds.tolist())
        self._seeds = seeds.copy()
        self._steps = np.zeros(self.batch_size, np.int64)
        return self._observe()

    def _observe(self) -> Observation:
        state = np.stack([self._seeds, self._steps], axis=1).astype(np.float32)
        mask = np.ones((self.batch_size, 1, 5), np.bool_)
        mask[:, :, 0] = False
        active = np.stack([np.ones(self.batch_size, np.bool_), self._steps < 2], axis=1)
        return Observation((state[:, None], np.zeros((self.batch_size, 1, 3), np.float32)), (mask, None), state, active)

    def step(self, actions: tuple[np.ndarray, ...]) -> StepResult:
        walker, arm = actions
        assert (walker[:, 0] > 0).all(), "an illegal action"
        present = self._steps < 2
        rewards = np.stack([walker[:, 0].astype(np.float32), np.where(present, arm[:, 0].sum(-1), 0)], axis=1)
        self._steps += 1
        terminated = self._steps == self._seeds % 8 + 1
        truncated = ~terminated & (self._steps >= self._horizon)
        final = self._observe()
        ended = terminated | truncated
        self._steps[ended] = 0
        self._seeds[ended] = 0
        return StepResult(
            self._observe(), rewards, terminated, truncated, final if ended.any() else None, success=terminated
        )

    def get_state(self) -> Mapping[str, Any] | None:
        return None

    def set_state(self, state: Mapping[str, Any]) -> Observation:
        raise NotImplementedError

    def render(self, index: int = 0) -> np.ndarray | None:
        return np.full((20, 30, 3), 40 * self._steps[index], np.uint8)

    def close(self) -> None:
        """Nothing to free."""


class StepTeam:
    """``walker`` plays 1 + the step modulo 4, ``arm`` (1, 0.5); remembers what it was asked."""

    name = "steps"

    def __init__(self) -> None:
        self.running: list[list[bool]] = []

    def reset(self, seeds: np.ndarray) -> None:
        self.seeds = seeds

    def act(self, observation: Observation, running: np.ndarray) -> tuple[np.ndarray, ...]:
        self.running.append(running.tolist())
        walker = 1 + observation.observations[0][:, :, 1].astype(np.int64) % 4
        arm = np.broadcast_to(np.array([1.0, 0.5], np.float32), (len(running), 1, 2))
        return walker, arm

    def close(self) -> None:
        """Nothing to free."""
