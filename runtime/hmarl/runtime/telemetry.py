"""The one place where whoever watches an agent is told what it does: metrics, traces.

A server applies the functions of ``Telemetry`` once, when it is made, to those of its own that answer requests. Without
an observer they come back as they are: what is not asked for costs nothing, and imports nothing.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import grpc

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.messages import status_of
from hmarl.runtime.session import Action

Metadata: TypeAlias = Iterable[tuple[str, str | bytes]]
ACT, STREAM_ACT = "Act", "StreamAct"
# The outcomes of a reload.
RELOADED, RELOAD_REFUSED, ROLLED_BACK = "reloaded", "refused", "rolled_back"


class Answer:
    """One request that was answered, by a reply or by a refusal.

    Attributes:
        method: its name, without the service; ``StreamAct`` stands for one request of a stream.
        code: how it ended.
        began_s: when the request was there, in seconds of ``time.perf_counter``.
        ended_s: when the reply was.
        metadata: reads what came with the request; only while it is being told.
    """

    __slots__ = ("began_s", "code", "ended_s", "metadata", "method")

    def __init__(
        self, method: str, code: grpc.StatusCode, began_s: float, ended_s: float, metadata: Callable[[], Metadata]
    ) -> None:
        self.method = method
        self.code = code
        self.began_s = began_s
        self.ended_s = ended_s
        self.metadata = metadata


class Observer:
    """What may watch a server; this one looks away. The threads that serve call it: it must neither wait nor raise."""

    def answered(self, answer: Answer) -> None:
        """A request was answered."""

    def acted(self, seconds: float, action: Action) -> None:
        """A policy acted, in so many seconds."""

    def rejected(self, reason: str) -> None:
        """A peer was turned away; ``reason`` is from a fixed set, in snake_case."""

    def reloaded(self, outcome: str) -> None:
        """Another bundle was to be served: ``RELOADED``, ``RELOAD_REFUSED`` or ``ROLLED_BACK``."""


class _Arrival:
    """The bodies of a call, and when the first one was there."""

    __slots__ = ("_bodies", "at_s")

    def __init__(self, bodies: Iterator[bytes]) -> None:
        self._bodies = bodies
        self.at_s = time.perf_counter()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        body = next(self._bodies)
        self.at_s = time.perf_counter()
        return body


class Telemetry:
    """Tells observers.

    Args:
        observers: who is told.
    """

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers
        self._thread = threading.local()

    def methods(self, handlers: Mapping[str, grpc.RpcMethodHandler]) -> dict[str, grpc.RpcMethodHandler]:
        """A service's methods by name, watched: unary ones whole, of streams those that are refused."""
        if not self._observers:
            return dict(handlers)
        return {name: self._watched(name, handler) for name, handler in handlers.items()}

    def acting(self, act: Callable[..., Action]) -> Callable[..., Action]:
        """``PolicySession.act``, watched; what it raises is told with the answer."""
        if not self._observers:
            return act

        def watched(*arguments: Any, **named: Any) -> Action:
            began_s = time.perf_counter()
            action = act(*arguments, **named)
            seconds = time.perf_counter() - began_s
            for observer in self._observers:
                observer.acted(seconds, action)
            return action

        return watched

    def streaming(
        self, reply: Callable[[bytes, grpc.ServicerContext], agent_pb2.StreamActResponse]
    ) -> Callable[[bytes, grpc.ServicerContext], agent_pb2.StreamActResponse]:
        """What answers one request of a stream, watched."""
        if not self._observers:
            return reply

        def watched(body: bytes, context: grpc.ServicerContext) -> agent_pb2.StreamActResponse:
            began_s = time.perf_counter()
            response = reply(body, context)
            code = status_of(response.error) if response.WhichOneof("result") == "error" else grpc.StatusCode.OK
            self._tell(STREAM_ACT, code, began_s, functools.partial(_stream_metadata, body))
            return response

        return watched

    def own_act(self) -> None:
        """The request that this thread is answering is the process's own, and concerns no observer."""
        self._thread.own = True

    def rejected(self, reason: str) -> None:
        """See ``Observer``."""
        for observer in self._observers:
            observer.rejected(reason)

    def reloaded(self, outcome: str) -> None:
        """See ``Observer``."""
        for observer in self._observers:
            observer.reloaded(outcome)

    def _watched(self, method: str, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        before: Any = handler.stream_unary or handler.stream_stream
        unary = handler.stream_unary is not None
        handle: Any = self._watched_unary(method, before) if unary else self._watched_stream(method, before)
        handle.experimental_thread_pool = before.experimental_thread_pool
        make = grpc.stream_unary_rpc_method_handler if unary else grpc.stream_stream_rpc_method_handler
        return make(handle)

    def _watched_unary(self, method: str, handle: Callable[..., bytes]) -> Callable[..., bytes]:
        def watched(bodies: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            arrival = _Arrival(bodies)
            try:
                reply = handle(arrival, context)
            except BaseException:
                # Without a code the call has ended before it was answered.
                self._tell(
                    method, context.code() or grpc.StatusCode.CANCELLED, arrival.at_s, context.invocation_metadata
                )
                raise
            code = grpc.StatusCode.OK if context.is_active() else grpc.StatusCode.CANCELLED
            self._tell(method, code, arrival.at_s, context.invocation_metadata)
            return reply

        return watched

    def _watched_stream(self, method: str, handle: Callable[..., Iterator[bytes]]) -> Callable[..., Iterator[bytes]]:
        def watched(bodies: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            began_s = time.perf_counter()
            try:
                yield from handle(bodies, context)
            except Exception:
                if context.code() is not None:  # refused; one that merely ended has no code
                    self._tell(method, context.code(), began_s, context.invocation_metadata)
                raise

        return watched

    def _tell(self, method: str, code: grpc.StatusCode, began_s: float, metadata: Callable[[], Metadata]) -> None:
        thread = self._thread.__dict__
        if thread and thread.pop("own", False):
            return
        answer = Answer(method, code, began_s, time.perf_counter(), metadata)
        for observer in self._observers:
            observer.answered(answer)


def _stream_metadata(body: bytes) -> Metadata:
    """What came with one request of a stream, which was decoded before."""
    return list(agent_pb2.StreamActRequest.FromString(body).metadata.items())
