"""Whether an agent still serves, asked again and again without ever waiting for the answer."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any, Protocol

from hmarl.agent.v1.frames_pb2 import CheckHealthRequest, FrameRequest
from hmarl.agent.v1.framing import SCHEME
from hmarl.runtime.frames_call import FramesCall
from hmarl.runtime.health_service import PROCESS

CHECK_EVERY_S = 1.0
CHECK_LIMIT_S = 2.0
_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)
# Once a question has been dealt with: whether the answer was SERVING; None where there was no answer.
Told = Callable[[bool | None], None]


class _Way(Protocol):
    """How an agent is asked."""

    def ask(self, tell: Told) -> None:
        """Ask; one is told, later and from any thread."""
        ...

    def close(self) -> None:
        """Ask no more."""
        ...


class HealthProbe:
    """Asks one process for its health: not whether acts succeed, which clients can spoil, but whether it works.

    Counts of questions, not times, so that a supervisor that was itself frozen for a while blames no one.

    Args:
        address: where the process answers its supervisor.
        secret: by which it knows its supervisor; None where it asks for nothing.

    Attributes:
        unanswered: questions in a row to which no answer came in time.
        unwell: questions in a row that were not answered with SERVING, those without an answer among them.
    """

    def __init__(self, address: str, secret: str | None = None) -> None:
        self.unanswered = self.unwell = 0
        self._next_at = 0.0
        metadata = {} if secret is None else {"authorization": f"Bearer {secret}"}
        self._way: _Way = _Frames(address, metadata) if address.startswith(SCHEME) else _Grpc(address, metadata)
        self._asking = False
        self._answers: list[bool | None] = []

    def tend(self, now: float) -> None:
        """Ask when it is time to, and take in an answer that has come."""
        if self._answers:
            self._count(self._answers.pop())
            self._asking = False
        elif not self._asking and now >= self._next_at:
            self._next_at = now + CHECK_EVERY_S
            with contextlib.suppress(RuntimeError):  # no thread is left to ask in, which the agent is not to blame for
                self._way.ask(self._answers.append)
                self._asking = True

    def close(self) -> None:
        """Ask no more."""
        self._way.close()

    def _count(self, serving: bool | None) -> None:
        if serving:
            self.unanswered = self.unwell = 0
            return
        self.unanswered = 0 if serving is not None else self.unanswered + 1
        self.unwell += 1


class _Grpc:
    """By ``grpc.health.v1``."""

    def __init__(self, address: str, metadata: dict[str, str]) -> None:
        import grpc  # noqa: PLC0415 - a fleet may do without it
        from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: PLC0415

        self._channel = grpc.insecure_channel(address, _OPTIONS)
        self._stub = health_pb2_grpc.HealthStub(self._channel)
        self._request = health_pb2.HealthCheckRequest(service=PROCESS)
        self._serving, self._ok = health_pb2.HealthCheckResponse.SERVING, grpc.StatusCode.OK
        self._metadata = tuple(metadata.items())

    def ask(self, tell: Told) -> None:
        def ended(call: Any) -> None:
            tell(call.result().status == self._serving if call.code() is self._ok else None)

        self._stub.Check.future(
            self._request, timeout=CHECK_LIMIT_S, wait_for_ready=True, metadata=self._metadata
        ).add_done_callback(ended)

    def close(self) -> None:
        self._channel.close()


class _Frames:
    """By frames, each question in a thread, which ends within its limit."""

    def __init__(self, address: str, metadata: dict[str, str]) -> None:
        self._call = FramesCall(address)
        self._metadata = metadata

    def ask(self, tell: Told) -> None:
        def run() -> None:
            request = FrameRequest(check_health=CheckHealthRequest(service=PROCESS), metadata=self._metadata)
            response = self._call.exchange(request, CHECK_LIMIT_S)
            answered = response is not None and response.HasField("check_health")
            tell(response.check_health.serving if response is not None and answered else None)

        threading.Thread(target=run, name="health-probe", daemon=True).start()

    def close(self) -> None:
        """Its thread may still be at work; what it holds ends with it."""
