"""An agent over gRPC, for the client of asyncio."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc
import grpc.aio

from hmarl.agent.v1 import agent_pb2, agent_pb2_grpc
from hmarl.agent.v1.status import Code
from hmarl.sdk.clients.act_stream import AsyncActStream
from hmarl.sdk.clients.agent import AgentStatistics
from hmarl.sdk.clients.aside import Aside
from hmarl.sdk.clients.call_metadata import Metadata, current
from hmarl.sdk.clients.grpc_wire import failed_call
from hmarl.sdk.clients.operations import Abandon, Act, CallFailed, Describe, End, Reconnect, Start
from hmarl.sdk.clients.security import Age
from hmarl.sdk.clients.wires import END_TIMEOUT_S, START_TIMEOUT_S, Dialling


class _Connection:
    """A client's channel, of its own, and what is called over it; see ``grpc_wire._Connection``."""

    def __init__(self, channel: grpc.aio.Channel, receive_limit_bytes: int, shows: Metadata, version: int) -> None:
        self.channel = channel
        self.receive_limit_bytes = receive_limit_bytes
        self.shows = shows
        self.version = version
        self.stub = agent_pb2_grpc.AgentServiceStub(channel)  # type: ignore[no-untyped-call]

    @property
    def metadata(self) -> Metadata:
        """What a call that is made now carries."""
        return self.shows + current()


class _Successor:
    """A connection that is made aside, to be changed over to; see ``GrpcWire.keep_renewed``."""

    def __init__(self, connection: _Connection, standing: asyncio.Task[Any]) -> None:
        self.connection = connection
        self.standing = standing
        self.age = Age()


class AsyncGrpcWire:
    """See ``GrpcWire``; made and used in one event loop.

    Args:
        dialling: how connections are made.
        connect_timeout_s: seconds that an attempt to connect may take.
        receive_limit_bytes: the largest message that is taken.
        aside: for what nothing waits for.

    Attributes:
        connection: that which serves now.
    """

    def __init__(self, dialling: Dialling, connect_timeout_s: float, receive_limit_bytes: int, aside: Aside) -> None:
        self._dialling = dialling
        self._aside = aside
        self._stream: AsyncActStream | None = None
        self._starting: tuple[agent_pb2.StartEpisodeRequest, asyncio.Task[Any]] | None = None
        self._successor: _Successor | None = None
        self._closed = False
        self.connection = self._connect(connect_timeout_s, receive_limit_bytes)

    @property
    def receive_limit_bytes(self) -> int:
        """See ``Wire``."""
        return self.connection.receive_limit_bytes

    def _connect(self, connect_timeout_s: float, receive_limit_bytes: int) -> _Connection:
        dialling, keys = self._dialling, self._dialling.keys
        options, credentials = dialling.options(connect_timeout_s, receive_limit_bytes), dialling.channel_credentials()
        metadata, version = ((), 0) if keys is None else (keys.metadata, keys.version)
        channel = (
            grpc.aio.insecure_channel(dialling.address, options)
            if credentials is None
            else grpc.aio.secure_channel(dialling.address, credentials, options)
        )
        return _Connection(channel, receive_limit_bytes, metadata, version)

    def close(self) -> None:
        """See ``Wire``; closing goes on aside."""
        self._closed = True
        self._leave()

    def _leave(self) -> None:
        self.finish_acts()
        self.abandon()
        self._take_successor(None)
        self._aside.begin(self.connection.channel.close())

    async def reconnect(self, operation: Reconnect) -> None:
        """See ``Wire``."""
        self._leave()
        self.connection = self._connect(operation.connect_timeout_s, operation.receive_limit_bytes)

    def outdated(self, failure: CallFailed) -> bool:
        """See ``Wire``."""
        return self._dialling.outdated(failure, self.connection.version)

    def _take_successor(self, successor: _Successor | None) -> None:
        """See ``GrpcWire``."""
        if self._successor is not None:
            self._successor.standing.cancel()
            self._aside.begin(self._successor.connection.channel.close())
        self._successor = successor

    def keep_renewed(self, connect_timeout_s: float) -> None:
        """See ``GrpcWire``."""
        keys, successor, connection = self._dialling.keys, self._successor, self.connection
        if keys is not None and keys.look():
            made = self._connect(connect_timeout_s, connection.receive_limit_bytes)
            self._take_successor(_Successor(made, self._aside.begin(made.channel.channel_ready())))
        elif successor is not None and not successor.standing.done():
            successor.age.tell(self._dialling.address)
        elif successor is not None and self._starting is None:
            self._successor = None
            self.finish_acts()
            self._aside.begin(connection.channel.close(END_TIMEOUT_S))
            self.connection = successor.connection

    async def act(self, operation: Act, statistics: AgentStatistics) -> agent_pb2.ActResponse:
        """See ``Wire``."""
        if self._dialling.streaming:
            return await self._exchange(operation, statistics)
        return await self._unary_act(operation)

    async def _unary_act(self, operation: Act) -> agent_pb2.ActResponse:
        try:
            connection = self.connection
            response: agent_pb2.ActResponse = await connection.stub.Act(
                operation.request.act,
                timeout=operation.timeout_s,
                wait_for_ready=True,
                metadata=connection.metadata,
            )
            return response
        except grpc.RpcError as error:
            raise failed_call(error) from error

    async def _exchange(self, operation: Act, statistics: AgentStatistics) -> agent_pb2.ActResponse:
        session_id = operation.request.act.session_id
        stream = self._stream
        if stream is None or not stream.serves(session_id):
            self.finish_acts()
            connection = self.connection
            self._stream = stream = AsyncActStream(connection.stub, session_id, statistics, connection.shows)
        return await stream.exchange(operation)

    def finish_acts(self) -> None:
        """See ``Wire``."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    async def describe(self, operation: Describe) -> agent_pb2.GetAgentInfoResponse:
        """See ``Wire``."""
        request = agent_pb2.GetAgentInfoRequest(bundle_sha256=operation.bundle_sha256)
        try:
            connection = self.connection
            response: agent_pb2.GetAgentInfoResponse = await connection.stub.GetAgentInfo(
                request, timeout=operation.timeout_s, wait_for_ready=True, metadata=connection.metadata
            )
            return response
        except grpc.RpcError as error:
            raise failed_call(error) from error

    async def start(self, operation: Start) -> agent_pb2.StartEpisodeResponse:
        """See ``Wire``."""
        if self._starting is None or self._starting[0] is not operation.request:
            self.abandon()
            self._starting = (operation.request, self._aside.begin(self._start_call(operation.request)))
        task = self._starting[1]
        done, _ = await asyncio.wait({task}, timeout=operation.timeout_s)
        if not done:
            raise CallFailed(Code.DEADLINE_EXCEEDED, "no reply in time")
        self._starting = None
        try:
            response: agent_pb2.StartEpisodeResponse = task.result()
            return response
        except grpc.RpcError as error:
            raise failed_call(error) from error

    async def _start_call(self, request: agent_pb2.StartEpisodeRequest) -> Any:
        connection = self.connection
        return await connection.stub.StartEpisode(
            request, timeout=START_TIMEOUT_S, wait_for_ready=True, metadata=connection.metadata
        )

    def abandon(self, operation: Abandon | None = None) -> None:
        """See ``Wire``."""
        if self._starting is not None:
            self._aside.begin(self._end_when_started(self._starting[1]))
            self._starting = None

    async def _end_when_started(self, task: asyncio.Task[Any]) -> None:
        response = await task
        await self.finish(agent_pb2.EndEpisodeRequest(session_id=response.session_id), END_TIMEOUT_S)

    def end(self, operation: End) -> None:
        """See ``Wire``."""
        self._aside.begin(self.finish(agent_pb2.EndEpisodeRequest(session_id=operation.session_id), END_TIMEOUT_S))

    async def finish(self, request: agent_pb2.EndEpisodeRequest, timeout_s: float) -> None:
        """See ``Wire``."""
        if self._closed:  # the server forgets the session by itself
            return
        # Ended on purpose without looking at the outcome: the server may be gone, or may have forgotten already.
        with contextlib.suppress(grpc.RpcError):
            connection = self.connection
            await connection.stub.EndEpisode(request, timeout=timeout_s, metadata=connection.metadata)
