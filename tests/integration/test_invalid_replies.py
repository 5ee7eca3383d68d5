"""A server that answers with something else than the action that its own description promises."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

from hmarl.agent.v1 import agent_pb2, agent_pb2_grpc
from hmarl.agent.v1.tensors import to_tensor
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.service import agent_info
from hmarl.runtime.session import Policy
from hmarl.sdk.clients.client import AgentClient
from hmarl.sdk.errors import AgentError
from hmarl.sdk.fallback import Zero

MASK, SEEN = np.ones(5, np.bool_), np.zeros(6, np.float32)


class Liar(agent_pb2_grpc.AgentServiceServicer):
    """Describes itself as the toy agent, whose action is one of five, and answers with ``action``."""

    def __init__(self, policy: Policy) -> None:
        self.info = agent_info(policy)
        self.action = to_tensor(3)

    def GetAgentInfo(self, request: Any, context: Any) -> Any:
        return self.info

    def StartEpisode(self, request: Any, context: Any) -> Any:
        identity = {"agent_id": self.info.agent_id, "bundle_sha256": self.info.bundle_sha256}
        return agent_pb2.StartEpisodeResponse(session_id="one", **identity)

    def Act(self, request: Any, context: Any) -> Any:
        return agent_pb2.ActResponse(step=request.step, action=self.action)

    def StreamAct(self, requests: Any, context: Any) -> Any:
        for request in requests:
            yield agent_pb2.StreamActResponse(act=self.Act(request.act, context))

    def EndEpisode(self, request: Any, context: Any) -> Any:
        return agent_pb2.EndEpisodeResponse()


@pytest.fixture(scope="module")
def liar(toy_bundle: Bundle) -> Iterator[tuple[Liar, str]]:
    servicer = Liar(Policy(toy_bundle, "agent_0"))
    server = grpc.server(ThreadPoolExecutor(4))
    agent_pb2_grpc.add_AgentServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(None)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("action", "said"),
    [
        (np.zeros(5, np.float32), r"action\.shape: got float32 \(5,\), expected the shape \(\)"),
        (np.array(2.5, np.float32), r"action\.data_type: got float32, expected int64"),
        (np.array([3]), r"action\.shape: got 8 bytes for 1 sizes, expected the shape \(\)"),
    ],
)
def test_it_is_an_error_that_names_the_field_and_never_an_action(
    liar: tuple[Liar, str], action: np.ndarray, said: str, stream: bool
) -> None:
    servicer, address = liar
    servicer.action = to_tensor(action)
    with AgentClient(address, timeout_s=10.0, fallback=Zero(), stream=stream) as agent:
        agent.reset(1)
        with pytest.raises(AgentError, match=rf"^agent 'agent_0' at {address}: step 0: invalid reply: {said}"):
            agent.act(SEEN, MASK)
        servicer.action = to_tensor(3)
        assert agent.act(SEEN, MASK).action == 3, "the next act goes on"
