"""An agent over frames (docs/frames.md), for the synchronous client: a Unix socket, and no thread but the caller's.

A session outlives its connection: whatever goes wrong with that, another one is made by the next request.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.frames_pb2 import FrameResponse
from hmarl.agent.v1.framing import SCHEME
from hmarl.agent.v1.status import Code
from hmarl.sdk.clients.agent import AgentStatistics
from hmarl.sdk.clients.frames_talk import Asked, Ended, Talk, closed, no_reply, taken_act
from hmarl.sdk.clients.operations import Abandon, Act, CallFailed, Describe, End, Reconnect, Start
from hmarl.sdk.clients.wires import Dialling
from hmarl.sdk.clock import now_s

_SELECTABLE = 1024  # descriptors below that fit into select's sets


class _Line:
    """A connection that stands.

    Attributes:
        talk: what was said over it.
    """

    def __init__(self, path: str, receive_limit_bytes: int, spin_s: float) -> None:
        self.talk = Talk(receive_limit_bytes)
        self._stream = connected(path)
        self._spin_s = spin_s

    def send(self, asked: Asked, deadline: float) -> None:
        """Send a request whole, or, when the agent takes nothing in time, not at all.

        Raises:
            Ended: the connection is at its end.
        """
        frame = asked.frame
        if frame is None or not self.talk.listened_to:
            return
        left = memoryview(frame)
        while left:
            try:
                left = left[self._stream.send(left) :]
            except BlockingIOError:
                if self._wait(deadline, writing=True):
                    continue
                if len(left) == len(frame):
                    return
                # A part of a frame cannot be taken back.
                raise Ended(Code.DEADLINE_EXCEEDED, "the agent does not read what it is sent") from None
            except OSError:
                raise self._parting_words() from None
        self.talk.sent(asked)

    def receive(self, deadline: float) -> bool:
        """Take in something; False when nothing came in time.

        Raises:
            Ended: the connection is at its end.
        """
        if not (self._spin_s and self._spin()) and not self._wait(deadline):
            return False
        try:
            data = self._stream.recv(self.talk.wanted_bytes)
        except BlockingIOError:
            return True
        except OSError:
            raise closed() from None
        if not data:
            raise closed()
        self.talk.take(data)
        return True

    def _spin(self) -> bool:
        """Look again and again for a while; whether something has come."""
        until = now_s() + self._spin_s
        while now_s() < until:
            if select.select([self._stream], [], [], 0.0)[0]:
                return True
        return False

    def _wait(self, deadline: float, *, writing: bool = False) -> bool:
        """Wait until the socket is ready."""
        left_s, stream = deadline - now_s(), self._stream
        left_s = left_s if left_s > 0.0 else 0.0
        if stream.fileno() < _SELECTABLE:  # precise to microseconds; poll to milliseconds
            if writing:
                return bool(select.select([], [stream], [], left_s)[1])
            return bool(select.select([stream], [], [], left_s)[0])
        poll = select.poll()
        poll.register(stream, select.POLLOUT if writing else select.POLLIN)
        return bool(poll.poll(1000.0 * left_s))

    def _parting_words(self) -> Ended:
        """Why it was closed, if the agent has said so."""
        try:
            while data := self._stream.recv(self.talk.wanted_bytes):
                self.talk.take(data)
        except Ended as end:
            return end
        except OSError:
            pass
        return closed()

    def close(self) -> None:
        """Close it."""
        self._stream.close()


class FramesWire:
    """See ``Wire``.

    Args:
        dialling: whom to reach.
        receive_limit_bytes: the largest message that is taken.
    """

    def __init__(self, dialling: Dialling, receive_limit_bytes: int) -> None:
        self.receive_limit_bytes = receive_limit_bytes
        self._path, self._spin_s = dialling.address.removeprefix(SCHEME), dialling.spin_s
        self._line: _Line | None = None
        self._starting: tuple[agent_pb2.StartEpisodeRequest, Asked] | None = None

    def act(self, operation: Act, statistics: AgentStatistics) -> agent_pb2.ActResponse:
        """See ``Wire``."""
        line = self._line or self._connect()
        line.talk.statistics = statistics
        asked = line.talk.act(operation)
        try:
            response = self._exchange(line, asked, now_s() + operation.timeout_s)
        finally:
            line.talk.give_up_act(asked)
        return taken_act(response, operation.step)

    def describe(self, operation: Describe) -> agent_pb2.GetAgentInfoResponse:
        """See ``Wire``."""
        line = self._line or self._connect()
        asked = line.talk.describe(agent_pb2.GetAgentInfoRequest(bundle_sha256=operation.bundle_sha256))
        try:
            return self._exchange(line, asked, now_s() + operation.timeout_s).get_agent_info
        finally:
            line.talk.give_up(asked)

    def start(self, operation: Start) -> agent_pb2.StartEpisodeResponse:
        """See ``Wire``."""
        line = self._line or self._connect()
        if self._starting is None or self._starting[0] is not operation.request:
            self.abandon()
            self._starting = operation.request, line.talk.start(operation.request)
        asked = self._starting[1]
        try:
            response = self._exchange(line, asked, now_s() + operation.timeout_s)
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
            try:
                self._end_late_starts(self._line)
            except Ended:
                self.close()

    def end(self, operation: End) -> None:
        """See ``Wire``."""
        self.finish(agent_pb2.EndEpisodeRequest(session_id=operation.session_id), 0.0)

    def finish(self, request: agent_pb2.EndEpisodeRequest, timeout_s: float) -> None:
        """See ``Wire``."""
        # Ended on purpose without looking at the outcome: the agent may be gone, or may have forgotten already.
        with contextlib.suppress(CallFailed):
            line = self._line or self._connect()
            asked = line.talk.end(request)
            try:
                self._exchange(line, asked, now_s() + timeout_s)
            finally:
                line.talk.give_up(asked)

    def finish_acts(self) -> None:
        """See ``Wire``."""
        if self._line is not None:
            self._line.talk.forget_acts()

    def reconnect(self, operation: Reconnect) -> None:
        """See ``Wire``."""
        self.close()
        self.receive_limit_bytes = operation.receive_limit_bytes

    def outdated(self, failure: CallFailed) -> bool:
        """See ``Wire``."""
        return False

    def keep_renewed(self, connect_timeout_s: float) -> None:
        """See ``Wire``; nothing is shown."""

    def leave(self) -> None:
        """See ``Wire``."""
        self.close()  # this process's hold on it alone

    def close(self) -> None:
        """See ``Wire``."""
        line, self._line, self._starting = self._line, None, None
        if line is not None:
            line.close()

    def _connect(self) -> _Line:
        self._line = line = _Line(self._path, self.receive_limit_bytes, self._spin_s)
        return line

    def _exchange(self, line: _Line, asked: Asked, deadline: float) -> FrameResponse:
        """Send a request, unless it is on its way already, and wait for its response.

        Raises:
            CallFailed: it is an error, the connection is at its end, or the time is over.
        """
        talk, before = line.talk, line.talk.received
        try:
            line.send(asked, deadline)
            while (response := talk.answer(asked)) is None:
                if not line.receive(deadline):
                    raise no_reply(heard=talk.received > before)
                if asked.frame is not None:
                    line.send(asked, deadline)
                if talk.started_late:
                    self._end_late_starts(line)
        except Ended:
            self.close()
            raise
        except CallFailed:
            raise
        except BaseException:  # Ctrl-C: something may have been sent or taken in by half
            self.close()
            raise
        return response

    def _end_late_starts(self, line: _Line) -> None:
        """End the sessions that started when nothing waited for them any longer."""
        while line.talk.started_late:
            asked = line.talk.end(agent_pb2.EndEpisodeRequest(session_id=line.talk.started_late.pop()))
            line.send(asked, 0.0)
            line.talk.give_up(asked)


def connected(path: str) -> socket.socket:
    """A socket that never blocks, connected to an agent's.

    Raises:
        CallFailed: nothing listens there (UNAVAILABLE: it may come), or no agent that this user may ask ever will.
    """
    stream = socket.socket(socket.AF_UNIX)
    try:
        stream.setblocking(False)
        stream.connect(path)
    except OSError as error:
        stream.close()
        raise CallFailed(*_why_not(path, error)) from None
    return stream


def _why_not(path: str, error: OSError) -> tuple[Code, str]:
    if isinstance(error, PermissionError):
        return Code.PERMISSION_DENIED, f"{error.strerror}: it is the agent's own user's, unless --frames-allow-uid"
    with contextlib.suppress(OSError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return Code.UNIMPLEMENTED, "that is no socket: give the path of the agent's --frames"
    if isinstance(error, BlockingIOError):
        return Code.UNAVAILABLE, "the agent does not accept connections: it is stopped, or has too many to look at"
    return Code.UNAVAILABLE, f"nothing listens there: {error.strerror or error}"
