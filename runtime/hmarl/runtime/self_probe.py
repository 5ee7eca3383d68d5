"""A thread that acts once a second as a client would, and so knows whether acts get through."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TypeAlias

import numpy as np

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.messages import write_act
from hmarl.agent.v1.tensors import to_array
from hmarl.runtime.liveness import Liveness
from hmarl.runtime.manifest import AgentModel

INTERVAL_S = 1.0
TIMEOUT_S = 2.0
# Acting for a probe takes at most about a fiftieth of the time, however slow a policy is.
_PAUSES_PER_ACT = 50
_PATIENCE = 20  # times the quickest probe
# Sends a request and returns the reply to it that comes within so many seconds; None where none does.
Ask: TypeAlias = Callable[[agent_pb2.ActRequest, float], agent_pb2.ActResponse | None]
Way: TypeAlias = Callable[[], AbstractContextManager[Ask]]


class SelfProbe:
    """Acts over the agent's own doors: through its sockets, its threads, its locks and its policy.

    Args:
        ways: in, one of each door.
        agent: the manifest's entry of the agent.
        session_id: the session to act in, which no client knows, and which starts anew at each act.
        liveness: told how each probe went.
        tick: called after each probe.
    """

    def __init__(
        self,
        ways: Sequence[Way],
        agent: AgentModel,
        session_id: str,
        liveness: Liveness,
        tick: Callable[[], None],
    ) -> None:
        self._ways = list(ways)
        self._liveness = liveness
        self._tick = tick
        self._quickest_s = 0.0  # not known yet
        self._request = agent_pb2.ActRequest()
        mask = None if agent.action_mask is None else np.ones(agent.action_mask.shape, np.bool_)
        write_act(self._request, session_id, 0, np.zeros(agent.observation.shape, np.float32), mask)

    def start(self, closing: threading.Event) -> None:
        """Watch until ``closing`` is set, in a thread of its own."""
        threading.Thread(target=self._watch, args=(closing,), name="hmarl-self-probe", daemon=True).start()

    def _watch(self, closing: threading.Event) -> None:
        with contextlib.ExitStack() as doors:
            asks = [doors.enter_context(way()) for way in self._ways]
            while not closing.wait(max(INTERVAL_S, _PAUSES_PER_ACT * self._quickest_s)):
                self._liveness.probed(all(self._probe(ask) for ask in asks))
                self._tick()

    def _probe(self, ask: Ask) -> bool:
        """One act of a new episode, judged by what a client would get."""
        started = time.monotonic()
        reply = ask(self._request, max(TIMEOUT_S, _PATIENCE * self._quickest_s))
        if reply is None:
            return False
        took_s = time.monotonic() - started
        self._quickest_s = min(self._quickest_s or took_s, took_s)
        return bool(np.isfinite(to_array(reply.action, "action")).all())
