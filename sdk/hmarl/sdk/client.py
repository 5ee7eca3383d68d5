"""Clients of an agent that another process serves over gRPC, synchronous and asyncio.

    with AgentClient("127.0.0.1:50051", timeout_s=0.02, fallback=Hold(expires_after_s=0.2)) as agent:
        agent.reset(seed=1)
        action = agent.act(observation)

Every act has a deadline. When no fresh action arrives in time the fallback decides; a late reply is never taken for
that of a newer step. When the server has restarted, the client joins the episode again at the current step
(``rejoin``), unless the fallback says that the last action is too old for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
import numpy as np
import numpy.typing as npt

from hmarl.agent.v1 import agent_pb2, agent_pb2_grpc
from hmarl.runtime.session import InstructionChoice
from hmarl.sdk.act_stream import ActStream, AsyncActStream
from hmarl.sdk.agent import Action
from hmarl.sdk.client_base import CHANNEL_OPTIONS, RETRY_PAUSE_S, ClientBase, worth_retrying
from hmarl.sdk.errors import HmarlError
from hmarl.sdk.remote_episode import Act, CallFailed, Operation, Pause, Start

_END_TIMEOUT_S = 0.5


class AgentClient(ClientBase):
    """One agent, served by another process; for its arguments see ``ClientBase``.

    Raises:
        AgentError: nobody answers at the address.
        UsageError: the agent there is not the expected one, or an argument is out of range.
    """

    def _open(self) -> None:
        """Connect, and see who is there."""
        self._stream: ActStream | None = None
        self._channel: grpc.Channel | None = (
            grpc.insecure_channel(self.address, CHANNEL_OPTIONS)
            if self._credentials is None
            else grpc.secure_channel(self.address, self._credentials, CHANNEL_OPTIONS)
        )
        self._stub = agent_pb2_grpc.AgentServiceStub(self._channel)  # type: ignore[no-untyped-call]
        request = agent_pb2.GetAgentInfoRequest()
        try:
            self._described(self._asked("connecting", self._stub.GetAgentInfo, request))
        except HmarlError:
            self._channel.close()
            raise

    def reset(
        self,
        seed: int,
        *,
        sample: bool = False,
        instruction_choice: InstructionChoice | None = None,
        first_step: int = 0,
    ) -> None:
        """Start an episode; the one before it, if any, is ended. See ``Agent.reset``.

        Raises:
            UsageError: an argument out of range.
            AgentError: the server does not start it.
        """
        request = self._episode.starting(seed, sample, instruction_choice, first_step)
        self._end_episode()
        self._episode.started(request, self._asked("starting an episode", self._stub.StartEpisode, request))

    def _asked(self, doing: str, method: Callable[..., Any], request: Any) -> Any:
        """The response to a request that is not bound to a step, asked again while the server is not there yet."""
        deadline = self._deadline()
        while True:
            try:
                return method(request, timeout=max(deadline - time.monotonic(), 0.0), wait_for_ready=True)
            except grpc.RpcError as error:
                if not worth_retrying(error, deadline):
                    raise self._error(doing, error) from error
            time.sleep(RETRY_PAUSE_S)

    def act(self, observation: npt.NDArray[np.float32], action_mask: npt.NDArray[np.bool_] | None = None) -> Action:
        """The action for the next step, from the policy if it arrives in time, else from the fallback.

        Raises:
            ObservationError: wrong shape, dtype or content; the step is not used up.
            StaleActionError: no fresh action in time, and the fallback allows none instead.
            AgentError: no episode was started, or the server refuses the request.
        """
        script = self._episode.act(observation, action_mask)
        try:
            operation = next(script)
            while True:
                try:
                    outcome = self._perform(operation)
                except CallFailed as failure:
                    operation = script.throw(failure)
                else:
                    operation = script.send(outcome)
        except StopIteration as stop:
            action: Action = stop.value
            return action

    def _perform(self, operation: Operation) -> Any:
        if isinstance(operation, Pause):
            return time.sleep(operation.seconds)
        try:
            if isinstance(operation, Start):
                return self._stub.StartEpisode(operation.request, timeout=operation.timeout_s, wait_for_ready=True)
            if not self._stream_wanted:
                return self._stub.Act(operation.request.act, timeout=operation.timeout_s, wait_for_ready=True)
        except grpc.RpcError as error:
            raise CallFailed(error.code(), error.details() or "") from error
        return self._exchange(operation)

    def _exchange(self, operation: Act) -> agent_pb2.ActResponse:
        """One act over the session's stream; a stream of an older session, or one that broke, is replaced."""
        session_id = operation.request.act.session_id
        if self._stream is not None and not self._stream.serves(session_id):
            self._close_stream()
        if self._stream is None:
            assert self._channel is not None
            self._stream = ActStream(self._channel, session_id, self.statistics)
        return self._stream.exchange(operation)

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _end_episode(self) -> None:
        """Tell the server that the episode is over; if it does not hear it, it forgets the session by itself."""
        self._close_stream()
        request = self._episode.ending()
        if request is not None:
            # Ended on purpose without looking at the outcome: the server may be gone, or may have forgotten already.
            with contextlib.suppress(grpc.RpcError):
                self._stub.EndEpisode(request, timeout=_END_TIMEOUT_S)

    def close(self) -> None:
        """End the episode and disconnect; a second call does nothing."""
        if self._channel is not None:
            self._end_episode()
            self._channel.close()
            self._channel = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncAgentClient(ClientBase):
    """The same for asyncio: ``async with AsyncAgentClient(...) as agent``, or ``await agent.connect()`` first.

    For its arguments see ``ClientBase``.
    """

    def _open(self) -> None:
        """Nothing yet: connecting has to wait for ``connect``, which runs in the event loop."""
        self._stream: AsyncActStream | None = None
        self._channel: grpc.aio.Channel | None = None

    async def connect(self) -> Self:
        """Connect, and see who is there.

        Raises:
            AgentError: nobody answers at the address.
            UsageError: the agent there is not the expected one.
        """
        self._channel = (
            grpc.aio.insecure_channel(self.address, CHANNEL_OPTIONS)
            if self._credentials is None
            else grpc.aio.secure_channel(self.address, self._credentials, CHANNEL_OPTIONS)
        )
        self._stub = agent_pb2_grpc.AgentServiceStub(self._channel)  # type: ignore[no-untyped-call]
        request = agent_pb2.GetAgentInfoRequest()
        try:
            self._described(await self._asked("connecting", self._stub.GetAgentInfo, request))
        except HmarlError:
            await self._channel.close()
            raise
        return self

    async def reset(
        self,
        seed: int,
        *,
        sample: bool = False,
        instruction_choice: InstructionChoice | None = None,
        first_step: int = 0,
    ) -> None:
        """Start an episode; the one before it, if any, is ended. See ``AgentClient.reset``."""
        request = self._episode.starting(seed, sample, instruction_choice, first_step)
        await self._end_episode()
        self._episode.started(request, await self._asked("starting an episode", self._stub.StartEpisode, request))

    async def _asked(self, doing: str, method: Callable[..., Any], request: Any) -> Any:
        """See ``AgentClient._asked``."""
        deadline = self._deadline()
        while True:
            try:
                return await method(request, timeout=max(deadline - time.monotonic(), 0.0), wait_for_ready=True)
            except grpc.RpcError as error:
                if not worth_retrying(error, deadline):
                    raise self._error(doing, error) from error
            await asyncio.sleep(RETRY_PAUSE_S)

    async def act(
        self, observation: npt.NDArray[np.float32], action_mask: npt.NDArray[np.bool_] | None = None
    ) -> Action:
        """The action for the next step; see ``AgentClient.act``."""
        script = self._episode.act(observation, action_mask)
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
            action: Action = stop.value
            return action

    async def _perform(self, operation: Operation) -> Any:
        if isinstance(operation, Pause):
            return await asyncio.sleep(operation.seconds)
        try:
            if isinstance(operation, Start):
                return await self._stub.StartEpisode(
                    operation.request, timeout=operation.timeout_s, wait_for_ready=True
                )
            if not self._stream_wanted:
                return await self._stub.Act(operation.request.act, timeout=operation.timeout_s, wait_for_ready=True)
        except grpc.RpcError as error:
            raise CallFailed(error.code(), error.details() or "") from error
        return await self._exchange(operation)

    async def _exchange(self, operation: Act) -> agent_pb2.ActResponse:
        session_id = operation.request.act.session_id
        if self._stream is not None and not self._stream.serves(session_id):
            await self._close_stream()
        if self._stream is None:
            self._stream = AsyncActStream(self._stub, session_id, self.statistics)
        return await self._stream.exchange(operation)

    async def _close_stream(self) -> None:
        if self._stream is not None:
            await self._stream.close()
            self._stream = None

    async def _end_episode(self) -> None:
        await self._close_stream()
        request = self._episode.ending()
        if request is not None:
            with contextlib.suppress(grpc.RpcError):
                await self._stub.EndEpisode(request, timeout=_END_TIMEOUT_S)

    async def close(self) -> None:
        """End the episode and disconnect; a second call does nothing."""
        if self._channel is not None:
            await self._end_episode()
            await self._channel.close()
            self._channel = None

    async def __aenter__(self) -> Self:
        return await self.connect()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
