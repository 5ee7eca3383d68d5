"""Tiny vectorised environments for tests of the trainer: masks, branches, unlike agents that leave, NaN rewards.

Made by import path, e.g. ``make("toy_environments:masked_discrete", batch_size=4)``. An agent sees random numbers that
follow from (seed, episode, step); it is rewarded for an action that can be read off its own observation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from hmarl.sdk.environment import Observation, StepResult
from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec

LENGTH = 5
_OBSERVATION_SIZE = 3


class ToyEnvironment:
    """B copies of a toy; a ``VectorEnvironment``.

    Args:
        name: of the spec.
        agents: their specs; every observation has three numbers in [-1, 1].
        batch_size: B.
        leaves: agent -> number of steps after which it leaves the episode.
        away: agent -> steps of an episode at which it is not there.
        nan_after: environment steps after which every reward is NaN.
        saves: whether ``get_state`` is supported.
    """

    def __init__(
        self,
        name: str,
        agents: tuple[AgentSpec, ...],
        batch_size: int,
        *,
        leaves: Mapping[int, int] | None = None,
        away: Mapping[int, tuple[int, ...]] | None = None,
        nan_after: int | None = None,
        saves: bool = True,
    ) -> None:
        self.batch_size = batch_size
        self.spec = EnvironmentSpec(name, agents, len(agents) * _OBSERVATION_SIZE + 1, LENGTH, "sum")
        self._nan_after, self._saves = nan_after, saves
        self._away = {agent: tuple(range(steps, LENGTH)) for agent, steps in (leaves or {}).items()} | dict(away or {})
        self._position = {
            agent: (g, m) for g, group in enumerate(self.spec.groups) for m, agent in enumerate(group.agents)
        }
        self._seeds = self._episodes = self._steps = np.zeros(batch_size, np.int64)
        self._steps_in_all = 0
        self.independent_copies = True

    def reset(self, seeds: npt.NDArray[np.int64]) -> Observation:
        self._seeds = np.array(seeds)
        self._episodes = np.zeros(self.batch_size, np.int64)
        self._steps = np.zeros(self.batch_size, np.int64)
        return self._observe()

    def step(self, actions: tuple[Any, ...]) -> StepResult:
        before = self._observe()
        rewards = np.zeros((self.batch_size, len(self.spec.agents)), np.float32)
        for agent, (group, member) in self._position.items():
            seen = before.observations[group][:, member]
            mask = before.action_masks[group]
            action = np.asarray(actions[group])[:, member]
            present = before.active[:, agent]
            if mask is not None:
                self._check_legal(agent, action[present], mask[present, member])
            rewards[:, agent] = np.where(present, self._reward(agent, seen, action), 0.0)
        self._steps_in_all += 1
        if self._nan_after is not None and self._steps_in_all > self._nan_after:
            rewards[:] = np.nan
        self._steps = self._steps + 1
        # Odd seeds end by termination, even ones are cut off.
        over = self._steps >= LENGTH
        terminated = over & (self._seeds % 2 == 1)
        observation, final = self._observe(), None
        if over.any():
            self._steps = np.where(over, 0, self._steps)
            self._episodes = self._episodes + over
            observation, final = self._observe(), observation
        return StepResult(observation, rewards, terminated, over & ~terminated, final)

    def get_state(self) -> Mapping[str, npt.NDArray[Any]] | None:
        if not self._saves:
            return None
        return {"seeds": self._seeds.copy(), "episodes": self._episodes.copy(), "steps": self._steps.copy()}

    def set_state(self, state: Mapping[str, npt.NDArray[Any]]) -> Observation:
        self._seeds, self._episodes, self._steps = (np.array(state[key]) for key in ("seeds", "episodes", "steps"))
        return self._observe()

    def render(self, index: int = 0) -> None:
        """There is nothing to draw."""

    def close(self) -> None:
        """Nothing to free."""

    def _numbers(self, agent: int) -> npt.NDArray[np.float32]:
        """[B, 3] in [-1, 1]: the fractional part of a wild sine, so that no generator has to be kept."""
        phase = 12.9898 * (self._seeds % 10007) + 78.233 * self._episodes + 37.719 * self._steps + 4.581 * agent
        spread = np.sin(phase[:, None] + np.arange(_OBSERVATION_SIZE)) * 43758.5453
        return (2.0 * (spread - np.floor(spread)) - 1.0).astype(np.float32)

    def _observe(self) -> Observation:
        count = len(self.spec.agents)
        active = np.ones((self.batch_size, count), np.bool_)
        for agent, steps in self._away.items():
            active[:, agent] = ~np.isin(self._steps, steps)
        seen = np.stack([self._numbers(agent) * active[:, agent, None] for agent in range(count)], axis=1)
        blocks, masks = [], []
        for group in self.spec.groups:
            blocks.append(seen[:, list(group.agents)])
            legal = np.stack([self._mask(agent, active[:, agent]) for agent in group.agents], axis=1)
            masks.append(legal if group.example.has_action_mask else None)
        state = np.concatenate([seen.reshape(self.batch_size, -1), self._steps[:, None] / LENGTH], axis=1)
        return Observation(tuple(blocks), tuple(masks), state.astype(np.float32), active)

    def _mask(self, agent: int, present: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """[B, A]: in every branch the choice (step + agent) mod size is illegal, unless the agent has left."""
        parts = []
        for size in _branches(self.spec.agents[agent]):
            illegal = (self._steps + agent) % size
            parts.append((np.arange(size) != illegal[:, None]) | ~present[:, None])
        return np.concatenate(parts, axis=1) if parts else np.zeros((self.batch_size, 0), np.bool_)

    def _check_legal(self, agent: int, action: npt.NDArray[Any], mask: npt.NDArray[np.bool_]) -> None:
        rows, start = np.arange(len(action)), 0
        for d, size in enumerate(_branches(self.spec.agents[agent])):
            chosen = action if action.ndim == 1 else action[:, d]
            assert mask[rows, start + chosen].all(), f"agent {agent} chose an illegal action"
            start += size

    def _reward(self, agent: int, seen: npt.NDArray[Any], action: npt.NDArray[Any]) -> npt.NDArray[Any]:
        sizes = _branches(self.spec.agents[agent])
        if not sizes:
            assert self.spec.agents[agent].action_space.low.min() <= action.min()
            assert action.max() <= self.spec.agents[agent].action_space.high.max()
            return -np.square(action - seen[:, : action.shape[1]]).mean(axis=1)
        wanted = [np.floor((seen[:, d] + 1.0) * 0.499 * size) for d, size in enumerate(sizes)]
        chosen = action[:, None] if action.ndim == 1 else action
        return np.mean(chosen == np.stack(wanted, axis=1), axis=1)


def _branches(agent: AgentSpec) -> list[int]:
    """Sizes of the discrete choices, none for a Box."""
    if isinstance(agent.action_space, spaces.Discrete):
        return [int(agent.action_space.n)]
    return [int(n) for n in agent.action_space.nvec] if isinstance(agent.action_space, spaces.MultiDiscrete) else []


def masked_discrete(
    batch_size: int, agents: int = 2, nan_after: int | None = None, saves: bool = True
) -> ToyEnvironment:
    """Alike agents with four choices, one of which is illegal at every step."""
    space = spaces.Discrete(4)
    specs = tuple(AgentSpec(f"chooser_{i}", _OBSERVATION_SIZE, space, has_action_mask=True) for i in range(agents))
    return ToyEnvironment("toy/masked_discrete", specs, batch_size, nan_after=nan_after, saves=saves)


def multi_discrete(batch_size: int) -> ToyEnvironment:
    """One agent that makes two choices at once, each with an illegal one."""
    agent = AgentSpec("brancher", _OBSERVATION_SIZE, spaces.MultiDiscrete([3, 2]), has_action_mask=True)
    return ToyEnvironment("toy/multi_discrete", (agent,), batch_size)


def leaving(batch_size: int) -> ToyEnvironment:
    """Three unlike agents; the scout leaves after two steps, the arm after four."""
    box = spaces.Box(np.array([-1.0, -0.1], np.float32), np.array([1.0, 0.7], np.float32))
    agents = (
        AgentSpec("scout", _OBSERVATION_SIZE, spaces.Discrete(3), has_action_mask=True),
        AgentSpec("arm", _OBSERVATION_SIZE, box),
        AgentSpec("speaker", _OBSERVATION_SIZE, spaces.MultiDiscrete([2, 4])),
    )
    return ToyEnvironment("toy/leaving", agents, batch_size, leaves={0: 2, 1: 4})


def returning(batch_size: int) -> ToyEnvironment:
    """Alike choosers: one is always there, one leaves after two steps and is back for the last, one comes late."""
    agents = tuple(
        AgentSpec(f"chooser_{i}", _OBSERVATION_SIZE, spaces.Discrete(4), has_action_mask=True) for i in range(3)
    )
    return ToyEnvironment("toy/returning", agents, batch_size, away={1: (2, 3), 2: (0, 1)})


def poisoned(batch_size: int, nan_after: int = 20) -> ToyEnvironment:
    """``masked_discrete``, but after some steps all rewards are NaN."""
    return masked_discrete(batch_size, nan_after=nan_after)


class _BlindedOnce(ToyEnvironment):
    """One number of what the first agent sees after the first step is NaN, in the first environment."""

    def _observe(self) -> Observation:
        seen = super()._observe()
        if self._steps_in_all == 1:
            seen.observations[0][0, 0, 0] = np.nan
        return seen


def blinded_once(batch_size: int) -> ToyEnvironment:
    """``masked_discrete``, but one number that is observed is NaN."""
    specs = masked_discrete(1).spec.agents
    return _BlindedOnce("toy/blinded_once", specs, batch_size)


def one_stream(batch_size: int) -> ToyEnvironment:
    """``masked_discrete`` that draws for all copies from one stream, as it says, and cannot be saved."""
    environment = masked_discrete(batch_size, saves=False)
    environment.independent_copies = False
    return environment
