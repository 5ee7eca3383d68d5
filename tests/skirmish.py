"""A small battle with the interface of SMAC's ``MultiAgentEnv``; it imports nothing but NumPy and the standard library.

It stands in for StarCraft II, whose package needs an older protobuf than hmarl: worker processes of another interpreter
import it, so it has to run on Python 3.8.
"""

import importlib
import os
import sys
import time

import numpy as np

NOOP, WAIT, STRIKE = range(3)


class Skirmish:
    """``n_agents`` soldiers strike an enemy until it has no strength left, or they none; then the battle is over.

    Each soldier has a weapon, drawn anew every episode, whose number it sees: the enemy suffers when the soldier uses
    that action (STRIKE or the one after). A soldier that waits is hurt, and dead after the second time.

    ``protobuf`` is how the version begins that must be installed beside it; ``fail_at`` and ``hang_at`` are steps.
    """

    def __init__(
        self, map_name="3m", seed=None, n_agents=3, episode_limit=6, protobuf=None, fail_at=None, hang_at=None
    ):
        if protobuf is not None:
            # Here there is nothing of hmarl: the worker's file stands alone.
            assert not {"hmarl", "gymnasium"} & set(sys.modules), sys.executable
            version = importlib.import_module("google.protobuf").__version__
            assert version.startswith(protobuf), f"protobuf {version} in {sys.executable}, expected {protobuf}"
        self.map_name, self.n_agents, self.episode_limit = map_name, n_agents, episode_limit
        self._fail_at, self._hang_at = fail_at, hang_at
        self._random = np.random.RandomState(seed)

    def get_env_info(self):
        return {
            "n_agents": self.n_agents,
            "n_actions": 4,
            "obs_shape": 3,
            "state_shape": 2 * self.n_agents + 1,
            "episode_limit": self.episode_limit,
        }

    def reset(self):
        self._step = 0
        self._strength = 2 * self.n_agents
        self._lives = np.full(self.n_agents, 2)
        self._weapons = self._random.randint(2, size=self.n_agents)
        return self.get_obs(), self.get_state()

    def step(self, actions):
        self._step += 1
        if self._step == self._fail_at:
            raise ValueError("the bridge is out")
        if self._step == self._hang_at:
            time.sleep(600)
        assert all(type(action) is int for action in actions)
        assert all(self.get_avail_actions()[agent][action] for agent, action in enumerate(actions)), actions
        hits = int((np.array(actions) == STRIKE + self._weapons).sum())
        self._strength -= hits
        self._lives -= np.array(actions) == WAIT
        won, lost = self._strength <= 0, not (self._lives > 0).any()
        info = {"battle_won": won, "dead_allies": int((self._lives <= 0).sum())}
        if self._step >= self.episode_limit and not (won or lost):
            info["episode_limit"] = True
        return hits / 2 + 10 * won, bool(won or lost or self._step >= self.episode_limit), info

    def get_obs(self):
        return [np.array([self._lives[i], self._weapons[i], self._step]) for i in range(self.n_agents)]

    def get_state(self):
        return np.concatenate([self._lives, self._weapons, [self._strength]])

    def get_avail_actions(self):
        return [[0, 1, 1, 1] if lives > 0 else [1, 0, 0, 0] for lives in self._lives]

    def close(self):
        pass


class SeededSkirmish(Skirmish):
    """The same, seeded at every reset."""

    def reset(self, seed=None):
        self._random = np.random.RandomState(seed)
        return super().reset()


class OldSkirmish(Skirmish):
    """The same, seeded by a method."""

    def __init__(self, map_name="3m"):
        super().__init__(map_name)

    def seed(self, seed):
        self._random = np.random.RandomState(seed)


class Quitter(Skirmish):
    """A battle whose process dies at the second step."""

    def step(self, actions):
        if self._step == 1:
            os._exit(7)
        return super().step(actions)


class Gymnast(Skirmish):
    """A step of five values, as in Gymnasium."""

    def step(self, actions):
        reward, ended, info = super().step(actions)
        return self.get_obs(), reward, ended, False, info


class Spread(Skirmish):
    """A reward for each soldier instead of one for all."""

    def step(self, actions):
        reward, ended, info = super().step(actions)
        return np.full(self.n_agents, reward), ended, info


class Plain(Skirmish):
    """The reward in an array, and no info."""

    def step(self, actions):
        reward, ended, _ = super().step(actions)
        return np.array([reward]), ended, None


class Lost(Skirmish):
    """A soldier whose sight is None."""

    def get_obs(self):
        return [None, *super().get_obs()[1:]]


class Nameless(Skirmish):
    """A description without the number of agents."""

    def get_env_info(self):
        info = super().get_env_info()
        del info["n_agents"]
        return info


class Numbered(Skirmish):
    """The state's last number is that of the copy, as argument and, times 100, as environment variable at reset."""

    def __init__(self, map_name="3m", seed=None, copy_index=None):
        super().__init__(map_name, seed)
        self._number = copy_index

    def reset(self):
        self._variable = int(os.environ["HMARL_COPY_INDEX"])
        return super().reset()

    def get_state(self):
        return np.concatenate([self._lives, self._weapons, [self._number + 100 * self._variable]])


class Blind(Skirmish):
    """Observations that are shorter than promised."""

    def get_obs(self):
        return np.zeros((self.n_agents, 2))
