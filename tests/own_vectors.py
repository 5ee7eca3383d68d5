"""Functions as users write them that return environments of their own."""

import sys
from types import SimpleNamespace

from gymnasium import spaces

from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec
from odd_toys import Pair


def narrow(batch_size, width=0):
    """An environment as far as its spec; its agent sees ``width`` numbers."""
    spec = EnvironmentSpec("narrow", (AgentSpec("a", width, spaces.Discrete(2)),), 1, None, "sum")
    return SimpleNamespace(spec=spec, batch_size=batch_size, close=lambda: None)


def parallel(batch_size):
    """One of PettingZoo's."""
    return Pair()


class Exiting:
    """Calls sys.exit when it is reset."""

    def __init__(self, batch_size):
        self.spec = EnvironmentSpec("exiting", (AgentSpec("a", 1, spaces.Discrete(2)),), 1, None, "sum")
        self.batch_size = batch_size

    def reset(self, seeds):
        sys.exit(7)

    def close(self):
        pass


def exiting(batch_size):
    """A whole environment but for that."""
    return Exiting(batch_size)
