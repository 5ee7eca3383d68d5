"""``grpc.health.v1`` with a fixed set of services: nothing that a client asks for is remembered."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from hmarl.runtime.errors import UnknownServiceError

if TYPE_CHECKING:
    import grpc
    from grpc_health.v1 import health_pb2

SERVICE_NAME = "grpc.health.v1.Health"
# Whether the process itself works, by its own probe; what no client can change by what it sends. For supervisors.
PROCESS = "hmarl.agent.v1.Process"
_UNKNOWN, _SERVING, _NOT_SERVING = "SERVICE_UNKNOWN", "SERVING", "NOT_SERVING"


class HealthService:
    """The status of each of a process's services, NOT_SERVING at first.

    Args:
        services: the names that are known.

    Attributes:
        closing: set once the process is about to stop.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self.closing = threading.Event()
        self._changed = threading.Condition()
        self._statuses = dict.fromkeys(services, _NOT_SERVING)

    def report(self, serving: Mapping[str, bool]) -> None:
        """Set statuses, unless the process is about to stop."""
        with self._changed:
            for name, well in serving.items():
                self._statuses[name] = _SERVING if well and not self.closing.is_set() else _NOT_SERVING
            self._changed.notify_all()

    def enter_graceful_shutdown(self) -> None:
        """NOT_SERVING from now on, whatever is reported."""
        self.closing.set()
        self.report(dict.fromkeys(self._statuses, False))

    def check(self, request: health_pb2.HealthCheckRequest, _: object = None) -> health_pb2.HealthCheckResponse:
        """The status of a service.

        Raises:
            UnknownServiceError: there is no such service.
        """
        from grpc_health.v1 import health_pb2  # noqa: PLC0415 - gRPC's alone

        return health_pb2.HealthCheckResponse(status=_SERVING if self.is_serving(request.service) else _NOT_SERVING)

    def is_serving(self, service: str) -> bool:
        """Whether a service is SERVING.

        Raises:
            UnknownServiceError: there is no such service.
        """
        status = self._statuses.get(service)
        if status is None:
            raise UnknownServiceError(f"service: got '{service[:100]}', expected one of {sorted(self._statuses)}")
        return bool(status == _SERVING)

    def watch(
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> Iterator[health_pb2.HealthCheckResponse]:
        """The status of a service, now and whenever it changes, until the client goes."""
        from grpc_health.v1 import health_pb2  # noqa: PLC0415 - see above

        said = None
        if not context.add_callback(self._wake):
            return
        while context.is_active():
            status = self._statuses.get(request.service, _UNKNOWN)
            if status != said:
                said = status
                yield health_pb2.HealthCheckResponse(status=status)
                continue
            with self._changed:
                if context.is_active() and self._statuses.get(request.service, _UNKNOWN) == said:
                    self._changed.wait()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
