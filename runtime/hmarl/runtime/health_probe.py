"""Whether an agent still serves, asked again and again without ever waiting for the answer."""

from __future__ import annotations

from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hmarl.runtime.health_service import PROCESS

CHECK_EVERY_S = 1.0
CHECK_LIMIT_S = 2.0
_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)


class HealthProbe:
    """Asks ``grpc.health.v1`` of one process: not whether acts succeed, which clients can spoil, but whether it works.

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
        self._channel = grpc.insecure_channel(address, _OPTIONS)
        self._stub = health_pb2_grpc.HealthStub(self._channel)
        self._metadata = () if secret is None else (("authorization", f"Bearer {secret}"),)
        self._question: Any = None

    def tend(self, now: float) -> None:
        """Ask when it is time to, and take in an answer that has come."""
        if self._question is None and now >= self._next_at:
            self._next_at = now + CHECK_EVERY_S
            request = health_pb2.HealthCheckRequest(service=PROCESS)
            self._question = self._stub.Check.future(
                request, timeout=CHECK_LIMIT_S, wait_for_ready=True, metadata=self._metadata
            )
        elif self._question is not None and self._question.done():
            self._count()
            self._question = None

    def close(self) -> None:
        """Ask no more."""
        self._channel.close()

    def _count(self) -> None:
        answered = self._question.code() is grpc.StatusCode.OK
        if answered and self._question.result().status == health_pb2.HealthCheckResponse.SERVING:
            self.unanswered = self.unwell = 0
            return
        self.unanswered = 0 if answered else self.unanswered + 1
        self.unwell += 1
