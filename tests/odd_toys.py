"""Small PettingZoo parallel environments with one oddity each, as users' environments have them."""

import os
import re
import signal
import sys
import time

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

BOX = spaces.Box(-1.0, 9.0, (2,), np.float32)


class Pair(ParallelEnv):
    """Agents a and b; reward 1 each a step; both are cut off at ``length``. Sound: the others are built on it."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as PettingZoo declares it

    def __init__(self, length=5, render_mode=None):
        self.possible_agents, self.agents = ["a", "b"], []
        self.length, self.render_mode = length, render_mode

    def observation_space(self, agent):
        return BOX

    def action_space(self, agent):
        return spaces.Discrete(3)

    def reset(self, seed=None, options=None):
        self.rng, self.t, self.agents = np.random.default_rng(seed), 0, list(self.possible_agents)
        return self.seen(), self.infos()

    def step(self, actions):
        acted = list(self.agents)
        self.t += 1
        over = self.t >= self.length
        seen, rewards, infos = self.seen(), {agent: self.reward(agent) for agent in acted}, self.infos()
        if over:
            self.agents = []
        return seen, rewards, dict.fromkeys(acted, False), dict.fromkeys(acted, over), infos

    def seen(self):
        return {agent: self.view(agent) for agent in self.agents}

    def infos(self):
        return {agent: {} for agent in self.agents}

    def view(self, agent):
        return np.array([self.t, self.rng.random()], np.float32)

    def reward(self, agent):
        return 1.0


class Lingering(Pair):
    """b ends at step 2, a with ``length``; both stay in the list for good, and are paid as long as they do.

    ``strict``: an action for the dead is an error, and so is a step after all have ended; ``both``: both flags are set;
    ``greedy``: it is an error when the dead get no action.
    """

    def __init__(self, length=6, strict=False, both=False, greedy=False):
        super().__init__(length)
        self.strict, self.both, self.greedy, self.steps = strict, both, greedy, 0

    def step(self, actions):
        if self.strict and self.t >= 2 and "b" in actions:
            raise ValueError("b is dead")
        if self.strict and self.t >= self.length:
            raise ValueError("all are dead")
        if self.greedy:
            actions["b"]
        self.t += 1
        flags = {"a": self.t >= self.length, "b": self.t >= 2}
        rewards = dict.fromkeys(self.agents, float(self.t))
        return self.seen(), rewards, flags, flags if self.both else dict.fromkeys(flags, False), {}


class Apart(Pair):
    """Each agent ends at a step and in a way of its own: ``"2 truncation"``, ``"4 termination"``, or ``"4 off"``, the
    list without a flag.
    """

    def __init__(self, a="2 truncation", b="4 termination"):
        super().__init__()
        self.ends = {agent: (int(end.split()[0]), end.split()[1]) for agent, end in (("a", a), ("b", b))}

    def step(self, actions):
        self.t += 1
        now = {agent: kind for agent, (step, kind) in self.ends.items() if agent in self.agents and self.t == step}
        flags = [{agent: now.get(agent) == kind for agent in self.agents} for kind in ("termination", "truncation")]
        seen, rewards, infos = self.seen(), dict.fromkeys(self.agents, 1.0), self.infos()
        self.agents = [agent for agent in self.agents if agent not in now]
        return seen, rewards, *flags, infos


class Returning(Pair):
    """b ends at step 2, is off the list at steps 2 and 3, and back at step 4. ``at_once``: still listed at step 2."""

    def __init__(self, length=6, at_once=False):
        super().__init__(length)
        self.away = [3] if at_once else [2, 3]

    def step(self, actions):
        acted = list(self.agents)
        assert sorted(actions) == sorted(set(acted) - ({"b"} if self.t == 2 else set()))
        self.t += 1
        over = self.t >= self.length
        flags = {agent: over or (agent == "b" and self.t == 2) for agent in acted}
        self.agents = ["a"] if self.t in self.away else ["a", "b"]
        seen = self.seen()
        if over:
            self.agents = []
        return seen, dict.fromkeys(acted, 1.0), flags, {}, {}


class Masked(Pair):
    """Masks in the infos. ``when``: from "reset" on, from the first "step" on, or for "one" agent only."""

    def __init__(self, length=5, when="reset", legal=(0, 1, 1), multi=False):
        super().__init__(length)
        self.when, self.legal, self.multi = when, np.array(legal, np.int8), multi

    def action_space(self, agent):
        return spaces.MultiDiscrete([2, 2]) if self.multi else spaces.Discrete(3)

    def infos(self):
        shown = [agent for agent in self.agents if self.when != "one" or agent == "a"]
        shown = [] if self.when == "step" and self.t == 0 else shown
        return {agent: {"action_mask": self.legal} if agent in shown else {} for agent in self.agents}

    def step(self, actions):
        infos = self.infos()
        for agent, action in actions.items():
            mask = infos[agent].get("action_mask")
            assert mask is None or self.multi or mask[action], f"{agent} did what is illegal"
        return super().step(actions)


class MaskedUndeclared(Masked):
    """The masks in the observations, of which their space knows nothing."""

    def observation_space(self, agent):
        return spaces.Dict({"view": BOX})

    def infos(self):
        return {agent: {} for agent in self.agents}

    def view(self, agent):
        return {"view": super().view(agent), "action_mask": self.legal}


class Paid(Pair):
    """Rewards of another kind than a float, by name; numbers they are but for the last ones."""

    KINDS = {  # noqa: RUF012
        "array": np.array([1.0]),
        "matrix": np.ones((1, 1), np.float32),
        "integer": 1,
        "boolean": np.bool_(True),
        "float32": np.float32(1.0),
        "zero_d": np.array(1),
        "vector": np.array([1.0, 2.0]),
        "none": None,
        "text": "1.0",
        "complex": 1 + 2j,
        "empty": np.zeros(0),
    }

    def __init__(self, kind="array"):
        super().__init__()
        self.kind = kind

    def reward(self, agent):
        return self.KINDS[self.kind] if agent == "b" and self.t == 2 else 1.0


class Viewed(Pair):
    """Observation spaces and observations by name; at step 2 agent b sees what the name says."""

    PLACE = spaces.Dict({"place": spaces.Box(0.0, 9.0, (2,), np.float32), "kind": spaces.Discrete(3, start=1)})
    CASES = {  # noqa: RUF012
        "none": (BOX, [0.0, 0.0], None),
        "holds_none": (BOX, [0.0, 0.0], np.array([1.0, None], object)),
        "none_inside": (PLACE, {"place": [0, 0], "kind": 1}, {"place": None, "kind": 1}),
        "missing_part": (PLACE, {"place": [0, 0], "kind": 1}, {"kind": 1}),
        "part_outside": (PLACE, {"place": [0, 0], "kind": 1}, {"place": [0, 0], "kind": 0}),
        "negative": (spaces.Discrete(3), 1, -1),
        "too_many": (spaces.Discrete(3), 1, 3),
        "neighbour": (spaces.MultiDiscrete([2, 3]), [1, 1], [2, 1]),
        "longer": (BOX, [0.0, 0.0], [0.0, 0.0, 0.0]),
        "complex": (BOX, [0.0, 0.0], [1j, 0.0]),
        "outside": (BOX, [0.0, 0.0], [0.0, 500.0]),
        "transposed": (spaces.Box(0.0, 1.0, (3, 2)), np.zeros((3, 2)), np.zeros((2, 3))),
        "list": (BOX, [0.0, 0.0], [1, 2]),
        "rounded": (spaces.Box(-0.1, 0.1, (1,)), 0.0, np.float64(0.1)),
        "nothing": (spaces.Box(0.0, 1.0, (0,)), np.zeros(0), np.zeros(0)),
    }

    def __init__(self, case="none"):
        super().__init__()
        self.space, self.usual, self.odd = self.CASES[case]

    def observation_space(self, agent):
        return self.space

    def view(self, agent):
        return self.odd if agent == "b" and self.t == 2 else self.usual


class Contrary(Pair):
    """Breaks what PettingZoo asks of ``reset``, ``step`` and the list of agents, by name."""

    def __init__(self, how="sound"):
        super().__init__()
        self.how = how
        if how == "no_agents":
            self.possible_agents = []
        if how == "same_names":
            self.possible_agents = [1, "1"]
        if how == "no_seed":
            self.reset = lambda: Pair.reset(self)

    def reset(self, seed=None, options=None):
        result = super().reset(seed)
        if self.how == "no agents":
            self.agents = []
        odd = {"one_value": result[0], "no_infos": [result[0], None], "list_of_infos": (result[0], [1, 2])}
        return odd.get(self.how, result)

    def step(self, actions):
        seen, rewards, ended, cut, infos = super().step(actions)
        if self.how == "stranger" and self.t == 2:
            self.agents.append("newcomer")
        if self.how == "four":
            return seen, rewards, cut, infos
        if self.how == "blind" and self.t == 3:
            del seen["b"]
        if self.how == "list":
            return seen, list(rewards.values()), ended, cut, infos
        return seen, rewards, ended, cut, None if self.how == "no_infos" else infos


class OldSpaces:
    """No ParallelEnv, spaces in dictionaries."""

    possible_agents = ["a", "b"]  # noqa: RUF012
    observation_spaces = dict.fromkeys(possible_agents, BOX)
    action_spaces = dict.fromkeys(possible_agents, spaces.Discrete(3))

    def __init__(self):
        self.inner = Pair()
        self.reset, self.step = self.inner.reset, self.inner.step

    @property
    def agents(self):
        return self.inner.agents


class Failing(Pair):
    """Something goes wrong ``where`` ("make", "reset", "step", "render", "close"), ``how`` it says, once ``at`` or more
    steps are done.
    """

    def __init__(self, where="step", how="raise", at=2, render_mode=None):
        super().__init__(render_mode=render_mode)
        self.where, self.how, self.at, self.t, self.total = where, how, at, at, at
        self.fail("make")
        self.total = 0

    def fail(self, where):
        if where != self.where or self.total < self.at:
            return
        if self.how == "exit":
            sys.exit(7)
        if self.how == "interrupt":
            raise KeyboardInterrupt
        if self.how == "os_exit":
            os._exit(3)
        if self.how == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "sleep":
            time.sleep(10_000)
        if self.how == "spin":  # until the interrupt that it asks for itself has come
            os.kill(os.getpid(), signal.SIGINT)
            while True:
                pass
        if self.how == "native":  # holds the interpreter's lock all the while
            re.match("(a+)+$", "a" * 64 + "b")
        raise KeyError("wheel_left")

    def reset(self, seed=None, options=None):
        self.fail("reset")
        return super().reset(seed)

    def step(self, actions):
        self.total += 1
        self.fail("step")
        return super().step(actions)

    def render(self):
        self.fail("render")
        return np.zeros((4, 6, 3), np.uint8)

    def close(self):
        self.fail("close")


class Numbered(Pair):
    """Its observations tell the number that it was made with, and those it read when made and when reset."""

    def __init__(self, length=3, copy_index=None):
        super().__init__(length)
        self.numbers = [copy_index, int(os.environ["HMARL_COPY_INDEX"])]

    def observation_space(self, agent):
        return spaces.Box(-1.0, 1000.0, (3,), np.float32)

    def reset(self, seed=None, options=None):
        self.now = int(os.environ["HMARL_COPY_INDEX"])
        return super().reset(seed)

    def view(self, agent):
        return np.array([*self.numbers, self.now], np.float32)


def any_number(**others):
    """Takes whatever: no number is passed to it."""
    assert not others, others
    return Pair()


class Painter(Pair):
    """Pictures by name; ``at`` the second step they are odd."""

    def __init__(self, kind="sound", render_mode=None):
        super().__init__(render_mode=render_mode)
        self.kind = kind

    def action_space(self, agent):
        return spaces.Discrete(5)  # as the toy bundle's

    def render(self):
        picture = np.zeros((20, 30, 3), np.uint8)
        picture[:, : 5 * (self.t + 1)] = 255
        kinds = {
            "list": picture.tolist(),
            "alpha": np.concatenate([picture, np.full((20, 30, 1), 255, np.uint8)], -1),
            "float": picture / 255.0,
            "grey": picture[..., 0],
            "grows": np.zeros((20 + self.t, 30, 3), np.uint8),
            "none": None if self.t == 1 else picture,
            "text": "ansi",
        }
        if self.kind == "fails" and self.t >= 2:
            raise RuntimeError("cannot connect to display")
        if self.kind == "exits":
            sys.exit(1)
        if self.kind == "crashes":
            os._exit(9)
        return kinds.get(self.kind, picture)
