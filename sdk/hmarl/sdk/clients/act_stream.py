"""Streams of acts, one per session: requests go out at once, replies are read aside, late ones are dropped."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator

import grpc

from hmarl.agent.v1 import agent_pb2, agent_pb2_grpc
from hmarl.agent.v1.messages import status_of
from hmarl.agent.v1.status import Code, code_of
from hmarl.sdk.clients.agent import AgentStatistics
from hmarl.sdk.clients.call_metadata import Metadata
from hmarl.sdk.clients.operations import Act, CallFailed
from hmarl.sdk.clock import now_s

# Requests of a stream that are on their way; beyond that the server is not listening and further ones are left out.
MAX_OUTSTANDING = 64
_METHOD = "/hmarl.agent.v1.AgentService/StreamAct"
# How a stream ends when its server dies, ends it because it was idle, or the connection breaks.
_ENDED = frozenset(
    {
        Code.UNKNOWN,
        Code.INTERNAL,
        Code.CANCELLED,
        Code.ABORTED,
        Code.DEADLINE_EXCEEDED,
    }
)


def broken_stream(error: grpc.RpcError) -> CallFailed:
    """What ended a stream. A server that dies or ends it shows itself in several ways; all mean: open it again."""
    code = code_of(error.code().value[0])
    return CallFailed(Code.UNAVAILABLE if code in _ENDED else code, error.details() or "")


def take_reply(
    response: agent_pb2.StreamActResponse, step: int, statistics: AgentStatistics
) -> agent_pb2.ActResponse | None:
    """A stream's response when it belongs to ``step``; None for a late one, which is counted and dropped.

    Raises:
        CallFailed: the server answered this step with an error.
    """
    if response.WhichOneof("result") == "act":
        act = response.act
        if act.step == step:
            return act
        statistics.missed_steps += act.missed_steps
    elif response.error.step == step:
        raise CallFailed(status_of(response.error), response.error.message)
    statistics.late_replies += 1
    return None


def _no_reply(*, heard: bool) -> CallFailed:
    return CallFailed(Code.DEADLINE_EXCEEDED, "no reply in time", heard=heard)


class ActStream:
    """A bidirectional stream of one session.

    Replies go to a queue, so that an act can stop waiting without breaking the stream. gRPC's own thread puts them
    there as it parses them; the thread that reads the stream only asks for the next one and sees the end. An act thus
    waits for one hand-over between threads, not for two.
    """

    def __init__(
        self, channel: grpc.Channel, session_id: str, statistics: AgentStatistics, metadata: Metadata = ()
    ) -> None:
        self._session_id = session_id
        self._statistics = statistics
        self._requests: queue.SimpleQueue[agent_pb2.StreamActRequest | None] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[agent_pb2.StreamActResponse | CallFailed] = queue.SimpleQueue()
        self._sent = 0
        self._received = 0
        self._ended = False
        method = channel.stream_stream(_METHOD, agent_pb2.StreamActRequest.SerializeToString, self._parse)
        self._call = method(iter(self._requests.get, None), wait_for_ready=True, metadata=metadata)
        self._reader = threading.Thread(target=self._read, name="hmarl-stream", daemon=True)
        self._reader.start()

    def serves(self, session_id: str) -> bool:
        """Whether the stream is whole and belongs to this session."""
        return not self._ended and session_id == self._session_id

    def exchange(self, operation: Act) -> agent_pb2.ActResponse:
        """Send a request and wait for its reply; late replies to older steps are counted and dropped.

        Raises:
            CallFailed: the server answered with an error, the stream ended, or the time is over.
        """
        left = operation.timeout_s
        deadline = now_s() + left
        unsent, before = True, self._received
        while True:
            if unsent and self._sent - self._received < MAX_OUTSTANDING:
                unsent = False
                self._sent += 1
                self._requests.put(operation.request)
            try:
                reply = self._replies.get(timeout=left)
            except queue.Empty:
                raise _no_reply(heard=self._received > before) from None
            if isinstance(reply, CallFailed):
                raise reply
            self._received += 1
            response = take_reply(reply, operation.step, self._statistics)
            if response is not None:
                return response
            left = max(deadline - now_s(), 0.0)

    def _parse(self, data: bytes) -> agent_pb2.StreamActResponse:
        response: agent_pb2.StreamActResponse = agent_pb2.StreamActResponse.FromString(data)
        self._replies.put(response)
        return response

    def _read(self) -> None:
        try:
            for _ in self._call:
                pass  # _parse has handed it over
            failure = CallFailed(Code.UNAVAILABLE, "the server closed the stream")
        except grpc.RpcError as error:
            failure = broken_stream(error)
        self._ended = True  # first: whoever looks before sending opens another stream at once
        self._replies.put(failure)

    def close(self) -> None:
        """Cancel the stream, without waiting for its threads; whatever still comes over it is dropped."""
        self._ended = True
        self._requests.put(None)
        self._call.cancel()


class AsyncActStream:
    """The same for asyncio.

    Replies are read by a task of their own: cancelling a read would cancel the whole stream.
    """

    def __init__(
        self,
        stub: agent_pb2_grpc.AgentServiceStub,
        session_id: str,
        statistics: AgentStatistics,
        metadata: Metadata = (),
    ) -> None:
        self._session_id = session_id
        self._statistics = statistics
        self._requests: asyncio.Queue[agent_pb2.StreamActRequest] = asyncio.Queue()
        self._replies: deque[agent_pb2.StreamActResponse] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._failure: CallFailed | None = None
        self._sent = 0
        self._received = 0
        self._loop = asyncio.get_running_loop()
        self._call = stub.StreamAct(self._outgoing(), wait_for_ready=True, metadata=metadata)
        self._reader = asyncio.create_task(self._read())

    def serves(self, session_id: str) -> bool:
        """Whether the stream is whole and belongs to this session."""
        return self._failure is None and session_id == self._session_id

    async def exchange(self, operation: Act) -> agent_pb2.ActResponse:
        """Send a request and wait for its reply; see ``ActStream.exchange``."""
        deadline = now_s() + operation.timeout_s
        unsent, before = True, self._received
        while True:
            if unsent and self._sent - self._received < MAX_OUTSTANDING:
                unsent = False
                self._sent += 1
                self._requests.put_nowait(operation.request)
            if not self._replies:
                if self._failure is not None:
                    raise self._failure
                if not await self._arrival(max(deadline - now_s(), 0.0)):
                    raise _no_reply(heard=self._received > before)
                continue
            self._received += 1
            response = take_reply(self._replies.popleft(), operation.step, self._statistics)
            if response is not None:
                return response

    async def _arrival(self, timeout_s: float) -> bool:
        """Wait until there is a reply or the stream has ended; False when the time is over."""
        self._waiter = waiter = self._loop.create_future()
        timer = self._loop.call_later(timeout_s, _wake, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None
        return bool(self._replies) or self._failure is not None

    def _arrived(self) -> None:
        if self._waiter is not None:
            _wake(self._waiter)

    async def _outgoing(self) -> AsyncIterator[agent_pb2.StreamActRequest]:
        while True:
            yield await self._requests.get()

    async def _read(self) -> None:
        try:
            async for response in self._call:
                self._replies.append(response)
                self._arrived()
            self._failure = CallFailed(Code.UNAVAILABLE, "the server closed the stream")
        except grpc.RpcError as error:
            self._failure = broken_stream(error)
        self._arrived()

    def close(self) -> None:
        """Cancel the stream, without waiting for its tasks; whatever still comes over it is dropped."""
        self._failure = CallFailed(Code.CANCELLED, "the client closed the stream")
        self._call.cancel()
        self._reader.cancel()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
