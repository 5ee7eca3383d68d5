"""An agent over a Unix socket on its own host, by frames (docs/frames.md): ``hmarl.agent.v1`` without gRPC.

Each connection has a thread, which waits for its next request and answers it: one hand-over less than where threads
are lent to requests, and no other thread to wake. So connections are bounded, as streams over gRPC are, and so are
those that have not said anything yet and those that only ask for health: neither keeps anyone else out.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator

from google.protobuf.message import DecodeError

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.frames_pb2 import CheckHealthResponse, FrameError, FrameRequest, FrameResponse
from hmarl.agent.v1.framing import SCHEME, FrameReader, LengthError, framed
from hmarl.agent.v1.status import Code
from hmarl.runtime.errors import (
    ForbiddenError,
    HmarlError,
    QuotaError,
    RequestError,
    TakenError,
    TooLargeError,
    TooLateError,
    UnknownRequestError,
    UnknownSessionError,
    UsageError,
)
from hmarl.runtime.frames_call import FramesCall
from hmarl.runtime.health_service import HealthService
from hmarl.runtime.identity import Caller, Guard
from hmarl.runtime.places import Place, Places
from hmarl.runtime.repeats import RepeatLog
from hmarl.runtime.request_ids import request_of
from hmarl.runtime.self_probe import Ask
from hmarl.runtime.service import AgentService
from hmarl.runtime.settings import ServerSettings
from hmarl.runtime.sweeper import CROWDED_SILENT_FOR_S, SILENT_FOR_S
from hmarl.runtime.telemetry import ACT, FRAMES, Telemetry
from hmarl.runtime.unix_sockets import BoundPath, claim

LOGGER = logging.getLogger("hmarl.agent")
_IDLE_S = 60.0
_GIVES_WAY_AFTER_S = 5.0
_CHECKS, _CHECK_IDLE_S, _CHECK_GIVES_WAY_AFTER_S = 32, 10.0, 1.0
_NEW = 32  # connections that have not sent a request yet
_SEND_LIMIT_S = 2.0  # for a peer that does not read what it asked for
_BACKLOG = 128
_SPARE_FILES = 100  # descriptors that connections leave to everything else
_PEER = struct.Struct("3i")  # SO_PEERCRED: process, user, group
_TIME = struct.Struct("@ll")  # SO_SNDTIMEO: seconds, microseconds
_ACCEPT_PAUSE_S = 0.05  # when the system has no more descriptors
# What requests are called where they are counted and traced: as gRPC's methods.
_METHODS = {
    "act": ACT,
    "start_episode": "StartEpisode",
    "end_episode": "EndEpisode",
    "get_agent_info": "GetAgentInfo",
    "check_health": "Check",
}
_CONNECTION = "Connection"  # what stands for one that is ended with an error


class _Ended(Exception):
    """A connection has ended, or has to: there is nothing more to be told over it."""


class _Connection:
    """One client's connection.

    Attributes:
        caller: who it is.
        trusted: whether it is the process's own, or its supervisor's: it takes no one's place.
        since_s: since when it waits for its first request, or for the rest of one; None while it waits for nothing.
        place: among the connections that act, or among those that ask for health; None until it has sent a request.
        session_id: of the episode that it has begun last.
    """

    def __init__(self, stream: socket.socket, caller: Caller, limit_bytes: int) -> None:
        self.caller = caller
        self.trusted = False
        self.since_s: float | None = time.monotonic()
        self.place: Place[_Connection] | None = None
        self.acts = False
        self.session_id = ""
        self._stream = stream
        self._reader = FrameReader(limit_bytes)

    def bodies(self) -> Iterator[bytes]:
        """What its frames hold, as they come.

        Raises:
            TooLargeError: a frame is larger than is taken.
            OSError: it broke.
        """
        reader, receive = self._reader, self._stream.recv
        while data := receive(reader.wanted_bytes):
            try:
                found = reader.take(data)
            except LengthError as error:
                raise TooLargeError(f"request: {error}") from None
            if found:
                self.since_s = None
                yield from found
            if self.since_s is None and reader.begun:
                self.since_s = time.monotonic()

    def send(self, response: FrameResponse) -> None:
        """Send a response.

        Raises:
            OSError: it cannot be sent, or not in time.
        """
        self._stream.sendall(framed(response))

    def hear_no_more(self) -> None:
        """End it once what is being answered has been."""
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_RD)

    def cut(self) -> None:
        """End it, from any thread; its own closes it."""
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it."""
        self._stream.close()


class FramesDoor:
    """Serves from construction on.

    Args:
        settings: where and how to listen.
        service: answers.
        health: how the agent is.
        guard: counts what callers ask for.
        telemetry: told what is answered.
        log: for what peers can cause.

    Attributes:
        name: for the log.
        what: is ended when it is silent or idle.
        address: ``frames:path``, as clients take it.
        probe_address: likewise, for the process's supervisor.
        crowded: set when many connections have not sent anything yet.

    Raises:
        UsageError: the path cannot be used, or this system cannot tell who connects.
        HmarlError: the path is in use.
    """

    def __init__(
        self,
        settings: ServerSettings,
        service: AgentService,
        health: HealthService,
        guard: Guard,
        telemetry: Telemetry,
        log: RepeatLog,
    ) -> None:
        assert settings.frames is not None
        self.name, self.what, self.crowded = "frames", "connections", threading.Event()
        self._service, self._health, self._guard, self._log = service, health, guard, log
        self._limit_bytes = settings.max_request_bytes
        self._users = {os.getuid(), 0, *settings.frames_users}
        most = connection_limit(settings.max_sessions)
        self._acting: Places[_Connection] = Places(
            most, _GIVES_WAY_AFTER_S, _Connection.cut, per_peer=settings.security.client_streams
        )
        self._checking: Places[_Connection] = Places(_CHECKS, _CHECK_GIVES_WAY_AFTER_S, _Connection.cut)
        self._most = most + _CHECKS + _NEW
        self._open: dict[_Connection, None] = {}  # without a lock: adding, removing and copying are one step each
        self._stopping = False
        self._note = telemetry.noting(FRAMES)
        path = str(settings.frames)
        self._listener = _listen(path, 0o600 if not settings.frames_users else 0o666)
        self._bound_path = BoundPath(path)
        self.address = self.probe_address = f"{SCHEME}{path}"
        threading.Thread(target=self._accept, name="frames-door", daemon=True).start()

    @property
    def open_streams(self) -> int:
        """How many connections act."""
        return len(self._acting)

    @contextlib.contextmanager
    def asking(self) -> Iterator[Ask]:
        """The way in for the process itself; see ``SelfProbe``."""
        call = FramesCall(self.address)
        with contextlib.closing(call):

            def ask(request: agent_pb2.ActRequest, timeout_s: float) -> agent_pb2.ActResponse | None:
                response = call.exchange(FrameRequest(act=request, metadata=self._guard.own_metadata), timeout_s)
                return response.act if response is not None and response.HasField("act") else None

            yield ask

    def sweep(self) -> int:
        """End the connections that have been silent or idle for too long; returns how many."""
        now, ended = time.monotonic(), 0
        for connection in list(self._open):
            since_s = connection.since_s
            if since_s is not None and now - since_s > SILENT_FOR_S:
                connection.cut()
                ended += 1
        return ended + self._acting.sweep(_IDLE_S) + self._checking.sweep(_CHECK_IDLE_S)

    def stop(self, grace_s: float) -> None:
        """End all connections; requests that are being answered get a moment."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        for connection in list(self._open):
            connection.hear_no_more()
        deadline = time.monotonic() + grace_s
        while self._open and time.monotonic() < deadline:
            time.sleep(0.005)
        for connection in list(self._open):
            connection.cut()

    def free_address(self) -> None:
        """Remove the socket's name."""
        self._bound_path.remove()

    def _accept(self) -> None:
        while not self._stopping:
            try:
                stream = self._listener.accept()[0]
            except OSError as error:
                if not self._stopping:
                    self._log.say("frames accept", logging.ERROR, f"frames: cannot accept: {error.strerror}")
                    time.sleep(_ACCEPT_PAUSE_S)
                continue
            try:
                self._admit(stream)
            except (OSError, RuntimeError):  # it is gone again; or the system has no more threads
                stream.close()

    def _admit(self, stream: socket.socket) -> None:
        """Let a connection in, or say why not."""
        process, user, _ = _PEER.unpack(stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIME.pack(int(_SEND_LIMIT_S), 0))
        caller = Caller(f"process {process} of user {user}", f"user {user}")
        connection = _Connection(stream, caller, self._limit_bytes)
        try:
            if user not in self._users:
                raise self._guard.reject(
                    ForbiddenError(
                        f"user: got {user}, expected one of {sorted(self._users)}: have the agent started with "
                        f"--frames-allow-uid {user}, or by that user"
                    ),
                    caller.name,
                )
            self._make_room()
        except HmarlError as error:
            self._refuse(connection, error)
            connection.close()
            return
        self._open[connection] = None
        try:
            threading.Thread(target=self._serve, args=(connection,), name="frames", daemon=True).start()
        except RuntimeError:
            del self._open[connection]
            raise

    def _make_room(self) -> None:
        """A connection that has not said anything for long gives way to a new one.

        Raises:
            TakenError: none does.
        """
        new = [each for each in list(self._open) if each.place is None and not each.trusted]
        if len(new) < _NEW and len(self._open) < self._most:
            return
        now = time.monotonic()
        silent = next((each for each in new if now - (each.since_s or now) > CROWDED_SILENT_FOR_S), None)
        if silent is None:
            raise TakenError("connections: got more than there is room for, expected fewer: try again in a moment")
        silent.cut()
        self._open.pop(silent, None)

    def _serve(self, connection: _Connection) -> None:
        """Answer a connection until it ends."""
        try:
            for body in connection.bodies():
                connection.send(self._reply(body, connection))
        except (_Ended, OSError):
            pass
        except Exception as error:
            self._refuse(connection, error)
        finally:
            self._open.pop(connection, None)
            self._free(connection)
            connection.close()

    def _refuse(self, connection: _Connection, error: Exception) -> None:
        """Say why the connection ends."""
        code, message = self._service.status_of(error)
        if self._note is not None:
            self._note(_CONNECTION, code, time.perf_counter(), ())
        with contextlib.suppress(OSError):
            connection.send(FrameResponse(error=FrameError(code=code, message=message)))

    def _reply(self, body: bytes, connection: _Connection) -> FrameResponse:
        """The response to a request; one to which there is none ends the connection.

        Raises:
            RequestError: the body is no request, or has no id.
            TakenError: all connections are taken.
            QuotaError: the client has as many as one may.
        """
        try:
            request: FrameRequest = FrameRequest.FromString(body)
        except DecodeError:
            raise RequestError(
                f"request: got {len(body)} bytes that are no {FrameRequest.DESCRIPTOR.full_name}; encode it with the "
                "service's own frames.proto"
            ) from None
        if not request.id:
            raise RequestError("id: got 0, expected at least 1")
        began_s, kind = time.perf_counter(), request.WhichOneof("request")
        if request.metadata and self._guard.is_own(request.metadata.items()):
            connection.trusted = True
        self._take_place(connection, kind)
        code, response = Code.OK, FrameResponse(id=request.id)
        try:
            if not connection.trusted:
                self._guard.count(connection.caller)
            deadline_ns = request.deadline_ns
            if deadline_ns and time.monotonic_ns() > deadline_ns:
                raise TooLateError("deadline_ns: got a time that is over; it was not done")
            if kind == "act":
                self._service.act(request.act, response.act, connection.caller)
            else:
                self._do(kind, request, response, connection)
        except Exception as error:
            with request_of(request.metadata.items()):
                code, message = self._service.status_of(error)
            response = FrameResponse(id=request.id, error=FrameError(code=code, message=message))
        if self._note is not None:
            self._note(_METHODS.get(kind, "unknown"), code, began_s, list(request.metadata.items()))
        return response

    def _do(self, kind: str | None, request: FrameRequest, response: FrameResponse, connection: _Connection) -> None:
        """What is asked for now and then."""
        service, caller = self._service, connection.caller
        if kind == "start_episode":
            self._end_before(connection)
            started = service.start_episode(request.start_episode, caller)
            connection.session_id = started.session_id
            response.start_episode.CopyFrom(started)
        elif kind == "end_episode":
            response.end_episode.CopyFrom(service.end_episode(request.end_episode, caller))
        elif kind == "get_agent_info":
            response.get_agent_info.CopyFrom(service.get_agent_info(request.get_agent_info))
        elif kind == "check_health":
            response.check_health.CopyFrom(
                CheckHealthResponse(serving=self._health.is_serving(request.check_health.service))
            )
        else:
            known = [field.name for field in FrameRequest.DESCRIPTOR.oneofs_by_name["request"].fields]
            raise UnknownRequestError(f"request: got none that this agent knows, expected one of {', '.join(known)}")

    def _end_before(self, connection: _Connection) -> None:
        """One session a connection: that which it began before ends."""
        if connection.session_id:
            with contextlib.suppress(UnknownSessionError):
                self._service.registry.remove(connection.session_id, connection.caller.owner)
            connection.session_id = ""

    def _take_place(self, connection: _Connection, kind: str | None) -> None:
        """Note that a connection is used; at its first request it gets a place, and at its first other than for health.

        Raises:
            TakenError: none is left.
            QuotaError: the client has as many as one may.
            _Ended: its place has been taken away.
        """
        if connection.trusted:
            return
        acts = kind != "check_health"
        place = connection.place
        if place is not None and (connection.acts or not acts):
            if not (self._acting if connection.acts else self._checking).use(place):
                raise _Ended
            return
        self._free(connection)
        places = self._acting if acts else self._checking
        connection.place, connection.acts = places.take(connection.caller.name, connection), acts
        if connection.place is None and places.has_most(connection.caller.name):
            raise self._guard.reject(
                QuotaError(
                    f"calls: got more than {places.per_peer} open connections, which is one client's limit: close one, "
                    f"or wait until one has been idle for {_GIVES_WAY_AFTER_S:g} s"
                ),
                connection.caller.name,
            )
        if connection.place is None:
            raise TakenError(
                f"{len(places)} connections are open, which is the limit (--max-sessions): close one, or wait until "
                f"one has been idle for {_GIVES_WAY_AFTER_S:g} s"
            )

    def _free(self, connection: _Connection) -> None:
        if connection.place is not None:
            (self._acting if connection.acts else self._checking).free(connection.place)
            connection.place = None


def connection_limit(max_sessions: int) -> int:
    """How many connections may act: one for each session, if the system has as many descriptors to spare."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files == resource.RLIM_INFINITY:
        return max_sessions
    return max(min(max_sessions, files - _SPARE_FILES - _CHECKS - _NEW), 1)


def _listen(path: str, mode: int) -> socket.socket:
    """A socket of this mode at a path, on which nothing is accepted yet."""
    if sys.platform != "linux":
        raise UsageError(f"--frames: got '{path}', but {sys.platform} does not tell who connects: use gRPC")
    claim(path, "--frames", SCHEME)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
        os.chmod(path, mode)  # before anyone can connect
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise HmarlError(f"cannot listen on {SCHEME}{path}: {error.strerror}; choose another with --frames") from error
    return listener
