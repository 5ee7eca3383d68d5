"""The one place where whoever watches an agent is told what it does: metrics, traces.

A server applies the functions of ``Telemetry`` once, when it is made, to those of its own that answer requests. Without
an observer they come back as they are: what is not asked for costs nothing, and imports nothing.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from google.protobuf.message import DecodeError

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.messages import status_of
from hmarl.agent.v1.status import Code, code_of

if TYPE_CHECKING:
    import grpc

    from hmarl.runtime.session import Action

Metadata: TypeAlias = Iterable[tuple[str, str | bytes]]
LOGGER = logging.getLogger("hmarl.agent")
OK = Code.OK
GRPC, FRAMES = "grpc", "frames"
ACT, STREAM_ACT = "Act", "StreamAct"
_TELL_EVERY_S = 0.1
_MOST_UNTOLD = 2**16  # more would mean that nothing is told any more
# The outcomes of a reload.
RELOADED, RELOAD_REFUSED = "reloaded", "refused"


class Answer(NamedTuple):
    """One request that was answered, by a reply or by a refusal.

    Attributes:
        method: its name, without the service; ``StreamAct`` stands for one request of a stream.
        code: how it ended.
        began_s: when the request was there, in seconds of ``time.perf_counter``.
        ended_s: when the reply was.
        origin: what it came with: metadata, or the body of a request of a stream.
        system: by which it came: ``grpc`` or ``frames``.
    """

    method: str
    code: Code
    began_s: float
    ended_s: float
    origin: Metadata | bytes = ()
    system: str = GRPC

    def metadata(self) -> Metadata:
        """What came with the request; nothing with one of a stream that is no message."""
        if not isinstance(self.origin, bytes):
            return self.origin
        with contextlib.suppress(DecodeError):
            return list(agent_pb2.StreamActRequest.FromString(self.origin).metadata.items())
        return ()


class Act(NamedTuple):
    """What a policy did in one act.

    Attributes:
        seconds: how long it took.
        missed_steps: see ``Action``.
        replayed: likewise.
    """

    seconds: float
    missed_steps: int
    replayed: bool


class Observer:
    """What may watch a server; this one looks away."""

    def answered(self, answers: Sequence[Answer]) -> None:
        """Requests were answered."""

    def acted(self, acts: Sequence[Act]) -> None:
        """A policy acted."""

    def reloaded(self, outcome: str) -> None:
        """Another bundle was to be served: ``RELOADED`` or ``RELOAD_REFUSED``."""


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

    The threads that serve only note what happened, which a thread of its own passes on, ten times a second: no act
    waits for what an observer makes of it.

    Args:
        observers: who is told.
    """

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers
        self._thread = threading.local()
        self._telling = threading.Lock()
        self._failed: set[Observer] = set()
        # Plain tuples, with the fields of Answer and Act. Without a lock: adding and taking are one step each.
        self._answers: deque[tuple[Any, ...]] = deque(maxlen=_MOST_UNTOLD)
        self._acts: deque[tuple[Any, ...]] = deque(maxlen=_MOST_UNTOLD)

    def start(self, stopped: threading.Event) -> None:
        """Tell observers until ``stopped`` is set."""
        if self._observers:
            threading.Thread(target=self._run, args=(stopped,), name="hmarl-telemetry", daemon=True).start()

    def flush(self) -> None:
        """Tell observers what they have not been told yet."""
        with self._telling:
            answers = [Answer(*each) for each in _taken(self._answers)]
            acts = [Act(*each) for each in _taken(self._acts)]
            for observer in self._observers:
                try:
                    observer.answered(answers)
                    observer.acted(acts)
                except Exception as error:  # one that fails keeps neither others nor later ones from being told
                    self._fails(observer, error)

    def methods(self, handlers: Mapping[str, grpc.RpcMethodHandler]) -> dict[str, grpc.RpcMethodHandler]:
        """A service's methods by name, watched: unary ones whole, of streams those that are refused."""
        if not self._observers:
            return dict(handlers)
        return {name: self._watched(name, handler) for name, handler in handlers.items()}

    def acting(self, act: Callable[..., Action]) -> Callable[..., Action]:
        """``PolicySession.act``, watched; what it raises is told with the answer."""
        if not self._observers:
            return act
        note, now = self._acts.append, time.perf_counter

        def watched(session: Any, observation: Any, mask: Any, *, step: int) -> Action:
            began_s = now()
            action = act(session, observation, mask, step=step)
            note((now() - began_s, action.missed_steps, action.replayed))
            return action

        return watched

    def streaming(
        self, reply: Callable[..., agent_pb2.StreamActResponse]
    ) -> Callable[..., agent_pb2.StreamActResponse]:
        """What answers one request of a stream, watched."""
        if not self._observers:
            return reply

        def watched(body: bytes, *asked: Any) -> agent_pb2.StreamActResponse:
            began_s = time.perf_counter()
            response = reply(body, *asked)
            code = status_of(response.error) if response.HasField("error") else OK
            self._note(STREAM_ACT, code, began_s, body)
            return response

        return watched

    def noting(self, system: str) -> Callable[[str, Code, float, Metadata], None] | None:
        """What is told of each request that was answered by a system: see ``Answer``; None where no one listens."""
        return partial(self._note, system=system) if self._observers else None

    def own_act(self) -> None:
        """The request that this thread is answering is the process's own, and concerns no observer."""
        self._thread.own = True

    def reloaded(self, outcome: str) -> None:
        """See ``Observer``."""
        for observer in self._observers:
            observer.reloaded(outcome)

    def _watched(self, method: str, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        import grpc  # noqa: PLC0415 - who serves without gRPC has no such methods

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
                code = _code_of_call(context)
                if code is None:  # it ended before it was answered
                    code = Code.CANCELLED
                self._note(method, code, arrival.at_s, context.invocation_metadata())
                raise
            code = OK if context.is_active() else Code.CANCELLED
            self._note(method, code, arrival.at_s, context.invocation_metadata())
            return reply

        return watched

    def _watched_stream(self, method: str, handle: Callable[..., Iterator[bytes]]) -> Callable[..., Iterator[bytes]]:
        def watched(bodies: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            began_s = time.perf_counter()
            try:
                yield from handle(bodies, context)
            except Exception:
                code = _code_of_call(context)
                if code is not None:  # refused; one that merely ended has no code
                    self._note(method, code, began_s, context.invocation_metadata())
                raise

        return watched

    def _note(self, method: str, code: Code, began_s: float, origin: Metadata | bytes, system: str = GRPC) -> None:
        thread = self._thread.__dict__
        if thread and thread.pop("own", False):
            return
        self._answers.append((method, code, began_s, time.perf_counter(), origin, system))

    def _fails(self, observer: Observer, error: Exception) -> None:
        """Say so once: requests, which bring it about, are many."""
        if observer not in self._failed:
            self._failed.add(observer)
            LOGGER.error("%s failed, and may fail again", type(observer).__name__, exc_info=error)

    def _run(self, stopped: threading.Event) -> None:
        while not stopped.wait(_TELL_EVERY_S):
            self.flush()
        self.flush()


def _code_of_call(context: grpc.ServicerContext) -> Code | None:
    code = context.code()
    return None if code is None else code_of(code.value[0])


def _taken(notes: deque[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """All that were there when it began."""
    for _ in range(len(notes)):
        yield notes.popleft()
