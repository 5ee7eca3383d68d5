"""The client of an agent for asyncio.

async with AsyncAgentClient("127.0.0.1:50051", timeout_s=0.02) as agent:
await agent.reset(seed=1)
action = await agent.act(observation)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

import numpy as np
import numpy.typing as npt

from hmarl.agent.v1.status import Code
from hmarl.runtime.choices import InstructionChoice
from hmarl.sdk.clients.agent import Action
from hmarl.sdk.clients.aside import Aside
from hmarl.sdk.clients.base import ClientBase, ClientOptions
from hmarl.sdk.clients.link import LEAST_RECEIVE_LIMIT_BYTES
from hmarl.sdk.clients.operations import Act, CallFailed, Examine, Operation, Pause, Reconnect, Script
from hmarl.sdk.clients.remote_episode import describe
from hmarl.sdk.clients.wires import END_TIMEOUT_S, METHODS, is_frames
from hmarl.sdk.errors import MisuseError

if TYPE_CHECKING:
    from hmarl.sdk.clients.async_frames_wire import AsyncFramesWire
    from hmarl.sdk.clients.async_grpc_wire import AsyncGrpcWire


class AsyncAgentClient(ClientBase):
    """``AgentClient`` for asyncio: ``async with AsyncAgentClient(...) as agent``, or ``await agent.connect()`` first.

    For its arguments see ``ClientBase``.
    """

    def __init__(self, address: str, **options: Unpack[ClientOptions]) -> None:
        super().__init__(address, **options)
        self._busy = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._aside = Aside()
        self._wire: AsyncGrpcWire | AsyncFramesWire | None = None  # made by connect, which runs in the event loop

    async def connect(self) -> Self:
        """Connect, and see who is there; nothing when that is done.

        Raises:
            AgentError: no agent answers at the address.
            UsageError: the agent there is not the expected one.
            MisuseError: the client is closed, was inherited by a fork, or is in use.
        """
        async with self._in_use("connect"):
            if self._wire is not None:
                return self
            self._wire = self._made_wire()
            try:
                self._described(await self._run(describe(self._watch, self._deadline())))
            except BaseException as error:
                self._wire.close()
                self._wire = None
                if isinstance(error, CallFailed):
                    raise self._error("connecting", error) from error
                raise
        return self

    def _made_wire(self) -> AsyncGrpcWire | AsyncFramesWire:
        """The way to an agent that its address means."""
        if is_frames(self.address):
            from hmarl.sdk.clients.async_frames_wire import AsyncFramesWire  # noqa: PLC0415 - the one or the other

            return AsyncFramesWire(self._dialling, LEAST_RECEIVE_LIMIT_BYTES)
        from hmarl.sdk.clients.async_grpc_wire import AsyncGrpcWire  # noqa: PLC0415 - not needed over frames

        return AsyncGrpcWire(self._dialling, self._connect_timeout_s, LEAST_RECEIVE_LIMIT_BYTES, self._aside)

    @property
    def _connected_by(self) -> AsyncGrpcWire | AsyncFramesWire:
        assert self._wire is not None, "only what has connected calls"
        return self._wire

    async def _explained(self, doing: str, failure: CallFailed) -> Exception:
        late = failure.code is Code.DEADLINE_EXCEEDED
        return self._error(doing, failure, await asyncio.to_thread(self._why) if late else None)

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
            self._connected_by.keep_renewed(self._watch.connect_timeout_s)
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
            if self._keys is not None and self._wire is not None:
                self._wire.keep_renewed(self._watch.connect_timeout_s)
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
        wire = self._connected_by
        try:
            if isinstance(operation, Act):
                return await wire.act(operation, self._connected.statistics)
            if isinstance(operation, Pause):
                return await asyncio.sleep(operation.seconds)
            if isinstance(operation, Examine):
                return self._examined(await asyncio.to_thread(self._why, operation.limit_s))
            done = getattr(wire, METHODS[type(operation)])(operation)
            return await done if asyncio.iscoroutine(done) else done
        except CallFailed as failure:
            if not wire.outdated(failure):
                raise
            await wire.reconnect(Reconnect(self._watch.connect_timeout_s, wire.receive_limit_bytes))
            raise CallFailed(Code.UNAVAILABLE, failure.details) from failure

    async def _end_episode(self) -> None:
        wire = self._connected_by
        wire.finish_acts()
        wire.abandon()
        request = self._connected.ending()
        if request is not None:
            with self._span("EndEpisode"):
                await wire.finish(request, self._end_timeout_s())

    async def close(self) -> None:
        """End the episode and disconnect; a second call does nothing. See ``AgentClient.close``."""
        if self._closed:
            return
        if self._inherited or self._wire is None:
            self._closed = True
            return
        async with self._in_use("close"):
            self._closed = True
            try:
                await self._end_episode()
            finally:  # also when it is cancelled: a second call would do nothing
                self._wire.close()
            await asyncio.to_thread(self._end_recording)
            if self._aside.tasks:
                await asyncio.wait(self._aside.tasks, timeout=END_TIMEOUT_S)

    async def __aenter__(self) -> Self:
        return await self.connect()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
