"""An agent over frames, for the client of asyncio; see ``frames_wire``."""

from __future__ import annotations

import asyncio
import contextlib
from typing import cast

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.frames_pb2 import FrameResponse
from hmarl.agent.v1.framing import SCHEME
from hmarl.agent.v1.status import Code
from hmarl.sdk.clients.agent import AgentStatistics
from hmarl.sdk.clients.frames_talk import Asked, Ended, Talk, closed, no_reply, taken_act
from hmarl.sdk.clients.frames_wire import connected
from hmarl.sdk.clients.operations import Abandon, Act, CallFailed, Describe, End, Reconnect, Start
from hmarl.sdk.clients.wires import Dialling
from hmarl.sdk.clock import now_s


class _Line(asyncio.Protocol):
    """A connection that stands.

    Attributes:
        talk: what was said over it.
    """

    def __init__(self, receive_limit_bytes: int) -> None:
        self.talk = Talk(receive_limit_bytes)
        self._loop = asyncio.get_running_loop()
        self._end: Ended | None = None
        self._full = False
        self._waiter: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.Protocol``."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=0)

    def pause_writing(self) -> None:
        """See ``asyncio.Protocol``."""
        self._full = True

    def resume_writing(self) -> None:
        """See ``asyncio.Protocol``."""
        self._full = False
        self._wake()

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        try:
            self.talk.take(data)
        except Ended as end:
            self._end = end
            self.close()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        self._end = self._end or closed()
        self._wake()

    def send(self, asked: Asked) -> None:
        """Send a request, unless the agent takes nothing at present.

        Raises:
            Ended: the connection is at its end.
        """
        if self._end is not None:
            raise self._end
        frame = asked.frame
        if frame is None or self._full or not self.talk.listened_to:
            return
        assert self._transport is not None
        self._transport.write(frame)
        self.talk.sent(asked)

    async def change(self, deadline: float) -> bool:
        """Wait until something has come; False when nothing has in time.

        Raises:
            Ended: the connection is at its end.
        """
        if self._end is not None:
            raise self._end
        left_s = deadline - now_s()
        if left_s <= 0.0:
            await asyncio.sleep(0)  # what has come is looked at all the same
            left_s = 0.0
        self._waiter = waiter = self._loop.create_future()
        timer = self._loop.call_later(left_s, self._expire, waiter)
        try:
            await waiter
        except TimeoutError:
            return False
        finally:
            timer.cancel()
            self._waiter = None
        return True

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @staticmethod
    def _expire(waiter: asyncio.Future[None]) -> None:
        if not waiter.done():
            waiter.set_exception(TimeoutError())

    def close(self) -> None:
        """Close it."""
        if self._transport is not None:
            self._transport.abort()


class AsyncFramesWire:
    """See ``FramesWire``; made and used in one event loop."""

    def __init__(self, dialling: Dialling, receive_limit_bytes: int) -> None:
        self.receive_limit_bytes = receive_limit_bytes
        self._path = dialling.address.removeprefix(SCHEME)
        self._line: _Line | None = None
        self._starting: tuple[agent_pb2.StartEpisodeRequest, Asked] | None = None

    async def act(self, operation: Act, statistics: AgentStatistics) -> agent_pb2.ActResponse:
        """See ``Wire``."""
        line = self._line or await self._connect()
        line.talk.statistics = statistics
        asked = line.talk.act(operation)
        try:
            response = await self._exchange(line, asked, now_s() + operation.timeout_s)
        finally:
            line.talk.give_up_act(asked)
        return taken_act(response, operation.step)

    async def describe(self, operation: Describe) -> agent_pb2.GetAgentInfoResponse:
        """See ``Wire``."""
        line = self._line or await self._connect()
        asked = line.talk.describe(agent_pb2.GetAgentInfoRequest(bundle_sha256=operation.bundle_sha256))
        try:
            return (await self._exchange(line, asked, now_s() + operation.timeout_s)).get_agent_info
        finally:
            line.talk.give_up(asked)

    async def start(self, operation: Start) -> agent_pb2.StartEpisodeResponse:
        """See ``Wire``."""
        line = self._line or await self._connect()
        if self._starting is None or self._starting[0] is not operation.request:
            self.abandon()
            self._starting = operation.request, line.talk.start(operation.request)
        asked = self._starting[1]
        try:
            response = await self._exchange(line, asked, now_s() + operation.timeout_s)
        except CallFailed as failure:
            if failure.code is not Code.DEADLINE_EXCEEDED:  # otherwise it stays on its way
                self._starting = None
            raise
        self._starting = None
        return response.start_episode

    def abandon(self, operation: Abandon | None = None) -> None:
        """See ``Wire``."""
        starting, self._starting = self._starting, None
        if starting is not None and self._line is not None:
            self._line.talk.give_up_start(starting[1])
            with contextlib.suppress(Ended):
                self._end_late_starts(self._line)

    async def end(self, operation: End) -> None:
        """See ``Wire``."""
        await self.finish(agent_pb2.EndEpisodeRequest(session_id=operation.session_id), 0.0)

    async def finish(self, request: agent_pb2.EndEpisodeRequest, timeout_s: float) -> None:
        """See ``Wire``."""
        # Ended on purpose without looking at the outcome: the agent may be gone, or may have forgotten already.
        with contextlib.suppress(CallFailed):
            line = self._line or await self._connect()
            asked = line.talk.end(request)
            try:
                await self._exchange(line, asked, now_s() + timeout_s)
            finally:
                line.talk.give_up(asked)

    def finish_acts(self) -> None:
        """See ``Wire``."""
        if self._line is not None:
            self._line.talk.forget_acts()

    async def reconnect(self, operation: Reconnect) -> None:
        """See ``Wire``."""
        self.close()
        self.receive_limit_bytes = operation.receive_limit_bytes

    def outdated(self, failure: CallFailed) -> bool:
        """See ``Wire``."""
        return False

    def keep_renewed(self, connect_timeout_s: float) -> None:
        """See ``Wire``; nothing is shown."""

    def close(self) -> None:
        """See ``Wire``."""
        line, self._line, self._starting = self._line, None, None
        if line is not None:
            line.close()

    async def _connect(self) -> _Line:
        stream, limit_bytes = connected(self._path), self.receive_limit_bytes
        try:
            _, line = await asyncio.get_running_loop().create_unix_connection(lambda: _Line(limit_bytes), sock=stream)
        except BaseException:
            stream.close()
            raise
        self._line = line
        return line

    async def _exchange(self, line: _Line, asked: Asked, deadline: float) -> FrameResponse:
        """See ``FramesWire``."""
        talk, before = line.talk, line.talk.received
        try:
            line.send(asked)
            over = False
            while (response := talk.answer(asked)) is None:
                if over:
                    raise no_reply(heard=talk.received > before)
                over = not await line.change(deadline)
                if asked.frame is not None:
                    line.send(asked)
                if talk.started_late:
                    self._end_late_starts(line)
        except Ended:
            self.close()
            raise
        return response

    def _end_late_starts(self, line: _Line) -> None:
        """See ``FramesWire``."""
        while line.talk.started_late:
            asked = line.talk.end(agent_pb2.EndEpisodeRequest(session_id=line.talk.started_late.pop()))
            line.send(asked)
            line.talk.give_up(asked)
