"""Streams of acts, one per session: requests go out at once, replies are read aside, late ones are dropped."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import AsyncIterator

import grpc

from hmarl.agent.v1 import agent_pb2, agent_pb2_grpc
from hmarl.sdk.agent import AgentStatistics
from hmarl.sdk.remote_episode import Act, CallFailed, take_reply

# Requests of a stream that are on their way; beyond that the server is not listening and further ones are left out.
MAX_OUTSTANDING = 64
_JOIN_TIMEOUT_S = 0.5
_METHOD = "/hmarl.agent.v1.AgentService/StreamAct"


def broken_stream(error: grpc.RpcError) -> CallFailed:
    """What ended a stream. A dying server shows itself in several ways; all mean that it is to be tried again."""
    lost = error.code() in {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED}
    return CallFailed(grpc.StatusCode.UNAVAILABLE if lost else error.code(), error.details() or "")


class ActStream:
    """A bidirectional stream of one session.

    Replies go to a queue, so that an act can stop waiting without breaking the stream. gRPC's own thread puts them
    there as it parses them; the thread that reads the stream only asks for the next one and sees the end. An act thus
    waits for one hand-over between threads, not for two.
    """

    def __init__(self, channel: grpc.Channel, session_id: str, statistics: AgentStatistics) -> None:
        self._session_id = session_id
        self._statistics = statistics
        self._requests: queue.SimpleQueue[agent_pb2.StreamActRequest | None] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[agent_pb2.StreamActResponse | CallFailed] = queue.SimpleQueue()
        self._outstanding = 0
        self._broken = False
        method = channel.stream_stream(_METHOD, agent_pb2.StreamActRequest.SerializeToString, self._parse)
        self._call = method(iter(self._requests.get, None), wait_for_ready=True)
        self._reader = threading.Thread(target=self._read, name="hmarl-stream", daemon=True)
        self._reader.start()

    def serves(self, session_id: str) -> bool:
        """Whether the stream is whole and belongs to this session."""
        return not self._broken and session_id == self._session_id

    def exchange(self, operation: Act) -> agent_pb2.ActResponse:
        """Send a request and wait for its reply; late replies to older steps are counted and dropped.

        Raises:
            CallFailed: the server answered with an error, the stream broke, or the time is over.
        """
        left = operation.timeout_s
        deadline = time.monotonic() + left
        if self._outstanding < MAX_OUTSTANDING:
            self._outstanding += 1
            self._requests.put(operation.request)
        while True:
            try:
                reply = self._replies.get(timeout=left)
            except queue.Empty:
                raise CallFailed(grpc.StatusCode.DEADLINE_EXCEEDED, "no reply in time") from None
            if isinstance(reply, CallFailed):
                self._broken = True
                raise reply
            self._outstanding -= 1
            response = take_reply(reply, operation.step, self._statistics)
            if response is not None:
                return response
            left = max(deadline - time.monotonic(), 0.0)

    def _parse(self, data: bytes) -> agent_pb2.StreamActResponse:
        response: agent_pb2.StreamActResponse = agent_pb2.StreamActResponse.FromString(data)
        self._replies.put(response)
        return response

    def _read(self) -> None:
        try:
            for _ in self._call:
                pass  # _parse has handed it over
            failure = CallFailed(grpc.StatusCode.UNAVAILABLE, "the server closed the stream")
        except grpc.RpcError as error:
            failure = broken_stream(error)
        self._replies.put(failure)

    def close(self) -> None:
        """Cancel the stream; whatever still comes over it is dropped."""
        self._requests.put(None)
        self._call.cancel()
        self._reader.join(_JOIN_TIMEOUT_S)


class AsyncActStream:
    """The same for asyncio.

    Replies are read by a task of their own: cancelling a read would cancel the whole stream.
    """

    def __init__(self, stub: agent_pb2_grpc.AgentServiceStub, session_id: str, statistics: AgentStatistics) -> None:
        self._session_id = session_id
        self._statistics = statistics
        self._requests: asyncio.Queue[agent_pb2.StreamActRequest] = asyncio.Queue()
        self._replies: asyncio.Queue[agent_pb2.StreamActResponse | CallFailed] = asyncio.Queue()
        self._outstanding = 0
        self._broken = False
        self._call = stub.StreamAct(self._outgoing(), wait_for_ready=True)
        self._reader = asyncio.create_task(self._read())

    def serves(self, session_id: str) -> bool:
        """Whether the stream is whole and belongs to this session."""
        return not self._broken and session_id == self._session_id

    async def exchange(self, operation: Act) -> agent_pb2.ActResponse:
        """Send a request and wait for its reply; see ``ActStream.exchange``."""
        deadline = time.monotonic() + operation.timeout_s
        if self._outstanding < MAX_OUTSTANDING:
            self._outstanding += 1
            self._requests.put_nowait(operation.request)
        while True:
            try:
                reply = await asyncio.wait_for(self._replies.get(), max(deadline - time.monotonic(), 0.0))
            except TimeoutError:
                raise CallFailed(grpc.StatusCode.DEADLINE_EXCEEDED, "no reply in time") from None
            if isinstance(reply, CallFailed):
                self._broken = True
                raise reply
            self._outstanding -= 1
            response = take_reply(reply, operation.step, self._statistics)
            if response is not None:
                return response

    async def _outgoing(self) -> AsyncIterator[agent_pb2.StreamActRequest]:
        while True:
            yield await self._requests.get()

    async def _read(self) -> None:
        try:
            async for response in self._call:
                self._replies.put_nowait(response)
            failure = CallFailed(grpc.StatusCode.UNAVAILABLE, "the server closed the stream")
        except grpc.RpcError as error:
            failure = broken_stream(error)
        self._replies.put_nowait(failure)

    async def close(self) -> None:
        """Cancel the stream; whatever still comes over it is dropped."""
        self._call.cancel()
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader
