"""What a client says over one connection of frames and what it is told, without any input or output.

The synchronous and the asyncio client have one of it for each connection, so that both take responses alike: by the id
of their request, late ones dropped and counted.
"""

from __future__ import annotations

import time

from google.protobuf.message import DecodeError

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.frames_pb2 import FrameRequest, FrameResponse
from hmarl.agent.v1.framing import FrameReader, LengthError, framed
from hmarl.agent.v1.status import Code, code_of
from hmarl.sdk.clients.agent import AgentStatistics
from hmarl.sdk.clients.call_metadata import current
from hmarl.sdk.clients.operations import Act, CallFailed
from hmarl.sdk.clients.wires import START_TIMEOUT_S

# Requests that are on their way; beyond that the agent is not listening and further ones are left out.
MAX_OUTSTANDING = 64


class Ended(CallFailed):
    """A connection is at its end, and with it whatever is on its way."""


class Asked:
    """A request.

    Attributes:
        number: its id.
        frame: what is to be sent; None once it is on its way.
    """

    __slots__ = ("frame", "number")

    def __init__(self, number: int, frame: bytes) -> None:
        self.number = number
        self.frame: bytes | None = frame


class Talk:
    """Requests and responses of one connection.

    Args:
        receive_limit_bytes: the largest message that is taken.

    Attributes:
        statistics: where late replies are counted; None before there is an episode.
        received: how many responses have come.
        outstanding: how many requests have not been answered.
        started_late: sessions that have started when nothing waited for them any longer: they are to be ended.
    """

    def __init__(self, receive_limit_bytes: int) -> None:
        self.statistics: AgentStatistics | None = None
        self.received = self.outstanding = 0
        self.started_late: list[str] = []
        self._reader = FrameReader(receive_limit_bytes)
        self._last_id = 0
        self._waited_for: dict[int, FrameResponse | None] = {}
        self._late_acts: set[int] = set()
        self._abandoned: set[int] = set()

    @property
    def wanted_bytes(self) -> int:
        """How many bytes to receive next."""
        return self._reader.wanted_bytes

    def act(self, operation: Act) -> Asked:
        """An act. It has no deadline: one that comes late still belongs to what a recurrent policy remembers."""
        return self._asked(FrameRequest(act=operation.request.act, metadata=operation.request.metadata))

    def start(self, start: agent_pb2.StartEpisodeRequest) -> Asked:
        """A start."""
        return self._asked(FrameRequest(start_episode=start, metadata=dict(current())), START_TIMEOUT_S)

    def describe(self, request: agent_pb2.GetAgentInfoRequest) -> Asked:
        """A question who is served."""
        return self._asked(FrameRequest(get_agent_info=request, metadata=dict(current())))

    def end(self, request: agent_pb2.EndEpisodeRequest) -> Asked:
        """An end."""
        return self._asked(FrameRequest(end_episode=request, metadata=dict(current())))

    @property
    def listened_to(self) -> bool:
        """Whether another request may be sent."""
        return self.outstanding < MAX_OUTSTANDING

    def sent(self, asked: Asked) -> None:
        """A request is on its way."""
        asked.frame = None
        self.outstanding += 1

    def answer(self, asked: Asked) -> FrameResponse | None:
        """The response to a request, once; None while it has not come.

        Raises:
            CallFailed: it is an error.
        """
        response = self._waited_for[asked.number]
        if response is None:
            return None
        del self._waited_for[asked.number]
        if response.HasField("error"):
            raise CallFailed(code_of(response.error.code), response.error.message)
        return response

    def give_up(self, asked: Asked) -> None:
        """Wait for a response no longer, if it has not come."""
        self._waited_for.pop(asked.number, None)

    def give_up_act(self, asked: Asked) -> None:
        """The same of an act, whose response is counted when it comes."""
        if asked.number in self._waited_for and asked.frame is None:
            self._late_acts.add(asked.number)
        self.give_up(asked)

    def give_up_start(self, asked: Asked) -> None:
        """The same of a session, which is to be ended if it comes."""
        response = self._waited_for.pop(asked.number, None)
        if response is None:
            if asked.frame is None:
                self._abandoned.add(asked.number)
        elif response.HasField("start_episode"):
            self.started_late.append(response.start_episode.session_id)

    def forget_acts(self) -> None:
        """Count no more late replies of the acts so far: their episode is over."""
        self._late_acts.clear()

    def take(self, data: bytes) -> None:
        """Take in what was received.

        Raises:
            Ended: the agent says so, or what came is no response.
        """
        try:
            for body in self._reader.take(data):
                self._take(FrameResponse.FromString(body))
        except (LengthError, DecodeError) as error:
            raise Ended(Code.INTERNAL, f"invalid reply: {error}") from error

    def _take(self, response: FrameResponse) -> None:
        number = response.id
        if not number:
            raise Ended(code_of(response.error.code), response.error.message)
        self.received += 1
        self.outstanding -= 1
        if number in self._waited_for:
            self._waited_for[number] = response
        elif number in self._late_acts:
            self._late_acts.remove(number)
            if self.statistics is not None:
                self.statistics.late_replies += 1
                self.statistics.missed_steps += response.act.missed_steps
        elif number in self._abandoned:
            self._abandoned.remove(number)
            if response.HasField("start_episode"):
                self.started_late.append(response.start_episode.session_id)

    def _asked(self, request: FrameRequest, timeout_s: float = 0.0) -> Asked:
        self._last_id = request.id = number = self._last_id + 1
        if timeout_s:
            request.deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        self._waited_for[number] = None
        return Asked(number, framed(request))


def taken_act(response: FrameResponse, step: int) -> agent_pb2.ActResponse:
    """The act of a response.

    Raises:
        CallFailed: it is none, or of another step.
    """
    act = response.act
    if not response.HasField("act") or act.step != step:
        raise CallFailed(Code.INTERNAL, f"invalid reply: got no act of step {step}")
    return act


def no_reply(*, heard: bool = False) -> CallFailed:
    """The time is over."""
    return CallFailed(Code.DEADLINE_EXCEEDED, "no reply in time", heard=heard)


def closed() -> Ended:
    """The agent is gone, or has closed the connection because it was idle."""
    return Ended(Code.UNAVAILABLE, "the agent closed the connection")
