"""The client of an agent for asyncio.

async with AsyncAgentClient("127.0.0.1:50051", timeout_s=0.02) as agent:
await agent.reset(seed=1)
action = await agent.act(observation)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
import grpc.aio
import numpy as np
import numpy.typing as npt

from hmarl.agent.v1 import agent_pb2, agent_pb2_grpc
from hmarl.runtime.choices import InstructionChoice
from hmarl.sdk.clients.act_stream import AsyncActStream
from hmarl.sdk.clients.agent import Action
from hmarl.sdk.clients.base import END_TIMEOUT_S, METHODS, START_TIMEOUT_S, ClientBase, ClientOptions, failed_call
from hmarl.sdk.clients.call_metadata import Metadata, current
from hmarl.sdk.clients.link import LEAST_RECEIVE_LIMIT_BYTES
from hmarl.sdk.clients.operations import (
    Abandon,
    Act,
    CallFailed,
    Describe,
    End,
    Examine,
    Operation,
    Pause,
    Reconnect,
    Script,
    Start,
)
from hmarl.sdk.clients.remote_episode import describe
from hmarl.sdk.clients.security import Age
from hmarl.sdk.errors import MisuseError


class _Connection:
    """A client's channel, of its own, and what is called over it; see ``client._Connection``."""

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
    """A connection that is made aside, to be changed over to; see ``AgentClient._keep_renewed``."""

    def __init__(self, connection: _Connection, standing: asyncio.Task[Any]) -> None:
        self.connection = connection
        self.standing = standing
        self.age = Age()


class AsyncAgentClient(ClientBase):
    """``AgentClient`` for asyncio: ``async with AsyncAgentClient(...) as agent``, or ``await agent.connect()`` first.

    For its arguments see ``ClientBase``.
    """

    def __init__(self, address: str, **options: Unpack[ClientOptions]) -> None:
        super().__init__(address, **options)
        self._busy = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stream: AsyncActStream | None = None
        self._starting: tuple[agent_pb2.StartEpisodeRequest, asyncio.Task[Any]] | None = None
        self._background: set[asyncio.Task[Any]] = set()
        self._connection: _Connection | None = None  # made by connect, which runs in the event loop
        self._successor: _Successor | None = None

    async def connect(self) -> Self:
        """Connect, and see who is there; nothing when that is done.

        Raises:
            AgentError: no agent answers at the address.
            UsageError: the agent there is not the expected one.
            MisuseError: the client is closed, was inherited by a fork, or is in use.
        """
        async with self._in_use("connect"):
            if self._connection is not None:
                return self
            self._connection = self._connect(self._connect_timeout_s, LEAST_RECEIVE_LIMIT_BYTES)
            try:
                self._described(await self._run(describe(self._watch, self._deadline())))
            except BaseException as error:
                self._disconnect()
                if isinstance(error, CallFailed):
                    raise await self._explained("connecting", error) from error
                raise
        return self

    def _connect(self, connect_timeout_s: float, receive_limit_bytes: int) -> _Connection:
        options = self._channel_options(connect_timeout_s, receive_limit_bytes)
        credentials, keys = self._channel_credentials(), self._keys
        metadata, version = ((), 0) if keys is None else (keys.metadata, keys.version)
        channel = (
            grpc.aio.insecure_channel(self.address, options)
            if credentials is None
            else grpc.aio.secure_channel(self.address, credentials, options)
        )
        return _Connection(channel, receive_limit_bytes, metadata, version)

    @property
    def _connected_by(self) -> _Connection:
        assert self._connection is not None, "only what has connected calls"
        return self._connection

    def _disconnect(self) -> asyncio.Task[Any]:
        """Leave the connection, and whatever is on its way over it; closing goes on aside."""
        self._close_stream()
        self._abandon()
        connection, self._connection = self._connected_by, None
        self._take_successor(None)
        return self._aside(connection.channel.close())

    def _take_successor(self, successor: _Successor | None) -> None:
        """See ``AgentClient._take_successor``."""
        if self._successor is not None:
            self._successor.standing.cancel()
            self._aside(self._successor.connection.channel.close())
        self._successor = successor

    def _keep_renewed(self) -> None:
        """See ``AgentClient._keep_renewed``."""
        keys, successor, connection = self._keys, self._successor, self._connected_by
        if keys is not None and keys.look():
            made = self._connect(self._watch.connect_timeout_s, connection.receive_limit_bytes)
            self._take_successor(_Successor(made, self._aside(made.channel.channel_ready())))
        elif successor is not None and not successor.standing.done():
            successor.age.tell(self.address)
        elif successor is not None and self._starting is None:
            self._successor = None
            self._close_stream()
            self._aside(connection.channel.close(END_TIMEOUT_S))
            self._connection = successor.connection

    async def _explained(self, doing: str, failure: CallFailed) -> Exception:
        late = failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
        return self._error(doing, failure, await asyncio.to_thread(self._why) if late else None)

    def _aside(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Let something go on that nothing waits for."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._done_aside)
        return task

    def _done_aside(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled():
            task.exception()  # looked at, or asyncio would report it: whatever goes on aside may fail

    @contextlib.asynccontextmanager
    async def _in_use(self, doing: str) -> AsyncIterator[None]:
        """See ``AgentClient._in_use``."""
        self._take(doing)
        try:
            yield
        finally:
            self._busy = False

    def _take(self, doing: str) -> None:
        self._check_usable()
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                raise MisuseError(
                    f"{self.address}: {doing}: the client is connected in another event loop: make one in each"
                )
            self._loop = loop
        if self._busy:
            raise self._used_twice(doing, "task")
        self._busy = True

    async def reset(
        self,
        seed: int,
        *,
        sample: bool = False,
        instruction_choice: InstructionChoice | None = None,
        first_step: int = 0,
        bundle_sha256: str | None = None,
    ) -> None:
        """Start an episode; the one before it, if any, is ended. See ``AgentClient.reset``."""
        async with self._in_use("reset"):
            episode = self._connected
            request = episode.starting(seed, sample, instruction_choice, first_step, bundle_sha256)
            await self._end_episode()
            self._keep_renewed()
            try:
                with self._span("StartEpisode"):
                    await self._run(episode.start(request, self._deadline()))
            except CallFailed as failure:
                raise await self._explained("starting an episode", failure) from failure

    async def current_bundle(self) -> str:
        """SHA-256 of the bundle that new episodes get now; see ``AgentClient.current_bundle``."""
        async with self._in_use("current_bundle"):
            try:
                return str(await self._run(self._connected.current_bundle(self._deadline())))
            except CallFailed as failure:
                raise await self._explained("asking for its bundle", failure) from failure

    async def act(
        self, observation: npt.NDArray[np.float32], action_mask: npt.NDArray[np.bool_] | None = None
    ) -> Action:
        """The action for the next step; see ``AgentClient.act``."""
        if self._spans is None:
            return await self._act(observation, action_mask)
        with self._spans.span("Act") as span:
            action = await self._act(observation, action_mask)
            self._spans.tell(span, action)
            return action

    async def _act(self, observation: npt.NDArray[np.float32], action_mask: npt.NDArray[np.bool_] | None) -> Action:
        self._take("act")
        try:
            if self._keys is not None and self._connection is not None:
                self._keep_renewed()
            action: Action = await self._run(self._connected.act(observation, action_mask))
            return action
        finally:
            self._busy = False

    async def _run(self, script: Script) -> Any:
        """See ``AgentClient._run``."""
        try:
            operation = next(script)
            while True:
                try:
                    outcome = await self._perform(operation)
                except CallFailed as failure:
                    operation = script.throw(failure)
                else:
                    operation = script.send(outcome)
        except StopIteration as stop:
            return stop.value
        finally:
            script.close()

    async def _perform(self, operation: Operation) -> Any:
        try:
            if isinstance(operation, Act):
                return await (self._exchange(operation) if self._stream_wanted else self._unary_act(operation))
            return await getattr(self, METHODS[type(operation)])(operation)
        except CallFailed as failure:
            connection = self._connected_by
            if not self._refused_by_old(failure, connection.version):
                raise
            self._replace(self._watch.connect_timeout_s, connection.receive_limit_bytes)
            raise CallFailed(grpc.StatusCode.UNAVAILABLE, failure.details) from failure

    async def _do_examine(self, operation: Examine) -> None:
        self._examined(await asyncio.to_thread(self._why))

    async def _do_pause(self, operation: Pause) -> None:
        await asyncio.sleep(operation.seconds)

    async def _do_abandon(self, operation: Abandon) -> None:
        self._abandon()

    async def _do_end(self, operation: End) -> None:
        self._end(operation.session_id)

    async def _do_reconnect(self, operation: Reconnect) -> None:
        self._replace(operation.connect_timeout_s, operation.receive_limit_bytes)

    def _replace(self, connect_timeout_s: float, receive_limit_bytes: int) -> None:
        self._disconnect()
        self._connection = self._connect(connect_timeout_s, receive_limit_bytes)

    async def _unary_act(self, operation: Act) -> Any:
        try:
            connection = self._connected_by
            return await connection.stub.Act(
                operation.request.act,
                timeout=operation.timeout_s,
                wait_for_ready=True,
                metadata=connection.metadata,
            )
        except grpc.RpcError as error:
            raise failed_call(error) from error

    async def _do_describe(self, operation: Describe) -> Any:
        request = agent_pb2.GetAgentInfoRequest(bundle_sha256=operation.bundle_sha256)
        try:
            connection = self._connected_by
            return await connection.stub.GetAgentInfo(
                request, timeout=operation.timeout_s, wait_for_ready=True, metadata=connection.metadata
            )
        except grpc.RpcError as error:
            raise failed_call(error) from error

    async def _exchange(self, operation: Act) -> agent_pb2.ActResponse:
        session_id = operation.request.act.session_id
        stream = self._stream
        if stream is None or not stream.serves(session_id):
            self._close_stream()
            connection = self._connected_by
            self._stream = stream = AsyncActStream(connection.stub, session_id, self.statistics, connection.shows)
        return await stream.exchange(operation)

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    async def _do_start(self, operation: Start) -> Any:
        """See ``AgentClient._do_start``."""
        if self._starting is None or self._starting[0] is not operation.request:
            self._abandon()
            self._starting = (operation.request, self._aside(self._start_call(operation.request)))
        task = self._starting[1]
        done, _ = await asyncio.wait({task}, timeout=operation.timeout_s)
        if not done:
            raise CallFailed(grpc.StatusCode.DEADLINE_EXCEEDED, "no reply in time")
        self._starting = None
        try:
            return task.result()
        except grpc.RpcError as error:
            raise failed_call(error) from error

    async def _start_call(self, request: agent_pb2.StartEpisodeRequest) -> Any:
        connection = self._connected_by
        return await connection.stub.StartEpisode(
            request, timeout=START_TIMEOUT_S, wait_for_ready=True, metadata=connection.metadata
        )

    def _abandon(self) -> None:
        """See ``AgentClient._abandon``."""
        if self._starting is not None:
            self._aside(self._end_when_started(self._starting[1]))
            self._starting = None

    async def _end_when_started(self, task: asyncio.Task[Any]) -> None:
        response = await task
        await self._end_call(agent_pb2.EndEpisodeRequest(session_id=response.session_id))

    def _end(self, session_id: str) -> None:
        self._aside(self._end_call(agent_pb2.EndEpisodeRequest(session_id=session_id)))

    async def _end_call(self, request: agent_pb2.EndEpisodeRequest) -> None:
        if self._connection is None:  # left meanwhile; the server forgets the session by itself
            return
        # Ended on purpose without looking at the outcome: the server may be gone, or may have forgotten already.
        with contextlib.suppress(grpc.RpcError):
            connection = self._connection
            await connection.stub.EndEpisode(request, timeout=self._end_timeout_s(), metadata=connection.metadata)

    async def _end_episode(self) -> None:
        self._close_stream()
        self._abandon()
        request = self._connected.ending()
        if request is not None:
            with self._span("EndEpisode"):
                await self._end_call(request)

    async def close(self) -> None:
        """End the episode and disconnect; a second call does nothing. See ``AgentClient.close``."""
        if self._closed:
            return
        if self._inherited or self._connection is None:
            self._closed = True
            return
        async with self._in_use("close"):
            self._closed = True
            try:
                await self._end_episode()
            finally:  # also when it is cancelled: a second call would do nothing
                closing = self._disconnect()
            await asyncio.to_thread(self._end_recording)
            await asyncio.wait({closing, *self._background}, timeout=END_TIMEOUT_S)

    async def __aenter__(self) -> Self:
        return await self.connect()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
