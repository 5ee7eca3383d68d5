"""PettingZoo parallel environments whose agents' names, bounds and observation sizes are the caller's."""

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv


class Team(ParallelEnv):
    """Agents who see random numbers and are paid for what they do; every action is checked against its own space.

    Args:
        names: of the agents.
        bounds: (low, high) of each component of all agents' actions; None for five choices.
        dtype: of the Box.
        observation_size: numbers that each agent sees.
    """

    def __init__(self, names=("a", "b"), bounds=None, dtype="float32", observation_size=3, render_mode=None):
        self.possible_agents = list(names)
        self.agents = []
        self.max_cycles = 5
        self.render_mode = render_mode
        self._random = np.random.default_rng(0)
        self._sees = spaces.Box(-1.0, 1.0, (observation_size,), np.float32)
        self._acts = spaces.Discrete(5)
        if bounds is not None:
            low, high = np.array(bounds, np.float64).T.astype(dtype)
            self._acts = spaces.Box(low, high, dtype=np.dtype(dtype).type)

    def observation_space(self, agent):
        return self._sees

    def action_space(self, agent):
        return self._acts

    def reset(self, seed=None, options=None):
        if seed is not None:
            self._random = np.random.default_rng(seed)
        self.agents, self._step = list(self.possible_agents), 0
        return self._seen(), {agent: {} for agent in self.agents}

    def step(self, actions):
        for agent, action in actions.items():
            if isinstance(self._acts, spaces.Box):
                assert action.dtype == self._acts.dtype
                inside = (action >= self._acts.low) & (action <= self._acts.high)
                assert inside.all(), f"{agent}: {action[~inside]} is out of bounds"
            else:
                assert self._acts.contains(action)
        self._step += 1
        over = self._step >= self.max_cycles
        rewards = {agent: float(self._random.normal()) for agent in self.agents}
        seen, present = self._seen(), list(self.agents)
        if over:
            self.agents = []
        ended, going_on = dict.fromkeys(present, over), dict.fromkeys(present, False)
        return seen, rewards, going_on, ended, {agent: {} for agent in present}

    def _seen(self):
        size = self._sees.shape
        return {agent: self._random.uniform(-1.0, 1.0, size).astype(np.float32) for agent in self.agents}


def make(**arguments):
    return Team(**arguments)
