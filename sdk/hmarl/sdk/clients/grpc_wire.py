"""An agent over gRPC, for the synchronous client."""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from typing import Any

import grpc

from hmarl.agent.v1 import agent_pb2, agent_pb2_grpc
from hmarl.agent.v1.status import Code, code_of
from hmarl.sdk.clients.act_stream import ActStream
from hmarl.sdk.clients.agent import AgentStatistics
from hmarl.sdk.clients.call_metadata import Metadata, current
from hmarl.sdk.clients.forks import FORKS
from hmarl.sdk.clients.operations import Abandon, Act, CallFailed, Describe, End, Reconnect, Start
from hmarl.sdk.clients.security import Age, open_channel
from hmarl.sdk.clients.wires import END_TIMEOUT_S, START_TIMEOUT_S, Dialling

# Ends of sessions that nothing waits for; a call that nothing refers to would be cancelled.
_ENDS_KEPT = 8


class _Connection:
    """A client's channel and what is called over it.

    Args:
        channel: of this client alone.
        owner: its wire; one that is forgotten must not leave its connection and the threads of its stream behind.
        born: how often the process had been forked when the client was made.
        receive_limit_bytes: the largest message that it takes.
        shows: what its calls show, whoever they are made for.
        version: of the files from which that was read.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        owner: GrpcWire,
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
    if born == FORKS.count:
        channel.close()


class GrpcWire:
    """See ``Wire``.

    Args:
        dialling: how connections are made.
        connect_timeout_s: seconds that an attempt to connect may take.
        receive_limit_bytes: the largest message that is taken.

    Attributes:
        connection: that which serves now.
    """

    def __init__(self, dialling: Dialling, connect_timeout_s: float, receive_limit_bytes: int) -> None:
        self._dialling = dialling
        self._stream: ActStream | None = None
        self._starting: tuple[agent_pb2.StartEpisodeRequest, Any] | None = None
        self._ends: deque[Any] = deque(maxlen=_ENDS_KEPT)
        self._successor: _Successor | None = None
        self.connection = self._connect(connect_timeout_s, receive_limit_bytes)

    @property
    def receive_limit_bytes(self) -> int:
        """See ``Wire``."""
        return self.connection.receive_limit_bytes

    def _connect(self, connect_timeout_s: float, receive_limit_bytes: int) -> _Connection:
        dialling, keys = self._dialling, self._dialling.keys
        metadata, version = ((), 0) if keys is None else (keys.metadata, keys.version)
        options = dialling.options(connect_timeout_s, receive_limit_bytes)
        channel = open_channel(dialling.address, options, dialling.channel_credentials())
        return _Connection(channel, self, dialling.born, receive_limit_bytes, metadata, version)

    def close(self) -> None:
        """See ``Wire``."""
        self.finish_acts()
        self.abandon()
        self.connection.close()
        self._take_successor(None)

    def leave(self) -> None:
        """See ``Wire``."""
        self.connection.leave()

    def reconnect(self, operation: Reconnect) -> None:
        """See ``Wire``."""
        self.close()
        self.connection = self._connect(operation.connect_timeout_s, operation.receive_limit_bytes)

    def outdated(self, failure: CallFailed) -> bool:
        """See ``Wire``."""
        return self._dialling.outdated(failure, self.connection.version)

    def _take_successor(self, successor: _Successor | None) -> None:
        """Prepare another connection to change over to, or none."""
        if self._successor is not None:
            self._successor.close()
        self._successor = successor

    def keep_renewed(self, connect_timeout_s: float) -> None:
        """See ``Wire``.

        Until then, and if it never does, the one that there is serves on; its session is the agent's, and stays.
        """
        keys, successor = self._dialling.keys, self._successor
        if keys is not None and keys.look():
            made = self._connect(connect_timeout_s, self.connection.receive_limit_bytes)
            self._take_successor(_Successor(made))
        elif successor is not None and not successor.ready:
            successor.age.tell(self._dialling.address)
        elif successor is not None and self._starting is None:
            self._successor = None
            self.finish_acts()
            self.connection.close()
            self.connection = successor.connection

    def act(self, operation: Act, statistics: AgentStatistics) -> agent_pb2.ActResponse:
        """See ``Wire``."""
        return self._exchange(operation, statistics) if self._dialling.streaming else self._unary_act(operation)

    def _unary_act(self, operation: Act) -> agent_pb2.ActResponse:
        try:
            connection = self.connection
            response: agent_pb2.ActResponse = connection.stub.Act(
                operation.request.act,
                timeout=operation.timeout_s,
                wait_for_ready=True,
                metadata=connection.metadata,
            )
            return response
        except grpc.RpcError as error:
            raise failed_call(error) from error

    def _exchange(self, operation: Act, statistics: AgentStatistics) -> agent_pb2.ActResponse:
        """One act over the session's stream; a stream of an older session, or one that ended, is replaced."""
        session_id = operation.request.act.session_id
        stream = self._stream
        if stream is None or not stream.serves(session_id):
            self.finish_acts()
            connection = self.connection
            self._stream = stream = ActStream(connection.channel, session_id, statistics, connection.shows)
        return stream.exchange(operation)

    def finish_acts(self) -> None:
        """See ``Wire``."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def describe(self, operation: Describe) -> agent_pb2.GetAgentInfoResponse:
        """See ``Wire``."""
        request = agent_pb2.GetAgentInfoRequest(bundle_sha256=operation.bundle_sha256)
        try:
            connection = self.connection
            response: agent_pb2.GetAgentInfoResponse = connection.stub.GetAgentInfo(
                request, timeout=operation.timeout_s, wait_for_ready=True, metadata=connection.metadata
            )
            return response
        except grpc.RpcError as error:
            raise failed_call(error) from error

    def start(self, operation: Start) -> agent_pb2.StartEpisodeResponse:
        """See ``Wire``."""
        if self._starting is None or self._starting[0] is not operation.request:
            self.abandon()
            call = self.connection.stub.StartEpisode.future(
                operation.request,
                timeout=START_TIMEOUT_S,
                wait_for_ready=True,
                metadata=self.connection.metadata,
            )
            self._starting = (operation.request, call)
        call = self._starting[1]
        try:
            response: agent_pb2.StartEpisodeResponse = call.result(timeout=operation.timeout_s)
        except grpc.FutureTimeoutError:
            raise CallFailed(Code.DEADLINE_EXCEEDED, "no reply in time") from None
        except (grpc.RpcError, grpc.FutureCancelledError):
            self._starting = None
            raise CallFailed(code_of(call.code().value[0]), call.details() or "") from None
        self._starting = None
        return response

    def abandon(self, operation: Abandon | None = None) -> None:
        """See ``Wire``."""
        if self._starting is None:
            return
        call, self._starting = self._starting[1], None
        self._ends.append(call)
        end = self.end

        def started(call: Any) -> None:
            if call.code() is grpc.StatusCode.OK:
                end(End(call.result().session_id))

        call.add_done_callback(started)

    def end(self, operation: End) -> None:
        """See ``Wire``."""
        request = agent_pb2.EndEpisodeRequest(session_id=operation.session_id)
        connection = self.connection
        self._ends.append(
            connection.stub.EndEpisode.future(request, timeout=END_TIMEOUT_S, metadata=connection.metadata)
        )

    def finish(self, request: agent_pb2.EndEpisodeRequest, timeout_s: float) -> None:
        """See ``Wire``."""
        # Ended on purpose without looking at the outcome: the server may be gone, or may have forgotten already.
        with contextlib.suppress(grpc.RpcError):
            connection = self.connection
            connection.stub.EndEpisode(request, timeout=timeout_s, metadata=connection.metadata)


def failed_call(error: grpc.RpcError) -> CallFailed:
    """What ended a call."""
    return CallFailed(code_of(error.code().value[0]), error.details() or "")
