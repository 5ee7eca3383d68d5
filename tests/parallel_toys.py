"""PettingZoo parallel environments with everything that the adapter must cope with; imported by worker processes."""

import os

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

BOX = spaces.Box(-2.0, 2.0, (2, 2), np.float64)
SCOUT_VIEW = spaces.Dict({"position": spaces.Box(-1.0, 1.0, (2,), np.float32), "kind": spaces.Discrete(3)})


class Trio(ParallelEnv):
    """Three unlike agents: the scout (mask in its observation) leaves at step 2, the others are cut off at ``length``.

    The signaller has its mask in ``info``. Every action is checked against its space and echoed in the observations.
    """

    metadata = {"render_fps": 4}  # noqa: RUF012 - as PettingZoo declares it

    def __init__(
        self, length=4, ends="truncation", fail_at=None, die_at=None, unbounded=False, render_mode=None, cut_late=False
    ):
        self.possible_agents = ["scout", "carrier", "signaller"]
        self.agents = []
        self.max_cycles = length
        self.render_mode = render_mode
        self._ends, self._fail_at, self._die_at, self._cut_late = ends, fail_at, die_at, cut_late
        self._box = spaces.Box(-np.inf, np.inf, (2,), np.float32) if unbounded else BOX
        self._random = np.random.default_rng()

    def observation_space(self, agent):
        return {
            "scout": spaces.Dict({"observation": SCOUT_VIEW, "action_mask": spaces.MultiBinary(3)}),
            "carrier": spaces.Box(-2.0, 2.0, (2, 2), np.float64),
            "signaller": spaces.Tuple([spaces.MultiBinary(3), spaces.Box(0.0, 9.0, (1,), np.float32)]),
        }[agent]

    def action_space(self, agent):
        return {"scout": spaces.Discrete(3, start=1), "carrier": self._box, "signaller": spaces.MultiBinary(3)}[agent]

    def reset(self, seed=None, options=None):
        if seed is not None:
            self._random = np.random.default_rng(seed)
        self.agents = list(self.possible_agents)
        self._step = 0
        self._last = {"carrier": self._random.uniform(-1, 1, (2, 2)), "signaller": np.zeros(3, np.int8)}
        return self._seen(), self._infos()

    def step(self, actions):
        assert set(actions) == set(self.agents), f"got actions of {sorted(actions)}, expected {self.agents}"
        for agent, action in actions.items():
            assert self.action_space(agent).contains(action), f"{agent}: {action!r}"
        self._step += 1
        print("step", self._step)
        if self._step == self._fail_at:
            raise ValueError("the bridge is out")
        if self._step == self._die_at:
            os._exit(7)
        self._last.update({agent: action for agent, action in actions.items() if agent != "scout"})
        rewards = {agent: float(self._step) for agent in self.agents}
        over = self._step >= self.max_cycles + self._cut_late  # one step later, as many a loop has it
        terminated = dict.fromkeys(self.agents, over and self._ends == "termination")
        truncated = dict.fromkeys(self.agents, over and self._ends == "truncation")
        if self._step == 2:
            terminated["scout"] = True
            rewards["scout"] = 5.0
        seen, infos = self._seen(), self._infos()
        self.agents = [agent for agent in self.agents if not (terminated[agent] or truncated[agent])]
        return seen, rewards, terminated, truncated, infos

    def render(self):
        return np.full((6, 8, 3), 10 * self._step, np.uint8)

    def _seen(self):
        mask = np.array([1, self._step % 2, 0], np.int8)
        view = {"position": np.full(2, 0.25 * self._step, np.float32), "kind": self._step % 3}
        seen = {
            "scout": {"observation": view, "action_mask": mask},
            "carrier": self._last["carrier"],
            "signaller": (self._last["signaller"], np.array([self._step], np.float32)),
        }
        return {agent: seen[agent] for agent in self.agents}

    def _infos(self):
        # One pair of entries for each of the three bits: the first bit may not be set.
        infos = {"scout": {}, "carrier": {}, "signaller": {"action_mask": np.array([1, 0, 1, 1, 1, 1])}}
        return {agent: infos[agent] for agent in self.agents}


def make_trio(**kwargs):
    return Trio(**kwargs)
