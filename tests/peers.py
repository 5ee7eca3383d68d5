"""Clients of an agent by the bare protocol, each a peer of its own: they send what ``AgentClient`` never would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hmarl.agent.v1 import agent_pb2, agent_pb2_grpc
from hmarl.agent.v1.tensors import to_tensor


class Peer:
    """A client with a connection of its own, of an agent that observes ``size`` numbers and has five actions."""

    def __init__(self, address: str, size: int = 6, mask: bool = True) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        self.channel = grpc.insecure_channel(address, options)
        self.stub = agent_pb2_grpc.AgentServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)
        self._observation = to_tensor(np.zeros(size, np.float32))
        self._mask = to_tensor(np.ones(5, np.bool_)) if mask else None

    def start(self, timeout: float = 20) -> str:
        """Start an episode."""
        return str(self.stub.StartEpisode(agent_pb2.StartEpisodeRequest(seed=1), timeout=timeout).session_id)

    def request(self, session_id: str, step: int, **changes: agent_pb2.Tensor) -> agent_pb2.ActRequest:
        """A request to act."""
        fields = {"observation": self._observation, "action_mask": self._mask, **changes}
        return agent_pb2.ActRequest(session_id=session_id, step=step, **fields)

    def act(
        self, session_id: str, step: int, timeout: float = 20, **changes: agent_pb2.Tensor
    ) -> agent_pb2.ActResponse:
        """One act."""
        return self.stub.Act(self.request(session_id, step, **changes), timeout=timeout)

    def raw(self, method: str, body: bytes) -> grpc.StatusCode:
        """Send any bytes to a unary method, and return the status."""
        try:
            self.channel.unary_unary(f"/hmarl.agent.v1.AgentService/{method}")(body, timeout=20)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    def healthy(self, timeout: float = 20) -> bool:
        """Whether health is SERVING."""
        answer = self.health.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@contextmanager
def peer(address: str, size: int = 6, mask: bool = True) -> Iterator[Peer]:
    """A client for as long as it is needed."""
    client = Peer(address, size, mask)
    try:
        yield client
    finally:
        client.channel.close()
