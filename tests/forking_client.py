"""A program that forks while it has a client: forking_client.py ADDRESS unary|stream; prints JSON.

A process of its own, as users have one: a test runner has loaded libraries whose threads a fork does not survive.
"""

from __future__ import annotations

import json
import os
import sys

import numpy as np

from hmarl.sdk.clients.client import AgentClient
from hmarl.sdk.errors import MisuseError

MASK = np.array([True, True, False, True, True])
SEEN = np.random.default_rng(3).normal(size=(2, 6)).astype(np.float32)


def in_child(agent: AgentClient) -> list[str]:
    """What each use of an inherited client says."""
    said = []
    for use in (lambda: agent.act(SEEN[1], MASK), lambda: agent.reset(1), agent.__enter__, agent.close):
        try:
            said.append(str(use()))
        except MisuseError as error:
            said.append(str(error))
    return said


def main() -> None:
    with AgentClient(sys.argv[1], timeout_s=20.0, stream=sys.argv[2] == "stream") as agent:
        agent.reset(7)
        agent.act(SEEN[0], MASK)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.write(writing, json.dumps(in_child(agent)).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            said = json.load(pipe)
        os.waitpid(child, 0)
        action = agent.act(SEEN[1], MASK)
        json.dump({"child": said, "after": [action.step, action.fresh, action.missed_steps]}, sys.stdout)


if __name__ == "__main__":
    main()
