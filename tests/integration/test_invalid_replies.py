"""A server that answers with something else than the action that its own description promises."""

from __future__ import annotations

import asyncio
import socketserver
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from hmarl.agent.v1 import agent_pb2, agent_pb2_grpc
from hmarl.agent.v1.frames_pb2 import FrameRequest, FrameResponse
from hmarl.agent.v1.framing import FrameReader, framed
from hmarl.agent.v1.tensors import to_tensor
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.service import agent_info
from hmarl.runtime.session import Policy
from hmarl.sdk.clients.async_client import AsyncAgentClient
from hmarl.sdk.clients.client import AgentClient
from hmarl.sdk.control.loop import ControlLoop
from hmarl.sdk.control.team import Command, StampedObservation
from hmarl.sdk.errors import AgentError
from hmarl.sdk.fallback import Hold, NoOp, Zero
from toy_bundle import ActionType, write_toy_bundle

MASK, SEEN = np.ones(5, np.bool_), np.zeros(6, np.float32)
MASKED = np.array([True, True, False, True, True])  # of five choices the third, of three and two the last of the three


class Liar(agent_pb2_grpc.AgentServiceServicer):
    """Describes itself as a toy agent, and answers with ``action``, so many steps ``ahead``."""

    def __init__(self, policy: Policy) -> None:
        self.info = agent_info(policy)
        self.action = to_tensor(3)
        self.ahead = 0

    def GetAgentInfo(self, request: Any, context: Any) -> Any:
        return self.info

    def StartEpisode(self, request: Any, context: Any) -> Any:
        identity = {"agent_id": self.info.agent_id, "bundle_sha256": self.info.bundle_sha256}
        return agent_pb2.StartEpisodeResponse(session_id="one", **identity)

    def Act(self, request: Any, context: Any) -> Any:
        return agent_pb2.ActResponse(step=request.step + self.ahead, action=self.action)

    def StreamAct(self, requests: Any, context: Any) -> Any:
        for request in requests:
            yield agent_pb2.StreamActResponse(act=self.Act(request.act, context))

    def EndEpisode(self, request: Any, context: Any) -> Any:
        return agent_pb2.EndEpisodeResponse()


@contextmanager
def serving(bundle: Bundle) -> Iterator[tuple[Liar, str]]:
    servicer = Liar(Policy(bundle, "agent_0"))
    server = grpc.server(ThreadPoolExecutor(4))
    agent_pb2_grpc.add_AgentServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(None).wait()


class _FramesHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        reader, liar = FrameReader(2**20), self.server.liar  # type: ignore[attr-defined]
        answers = {"act": liar.Act, "start_episode": liar.StartEpisode, "end_episode": liar.EndEpisode}
        answers["get_agent_info"] = liar.GetAgentInfo
        while data := self.request.recv(reader.wanted_bytes):
            for request in map(FrameRequest.FromString, reader.take(data)):
                kind = request.WhichOneof("request")
                answer = {kind: answers[kind](getattr(request, kind), None)}
                self.request.sendall(framed(FrameResponse(id=request.id, **answer)))


@contextmanager
def frames_door(path: Path, liar: Liar) -> Iterator[str]:
    """The same answers over frames."""
    with socketserver.UnixStreamServer(str(path), _FramesHandler) as server:
        server.liar = liar  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"frames:{path}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def liar(toy_bundle: Bundle) -> Iterator[tuple[Liar, str]]:
    with serving(toy_bundle) as served:
        yield served


@pytest.fixture(scope="module")
def liars(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[ActionType, tuple[Liar, str]]]:
    """One of each action space: five choices, three and two, [-1, 1] x [0, 10]."""
    folder = tmp_path_factory.mktemp("liars")
    spaces: tuple[ActionType, ...] = ("discrete", "multi_discrete", "box")
    with ExitStack() as stack:
        yield {each: stack.enter_context(serving(write_toy_bundle(folder / each, action=each))) for each in spaces}


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


OUTSIDE: list[tuple[ActionType, Any, str]] = [
    ("discrete", 99, "action: got 99, expected a choice from 0 to 4"),
    ("discrete", 5, "action: got 5, expected a choice from 0 to 4"),
    ("discrete", -1, "action: got -1, expected a choice from 0 to 4"),
    ("discrete", 2**62, f"action: got {2**62}, expected a choice from 0 to 4"),
    ("discrete", 2, "action: got 2, expected a choice that the action mask allows"),
    ("multi_discrete", [3, 0], r"action\[0\]: got 3, expected a choice from 0 to 2"),
    ("multi_discrete", [0, -1], r"action\[1\]: got -1, expected a choice from 0 to 1"),
    ("multi_discrete", [2, 0], r"action\[0\]: got 2, expected a choice that the action mask allows"),
    ("box", [np.nan, 1.0], r"action\[0\]: got nan, expected finite numbers"),
    ("box", [0.0, -np.inf], r"action\[1\]: got -inf, expected finite numbers"),
]


def answer_of(space: ActionType, action: Any) -> agent_pb2.Tensor:
    return to_tensor(action if space == "discrete" else np.array(action, np.float32 if space == "box" else np.int64))


@pytest.mark.parametrize("way", ["calls", "stream", "asyncio", "frames"])
@pytest.mark.parametrize(("space", "action", "said"), OUTSIDE)
def test_an_action_that_the_agent_does_not_have_is_such_an_error(
    liars: dict[ActionType, tuple[Liar, str]], space: ActionType, action: Any, said: str, way: str, tmp_path: Path
) -> None:
    servicer, address = liars[space]
    servicer.action = answer_of(space, action)
    mask = None if space == "box" else MASKED

    def act(at: str) -> None:
        if way == "asyncio":
            asyncio.run(awaited(at))
            return
        with AgentClient(at, timeout_s=10.0, fallback=Zero(), stream=way == "stream") as agent:
            agent.reset(1)
            agent.act(SEEN, mask)

    async def awaited(at: str) -> None:
        async with AsyncAgentClient(at, timeout_s=10.0, fallback=Zero()) as agent:
            await agent.reset(1)
            await agent.act(SEEN, mask)

    with ExitStack() as stack:
        if way == "frames":
            address = stack.enter_context(frames_door(tmp_path / "door", servicer))
        with pytest.raises(AgentError, match=rf"^agent 'agent_0' at {address}: step 0: invalid reply: {said}$"):
            act(address)


def test_numbers_outside_of_a_box_are_handed_on_and_bounded_by_a_control_loop(
    liars: dict[ActionType, tuple[Liar, str]],
) -> None:
    servicer, address = liars["box"]
    servicer.action = answer_of("box", [5.0, -7.0])
    told: list[Mapping[str, Command]] = []
    with AgentClient(address, timeout_s=10.0) as agent:
        agent.reset(1)
        assert np.asarray(agent.act(SEEN).action).tolist() == [5.0, -7.0]
        with ControlLoop(20.0, agent, lambda: {"agent_0": SEEN}, told.append, fallback=NoOp((1.0, 0.0))) as loop:
            loop.run(ticks=2)
    assert [each["agent_0"].action.tolist() for each in told] == [[1.0, 0.0]] * 2  # type: ignore[union-attr]


def test_what_was_refused_is_neither_held_nor_written_by_a_control_loop(toy_bundle: Bundle) -> None:
    told: list[Mapping[str, Command]] = []
    hold = Hold(expires_after_s=60.0, then=NoOp(1))
    with serving(toy_bundle) as (servicer, address):
        servicer.action = to_tensor(99)
        agent = AgentClient(address, timeout_s=0.3, fallback=hold)
        agent.reset(1)
        seen = {"agent_0": StampedObservation(SEEN, MASKED)}
        with (
            ControlLoop(20.0, agent, lambda: seen, told.append, fallback=hold, safe_action=hold) as loop,
            pytest.raises(AgentError, match="invalid reply: action: got 99"),
        ):
            loop.run(ticks=2)
    with agent:
        agent.timeout_s = 0.3
        assert agent.act(SEEN, MASKED).action == 1, "the agent is gone, and there is nothing to hold"
    assert [each["agent_0"].action for each in told] == [1], "the safe action"


def test_the_reply_to_another_step_is_such_an_error(liar: tuple[Liar, str]) -> None:
    servicer, address = liar
    servicer.action = to_tensor(3)
    with AgentClient(address, timeout_s=10.0, fallback=Zero()) as agent:
        agent.reset(1)
        servicer.ahead = 7
        with pytest.raises(AgentError, match="step 0: invalid reply: step: got 7, expected 0"):
            agent.act(SEEN, MASK)
        servicer.ahead = 0
        assert agent.act(SEEN, MASK).step == 1
