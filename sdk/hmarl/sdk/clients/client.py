"""The client of an agent that another process serves over gRPC; the one for asyncio is in ``async_client``.

    with AgentClient("127.0.0.1:50051", timeout_s=0.02, fallback=Hold(expires_after_s=0.2)) as agent:
        agent.reset(seed=1)
        action = agent.act(observation)

Every act has a deadline. When no fresh action is taken by then the fallback decides; a late reply is never taken for
that of a newer step. When the server has restarted, the client joins the episode again at the current step
(``rejoin``), unless the fallback says that the last action is too old for that, or another agent or bundle answers. A
connection over which nothing is answered any longer is left for a new one.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
import numpy as np
import numpy.typing as npt

from hmarl.agent.v1 import agent_pb2, agent_pb2_grpc
from hmarl.runtime.choices import InstructionChoice
from hmarl.sdk.clients.act_stream import ActStream
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
from hmarl.sdk.clients.security import Age, open_channel
from hmarl.sdk.errors import HmarlError

# Ends of sessions that nothing waits for; a call that nothing refers to would be cancelled.
_ENDS_KEPT = 8


class _Connection:
    """A client's channel and what is called over it.

    Args:
        channel: of this client alone.
        owner: the client; one that is forgotten must not leave its connection and the threads of its stream behind.
        born: how often the process had been forked when the client was made.
        receive_limit_bytes: the largest message that it takes.
        shows: what its calls show, whoever they are made for.
        version: of the files from which that was read.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        owner: ClientBase,
        born: int,
        receive_limit_bytes: int,
        shows: Metadata,
        version: int,
    ) -> None:
        self.channel = channel
        self.receive_limit_bytes = receive_limit_bytes
        self.shows = shows
        self.version = version
        self.stub = agent_pb2_grpc.AgentServiceStub(channel)  # type: ignore[no-untyped-call]
        self._forgotten = weakref.finalize(owner, _close_unless_forked, channel, born)
        self._forgotten.atexit = False

    @property
    def metadata(self) -> Metadata:
        """What a call that is made now carries."""
        return self.shows + current()

    def leave(self) -> None:
        """Leave the connection to the process that made it."""
        self._forgotten.detach()

    def close(self) -> None:
        """Close it; a second call does nothing."""
        self._forgotten.detach()
        self.channel.close()


class _Successor:
    """A connection that is made aside, to be changed over to."""

    def __init__(self, connection: _Connection) -> None:
        self.connection = connection
        self.age = Age()
        self._standing = grpc.channel_ready_future(connection.channel)

    @property
    def ready(self) -> bool:
        """Whether it stands."""
        return bool(self._standing.done())

    def close(self) -> None:
        """Do without it."""
        self._standing.cancel()
        self.connection.close()


def _close_unless_forked(channel: grpc.Channel, born: int) -> None:
    """Close the channel of a client that was forgotten; a forked process leaves its parent's alone."""
    if born == ClientBase.forks:
        channel.close()


class AgentClient(ClientBase):
    """One agent, served by another process; for its arguments see ``ClientBase``.

    Raises:
        AgentError: no agent answers at the address.
        UsageError: the agent there is not the expected one, or an argument is out of range.
    """

    def __init__(self, address: str, **options: Unpack[ClientOptions]) -> None:
        super().__init__(address, **options)
        self._busy = threading.Lock()
        self._stream: ActStream | None = None
        self._starting: tuple[agent_pb2.StartEpisodeRequest, Any] | None = None
        self._ends: deque[Any] = deque(maxlen=_ENDS_KEPT)
        self._successor: _Successor | None = None
        self._connection = self._connect(self._connect_timeout_s, LEAST_RECEIVE_LIMIT_BYTES)
        try:
            self._described(self._run(describe(self._watch, self._deadline())))
        except CallFailed as failure:
            self._disconnect()
            raise self._explained("connecting", failure) from failure
        except HmarlError:
            self._disconnect()
            raise

    def _connect(self, connect_timeout_s: float, receive_limit_bytes: int) -> _Connection:
        options = self._channel_options(connect_timeout_s, receive_limit_bytes)
        keys = self._keys
        metadata, version = ((), 0) if keys is None else (keys.metadata, keys.version)
        channel = open_channel(self.address, options, self._channel_credentials())
        return _Connection(channel, self, self._born, receive_limit_bytes, metadata, version)

    def _disconnect(self) -> None:
        """Leave the connection, and whatever is on its way over it, without waiting."""
        self._close_stream()
        self._abandon()
        self._connection.close()
        self._take_successor(None)

    def _take_successor(self, successor: _Successor | None) -> None:
        """Prepare another connection to change over to, or none."""
        if self._successor is not None:
            self._successor.close()
        self._successor = successor

    def _keep_renewed(self) -> None:
        """Between two steps: go over to a connection made with the files' present content, once it stands.

        Until then, and if it never does, the one that there is serves on; its session is the agent's, and stays.
        """
        keys, successor = self._keys, self._successor
        if keys is not None and keys.look():
            made = self._connect(self._watch.connect_timeout_s, self._connection.receive_limit_bytes)
            self._take_successor(_Successor(made))
        elif successor is not None and not successor.ready:
            successor.age.tell(self.address)
        elif successor is not None and self._starting is None:
            self._successor = None
            self._close_stream()
            self._connection.close()
            self._connection = successor.connection

    def _explained(self, doing: str, failure: CallFailed) -> Exception:
        why = self._why() if failure.code is grpc.StatusCode.DEADLINE_EXCEEDED else None
        return self._error(doing, failure, why)

    @contextlib.contextmanager
    def _in_use(self, doing: str) -> Iterator[None]:
        """One call at a time, by the process that made the client.

        Raises:
            MisuseError: the client is closed, was inherited by a fork, or is in use.
        """
        self._check_usable()
        if not self._busy.acquire(blocking=False):
            raise self._used_twice(doing, "thread")
        try:
            yield
        finally:
            self._busy.release()

    def reset(
        self,
        seed: int,
        *,
        sample: bool = False,
        instruction_choice: InstructionChoice | None = None,
        first_step: int = 0,
        bundle_sha256: str | None = None,
    ) -> None:
        """Start an episode; the one before it, if any, is ended. See ``Agent.reset``.

        Args:
            seed: of the episode.
            sample: whether actions are drawn.
            instruction_choice: how instructions are chosen.
            first_step: the step of the first observation.
            bundle_sha256: the bundle that the whole episode has to be played on, whichever the client knew before; so
                all agents of a team are of one (``reset_together``). None: the one that is served.

        Raises:
            UsageError: an argument out of range.
            OtherBundleError: the server does not hold that bundle, or serves another one by now.
            AgentError: the server does not start it, or serves another agent by now.
            MisuseError: the client is closed, was inherited by a fork, or is in use.
        """
        with self._in_use("reset"):
            episode = self._connected
            request = episode.starting(seed, sample, instruction_choice, first_step, bundle_sha256)
            self._end_episode()
            self._keep_renewed()
            try:
                with self._span("StartEpisode"):
                    self._run(episode.start(request, self._deadline()))
            except CallFailed as failure:
                raise self._explained("starting an episode", failure) from failure

    def current_bundle(self) -> str:
        """SHA-256 of the bundle that new episodes get now: it changes when the agent is given another one.

        Raises:
            AgentError: the server does not answer, or serves another agent by now.
            MisuseError: the client is closed, was inherited by a fork, or is in use.
        """
        with self._in_use("current_bundle"):
            try:
                return str(self._run(self._connected.current_bundle(self._deadline())))
            except CallFailed as failure:
                raise self._explained("asking for its bundle", failure) from failure

    def act(self, observation: npt.NDArray[np.float32], action_mask: npt.NDArray[np.bool_] | None = None) -> Action:
        """The action for the next step, from the policy if it arrives in time, else from the fallback.

        Raises:
            ObservationError: wrong shape, dtype or content; the step is not used up.
            StaleActionError: no fresh action in time, and the fallback allows none instead.
            AgentError: no episode was started, the server refuses the request, or another agent or bundle is served
                by now; the next act goes on with the next step.
            MisuseError: the client is closed, was inherited by a fork, or is in use.
        """
        if self._spans is None:
            return self._act(observation, action_mask)
        with self._spans.span("Act") as span:
            action = self._act(observation, action_mask)
            self._spans.tell(span, action)
            return action

    def _act(self, observation: npt.NDArray[np.float32], action_mask: npt.NDArray[np.bool_] | None) -> Action:
        # As _in_use, without its cost: this is what a control loop waits for.
        if self._closed or self._born != ClientBase.forks:
            self._check_usable()
        if not self._busy.acquire(blocking=False):
            raise self._used_twice("act", "thread")
        try:
            if self._keys is not None:
                self._keep_renewed()
            action: Action = self._run(self._connected.act(observation, action_mask))
            return action
        finally:
            self._busy.release()

    def _run(self, script: Script) -> Any:
        """Do what a script asks for; returns what it returns."""
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
            return stop.value
        finally:
            script.close()

    def _perform(self, operation: Operation) -> Any:
        try:
            if isinstance(operation, Act):
                return self._exchange(operation) if self._stream_wanted else self._unary_act(operation)
            return getattr(self, METHODS[type(operation)])(operation)
        except CallFailed as failure:
            if not self._refused_by_old(failure, self._connection.version):
                raise
            self._replace(self._watch.connect_timeout_s, self._connection.receive_limit_bytes)
            raise CallFailed(grpc.StatusCode.UNAVAILABLE, failure.details) from failure

    def _do_examine(self, operation: Examine) -> None:
        self._examined(self._why())

    def _do_pause(self, operation: Pause) -> None:
        time.sleep(operation.seconds)

    def _unary_act(self, operation: Act) -> Any:
        try:
            connection = self._connection
            return connection.stub.Act(
                operation.request.act,
                timeout=operation.timeout_s,
                wait_for_ready=True,
                metadata=connection.metadata,
            )
        except grpc.RpcError as error:
            raise failed_call(error) from error

    def _do_describe(self, operation: Describe) -> Any:
        request = agent_pb2.GetAgentInfoRequest(bundle_sha256=operation.bundle_sha256)
        try:
            connection = self._connection
            return connection.stub.GetAgentInfo(
                request, timeout=operation.timeout_s, wait_for_ready=True, metadata=connection.metadata
            )
        except grpc.RpcError as error:
            raise failed_call(error) from error

    def _exchange(self, operation: Act) -> agent_pb2.ActResponse:
        """One act over the session's stream; a stream of an older session, or one that ended, is replaced."""
        session_id = operation.request.act.session_id
        stream = self._stream
        if stream is None or not stream.serves(session_id):
            self._close_stream()
            connection = self._connection
            self._stream = stream = ActStream(connection.channel, session_id, self.statistics, connection.shows)
        return stream.exchange(operation)

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _do_start(self, operation: Start) -> Any:
        """Wait for an episode to start; when that takes too long, the next call with the same request waits on."""
        if self._starting is None or self._starting[0] is not operation.request:
            self._abandon()
            call = self._connection.stub.StartEpisode.future(
                operation.request,
                timeout=START_TIMEOUT_S,
                wait_for_ready=True,
                metadata=self._connection.metadata,
            )
            self._starting = (operation.request, call)
        call = self._starting[1]
        try:
            response = call.result(timeout=operation.timeout_s)
        except grpc.FutureTimeoutError:
            raise CallFailed(grpc.StatusCode.DEADLINE_EXCEEDED, "no reply in time") from None
        except (grpc.RpcError, grpc.FutureCancelledError):
            self._starting = None
            raise CallFailed(call.code(), call.details() or "") from None
        self._starting = None
        return response

    def _do_abandon(self, operation: Abandon) -> None:
        self._abandon()

    def _do_end(self, operation: End) -> None:
        self._end(operation.session_id)

    def _abandon(self) -> None:
        """Wait no longer for an episode that is being started; should it start nevertheless, it is ended."""
        if self._starting is None:
            return
        call, self._starting = self._starting[1], None
        self._ends.append(call)
        end = self._end

        def started(call: Any) -> None:
            if call.code() is grpc.StatusCode.OK:
                end(call.result().session_id)

        call.add_done_callback(started)

    def _end(self, session_id: str) -> None:
        request = agent_pb2.EndEpisodeRequest(session_id=session_id)
        connection = self._connection
        self._ends.append(
            connection.stub.EndEpisode.future(request, timeout=END_TIMEOUT_S, metadata=connection.metadata)
        )

    def _do_reconnect(self, operation: Reconnect) -> None:
        self._replace(operation.connect_timeout_s, operation.receive_limit_bytes)

    def _replace(self, connect_timeout_s: float, receive_limit_bytes: int) -> None:
        self._disconnect()
        self._connection = self._connect(connect_timeout_s, receive_limit_bytes)

    def _end_episode(self) -> None:
        """Tell the server that the episode is over; if it does not hear it, it forgets the session by itself."""
        self._close_stream()
        self._abandon()
        request = self._connected.ending()
        if request is not None:
            # Ended on purpose without looking at the outcome: the server may be gone, or may have forgotten already.
            with self._span("EndEpisode"), contextlib.suppress(grpc.RpcError):
                connection = self._connection
                connection.stub.EndEpisode(request, timeout=self._end_timeout_s(), metadata=connection.metadata)

    def close(self) -> None:
        """End the episode and disconnect; a second call does nothing.

        Raises:
            MisuseError: the client is in use.
        """
        if self._closed:
            return
        if self._inherited:
            # Connection and episode are the parent's, which goes on with both.
            self._closed = True
            self._connection.leave()
            return
        with self._in_use("close"):
            self._closed = True
            try:
                self._end_episode()
            finally:  # also when Ctrl-C interrupts it: a second call would do nothing
                self._disconnect()
                self._end_recording()

    def __enter__(self) -> Self:
        self._check_usable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
