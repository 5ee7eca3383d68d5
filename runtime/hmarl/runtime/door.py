"""What stands between gRPC and the services: threads, limits on what waits, raw bytes in, statuses out.

Every method takes a stream of bytes on this side, which is the same on the wire: a handler then starts before the body
of its request has come, so that calls whose body never comes can be counted and ended; and a body that is no message is
refused here, not in gRPC, which leaks what it cannot decode.
"""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from hmarl.agent.v1.status import Code
from hmarl.runtime.errors import QuotaError, RequestError, TakenError
from hmarl.runtime.identity import Guard
from hmarl.runtime.places import Place, Places
from hmarl.runtime.request_ids import request_of
from hmarl.runtime.service import cut
from hmarl.runtime.sweeper import CROWDED_SILENT_FOR_S, SILENT_FOR_S
from hmarl.runtime.threads import Threads

Context: TypeAlias = grpc.ServicerContext
StatusOf = Callable[[Exception], tuple[Code, str]]
STATUS_CODES = {Code(code.value[0]): code for code in grpc.StatusCode}
_SPARE_THREADS = 8  # that refuse calls while all places are taken
_KEEPALIVE_S, _KEEPALIVE_TIMEOUT_S = 10, 10
_IDLE_CONNECTION_S = 30
_UNARY_PER_CONNECTION = 32
_SPARE_FILES = 100  # descriptors that connections leave to everything else
_MAX_CONNECTIONS = 4096


def server_options(max_streams: int, max_sessions: int, max_request_bytes: int) -> list[tuple[str, int]]:
    """Options of a server, as gRPC takes them.

    Peers that have vanished or are frozen are noticed by pings that they do not answer; clients may ping as well.
    ``ping_timeout_ms`` is what ends a connection whose pings are swallowed; the timeout of keepalive alone does not.
    """
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    connections = _MAX_CONNECTIONS if files == resource.RLIM_INFINITY else min(files - _SPARE_FILES, _MAX_CONNECTIONS)
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", max_request_bytes),
        # Windows that grow with the traffic would take in megabytes of what is refused for its size.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.keepalive_time_ms", _KEEPALIVE_S * 1000),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_S * 1000),
        ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_S * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.max_ping_strikes", 0),  # cut off for its pings, a client would come back at once
        ("grpc.http2.settings_timeout", 5000),
        ("grpc.server_handshake_timeout_ms", 5000),
        ("grpc.max_connection_idle_ms", _IDLE_CONNECTION_S * 1000),
        ("grpc.max_allowed_incoming_connections", max(connections, 16)),
        # Counts calls that were reset but not yet done with, too: what bounds the cost of calls that are reset at once.
        ("grpc.max_concurrent_streams", max_streams + _UNARY_PER_CONNECTION),
        ("grpc.server.max_pending_requests", queue_limit(max_sessions)),
        ("grpc.server.max_pending_requests_hard_limit", 2 * queue_limit(max_sessions)),
    ]


def queue_limit(max_sessions: int) -> int:
    """How many requests may wait for a thread: one of each session, and some of who only looks."""
    return max(max_sessions, 256)


def _end(context: Context) -> None:
    """End a call from another thread; its client sees CANCELLED."""
    context.cancel()


class Line:
    """Methods with threads of their own, so that they never wait for the calls of other lines.

    Args:
        name: of its threads.
        status_of: the status of an error.
        guard: lets callers in.
        threads: how many requests are worked on at once; 0 for as many as there are places, and some more.
        places: calls that may stay open at once, for methods that stream; 0 when none of its methods does.
        per_client: how many of them one client may hold; 0 for any number.
        gives_way_after_s: seconds after which an open call that is not used is ended when all places are taken.
        idle_limit_s: seconds after which it is ended in any case.
        open_to_all: whether callers need not show who they are.

    Attributes:
        name: of its threads.
        what: is ended when it is silent or idle.
        guard: lets callers in, and knows who they are.
        pool: its threads.
        capacity: how many there are.
        places: the calls that stay open.
        crowded: set when many calls wait for their bodies.
    """

    def __init__(
        self,
        name: str,
        status_of: StatusOf,
        guard: Guard,
        *,
        threads: int = 0,
        places: int = 0,
        per_client: int = 0,
        gives_way_after_s: float = 5.0,
        idle_limit_s: float = float("inf"),
        open_to_all: bool = False,
    ) -> None:
        self.name = name
        self.what = "calls"
        self.guard = guard
        self._open_to_all = open_to_all
        self.capacity = threads = threads or places + _SPARE_THREADS
        self.pool = Threads(threads, f"grpc-{name}")
        self.places: Places[Context] = Places(places, gives_way_after_s, _end, per_peer=per_client)
        self.crowded = threading.Event()
        self._gives_way_after_s = gives_way_after_s
        self._idle_limit_s = idle_limit_s
        self._status_of = status_of
        # Calls that wait for their bodies, the oldest first, and since when. A quarter of the threads is for others.
        # Without a lock: adding, removing and copying a dictionary are one step each.
        self._silent: dict[Context, float] = {}
        self._may_be_silent = (threads - places) * 3 // 4

    def sweep(self) -> int:
        """End the calls that have been silent or idle for too long; returns how many."""
        waiting = list(self._silent.items())
        crowd = max(len(waiting) - self._may_be_silent, 0)
        if crowd:
            self.crowded.set()  # look again soon
        now = time.monotonic()
        ended = 0
        for position, (context, since) in enumerate(waiting):
            if now - since < (CROWDED_SILENT_FOR_S if position < crowd else SILENT_FOR_S):
                break
            context.cancel()
            ended += 1
        return ended + self.places.sweep(self._idle_limit_s)

    def unary(self, request_type: Any, behave: Callable[[Any, Context], Any]) -> grpc.RpcMethodHandler:
        """One reply to one request; ``behave`` takes the request and the call."""

        def handle(bodies: Iterator[bytes], context: Context) -> Any:
            try:
                self.admit(context)
                return behave(decoded(request_type, self.body(bodies, context)), context).SerializeToString()
            except grpc.RpcError:  # the call has ended
                raise
            except Exception as error:
                with request_of(context.invocation_metadata()):
                    code, text = self._status_of(error)
            finally:
                self.guard.dismiss(context)
            return context.abort(STATUS_CODES[code], cut(text))

        handle.experimental_thread_pool = self.pool  # type: ignore[attr-defined]
        return grpc.stream_unary_rpc_method_handler(handle)

    def stream(self, behave: Callable[[Iterator[bytes], Context], Iterator[Any]]) -> grpc.RpcMethodHandler:
        """Any number of replies; ``behave`` takes the requests and the call."""

        def handle(bodies: Iterator[bytes], context: Context) -> Iterator[bytes]:
            try:
                self.admit(context)
                for reply in behave(bodies, context):
                    yield reply.SerializeToString()
                return
            except grpc.RpcError:  # the call has ended
                raise
            except Exception as error:
                with request_of(context.invocation_metadata()):
                    code, text = self._status_of(error)
            finally:
                self.guard.dismiss(context)
            context.abort(STATUS_CODES[code], cut(text))

        handle.experimental_thread_pool = self.pool  # type: ignore[attr-defined]
        return grpc.stream_stream_rpc_method_handler(handle)

    def admit(self, context: Context) -> None:
        """Let a call in, or a further request of one that stays open; see ``Guard.admit``."""
        self.guard.admit(context, open_to_all=self._open_to_all)

    def body(self, bodies: Iterator[bytes], context: Context) -> bytes:
        """The body of a call, for which it waits no longer than others allow.

        Raises:
            RequestError: the call ended without any.
            grpc.RpcError: it was cancelled, by the peer or because it was silent for too long.
        """
        self._silent[context] = time.monotonic()
        if len(self._silent) > self._may_be_silent:
            self.crowded.set()
        try:
            return next(bodies)
        except StopIteration:
            raise RequestError("request: got none, expected one message") from None
        finally:
            del self._silent[context]

    def place(self, context: Context, what: str) -> Place[Context]:
        """A place for a call that stays open.

        Raises:
            QuotaError: the client holds as many as one may.
            TakenError: none is left.
        """
        client = self.guard.caller(context).name
        place = self.places.take(client, context)
        if place is None and self.places.has_most(client):
            raise QuotaError(
                f"calls: got more than {self.places.per_peer} open {what}, which is one client's limit: close one, or "
                f"wait until one has been idle for {self._gives_way_after_s:g} s"
            )
        if place is None:
            raise TakenError(
                f"{len(self.places)} {what} are open, which is the limit: close one, or wait until one has been idle "
                f"for {self._gives_way_after_s:g} s"
            )
        return place


def decoded(request_type: Any, body: bytes) -> Any:
    """A message of what came.

    Raises:
        RequestError: it is none.
    """
    try:
        return request_type.FromString(body)
    except DecodeError:
        raise RequestError(
            f"request: got {len(body)} bytes that are no {request_type.DESCRIPTOR.full_name}; encode it with the "
            f"service's own {request_type.DESCRIPTOR.file.name.rpartition('/')[2]}"
        ) from None
