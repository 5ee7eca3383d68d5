"""An environment whose observations say when they were made, and which keeps what was done in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from hmarl.sdk.environment import Observation, StepResult
from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec

CHOICES = 4
BOX = spaces.Box(np.array([-1.0, 2.0], np.float32), np.array([1.0, 9.0], np.float32))


class Diary:
    """B copies with the agents ``a`` and ``b`` (four choices with masks) and ``arm`` (a Box of two).

    All see (step, episode, seed). At step t the choice t modulo 4 is illegal. ``b`` is away in the steps ``away``.

    Attributes:
        done: what was done at each step, one array per group.
    """

    def __init__(self, batch_size: int = 1, horizon: int = 100, away: tuple[int, ...] = ()) -> None:
        self.batch_size, self._horizon, self._away = batch_size, horizon, away
        layout = (("step", 1), ("episode", 1), ("seed", 1))
        agents = [AgentSpec(name, 3, spaces.Discrete(CHOICES), True, layout) for name in ("a", "b")]
        self.spec = EnvironmentSpec(
            "diary:make",
            (*agents, AgentSpec("arm", 3, BOX, observation_layout=layout)),
            3,
            horizon,
            "sum",
            common_observations=("step",),
        )
        self.done: list[tuple[np.ndarray, ...]] = []
        self._steps = self._episodes = self._seeds = np.zeros(batch_size, np.int64)

    def reset(self, seeds: np.ndarray) -> Observation:
        self._seeds = np.array(seeds)
        self._steps, self._episodes = 0 * self._seeds, 0 * self._seeds
        return self._observe()

    def step(self, actions: tuple[np.ndarray, ...]) -> StepResult:
        choices, _ = actions
        there = self._observe()
        legal = np.take_along_axis(there.action_masks[0], choices[..., None], -1)[..., 0]
        assert (legal | ~there.active[:, :2]).all(), "an illegal action"
        self.done.append(actions)
        self._steps = self._steps + 1
        truncated = self._steps >= self._horizon
        final = self._observe() if truncated.any() else None
        self._episodes = self._episodes + truncated
        self._steps = np.where(truncated, 0, self._steps)
        rewards = np.zeros((self.batch_size, 3), np.float32)
        return StepResult(self._observe(), rewards, np.zeros(self.batch_size, np.bool_), truncated, final)

    def _observe(self) -> Observation:
        state = np.stack([self._steps, self._episodes, self._seeds], axis=1).astype(np.float32)
        active = np.ones((self.batch_size, 3), np.bool_)
        active[:, 1] = ~np.isin(self._steps, self._away)
        mask = np.ones((self.batch_size, 2, CHOICES), np.bool_)
        mask[np.arange(self.batch_size), :, self._steps % CHOICES] = False
        mask |= ~active[:, :2, None]
        pair = np.repeat(state[:, None], 2, axis=1) * active[:, :2, None]
        return Observation((pair.astype(np.float32), state[:, None].copy()), (mask, None), state, active)

    def get_state(self) -> dict[str, Any]:
        return {"steps": self._steps.copy(), "episodes": self._episodes.copy(), "seeds": self._seeds.copy()}

    def set_state(self, state: Mapping[str, Any]) -> Observation:
        self._steps, self._episodes, self._seeds = (np.array(state[name]) for name in ("steps", "episodes", "seeds"))
        return self._observe()

    def render(self, index: int = 0) -> None:
        """Nothing to draw."""

    def close(self) -> None:
        """Nothing to free."""


def make(batch_size: int, horizon: int = 100) -> Diary:
    return Diary(batch_size, horizon)
