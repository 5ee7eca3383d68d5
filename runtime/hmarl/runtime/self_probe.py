"""A thread that acts once a second as a client would, and so knows whether acts get through."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import grpc
import numpy as np

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.messages import write_act
from hmarl.agent.v1.tensors import to_array
from hmarl.runtime.liveness import Liveness
from hmarl.runtime.manifest import AgentModel

INTERVAL_S = 1.0
TIMEOUT_S = 2.0
_ACT = "/hmarl.agent.v1.AgentService/Act"
# Acting for a probe takes at most about a fiftieth of the time, however slow a policy is.
_PAUSES_PER_ACT = 50
_PATIENCE = 20  # times the quickest probe


class SelfProbe:
    """Acts over the agent's own address: through its socket, its threads, its locks and its policy.

    Args:
        address: where the agent listens.
        agent: the manifest's entry of the agent.
        session_id: the session to act in, which no client knows, and which starts anew at each act.
        liveness: told how each probe went.
        tick: called after each probe.
        metadata: by which the agent knows itself.
    """

    def __init__(
        self,
        address: str,
        agent: AgentModel,
        session_id: str,
        liveness: Liveness,
        tick: Callable[[], None],
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self._address = _reachable(address)
        self._liveness = liveness
        self._tick = tick
        self._metadata = metadata
        self._quickest_s = 0.0  # not known yet
        request = agent_pb2.ActRequest()
        mask = None if agent.action_mask is None else np.ones(agent.action_mask.shape, np.bool_)
        write_act(request, session_id, 0, np.zeros(agent.observation.shape, np.float32), mask)
        self._request = request.SerializeToString()

    def start(self, closing: threading.Event) -> None:
        """Watch until ``closing`` is set, in a thread of its own."""
        threading.Thread(target=self._watch, args=(closing,), name="hmarl-self-probe", daemon=True).start()

    def _watch(self, closing: threading.Event) -> None:
        options = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))
        with grpc.insecure_channel(self._address, options) as channel:
            act = channel.unary_unary(_ACT)
            while not closing.wait(max(INTERVAL_S, _PAUSES_PER_ACT * self._quickest_s)):
                self._liveness.probed(self._probe(act))
                self._tick()

    def _probe(self, act: Callable[..., bytes]) -> bool:
        """One act of a new episode, judged by what a client would get."""
        started = time.monotonic()
        try:
            timeout_s = max(TIMEOUT_S, _PATIENCE * self._quickest_s)
            reply = agent_pb2.ActResponse.FromString(act(self._request, timeout=timeout_s, metadata=self._metadata))
        except grpc.RpcError:
            return False
        took_s = time.monotonic() - started
        self._quickest_s = min(self._quickest_s or took_s, took_s)
        return bool(np.isfinite(to_array(reply.action, "action")).all())


def _reachable(address: str) -> str:
    """The address for a client on this machine: who listens on all interfaces is spoken to over the loopback."""
    host, _, port = address.rpartition(":")
    return {"0.0.0.0": f"127.0.0.1:{port}", "[::]": f"[::1]:{port}"}.get(host, address)
