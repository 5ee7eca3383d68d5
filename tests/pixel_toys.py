"""PettingZoo parallel environments whose observations are small pictures; imported by worker processes."""

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv


class Lit(ParallelEnv):
    """In each agent's picture one quadrant is lit, another one at each step; it is paid for naming it.

    Args:
        size: height of a picture; it is 2 pixels wider.
        agents: how many.
        length: steps of an episode; an agent that is always right earns 1.
        kind: ``uint8``, or ``float32`` in [0, 1].
        continuous: name it by its place, each coordinate -1 or 1, instead of its number.
        own_state: ``state`` is a picture of all quadrants, one pixel each; else there is none.
        leaving: the first agent leaves after half of the steps.
    """

    metadata = {"render_fps": 10}  # noqa: RUF012 - as PettingZoo declares it

    def __init__(self, size=12, agents=2, length=8, kind="uint8", continuous=False, own_state=False, leaving=False):
        self.possible_agents = [f"eye_{number}" for number in range(agents)]
        self.agents, self.max_cycles = [], length
        self._shape, self._kind, self._continuous, self._leaving = (size, size + 2, 3), kind, continuous, leaving
        self._random = np.random.default_rng()
        if own_state:
            self.state = self._state

    def observation_space(self, agent):
        return spaces.Box(0, 255 if self._kind == "uint8" else 1, self._shape, np.dtype(self._kind).type)

    def action_space(self, agent):
        return spaces.Box(-1.0, 1.0, (2,), np.float32) if self._continuous else spaces.Discrete(4)

    def reset(self, seed=None, options=None):
        if seed is not None:
            self._random = np.random.default_rng(seed)
        self.agents, self._step = list(self.possible_agents), 0
        self._draw()
        return self._seen(), {agent: {} for agent in self.agents}

    def step(self, actions):
        self._step += 1
        rewards = {agent: self._worth(agent, action) / self.max_cycles for agent, action in actions.items()}
        over = self._step >= self.max_cycles
        ended = {
            agent: over or (self._leaving and agent == "eye_0" and self._step >= self.max_cycles // 2)
            for agent in self.agents
        }
        self._draw()
        seen, infos = self._seen(), {agent: {} for agent in self.agents}
        self.agents = [agent for agent in self.agents if not ended[agent]]
        return seen, rewards, dict.fromkeys(ended, False), ended, infos

    def _worth(self, agent, action):
        lit = self._lit[agent]
        if not self._continuous:
            return float(action == lit)
        place = np.array([1.0 if lit >= 2 else -1.0, 1.0 if lit % 2 else -1.0])
        return 1.0 - float(np.abs(action - place).mean()) / 2.0

    def _draw(self):
        self._lit = {agent: int(self._random.integers(4)) for agent in self.possible_agents}

    def _seen(self):
        return {agent: self._picture(self._lit[agent]) for agent in self.agents}

    def _picture(self, lit):
        height, width, _ = self._shape
        picture = self._random.integers(0, 60, self._shape, dtype=np.uint8)
        rows, columns = (slice(lit // 2 * (height // 2), None), slice(lit % 2 * (width // 2), None))
        picture[rows, columns][: height // 2, : width // 2] += 180
        return picture if self._kind == "uint8" else (picture / 255.0).astype(np.float32)

    def _state(self):
        picture = np.zeros((2, 2 * len(self.possible_agents), 1), np.uint8)
        for number, agent in enumerate(self.possible_agents):
            picture[self._lit[agent] // 2, 2 * number + self._lit[agent] % 2] = 255
        return picture
