"""``grpc.health.v1`` with a fixed set of services: nothing that a client asks for is remembered."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

import grpc
from grpc_health.v1 import health_pb2

from hmarl.runtime.errors import UnknownServiceError

SERVICE_NAME = "grpc.health.v1.Health"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthService:
    """One status for all services of a process, NOT_SERVING at first.

    Args:
        services: the names that are known.

    Attributes:
        closing: set once the process is about to stop.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self.closing = threading.Event()
        self._services = frozenset(services)
        self._changed = threading.Condition()
        self._status = NOT_SERVING

    def report(self, serving: bool) -> bool:
        """Set the status, unless the process is about to stop; returns whether it is another one now."""
        with self._changed:
            status = SERVING if serving and not self.closing.is_set() else NOT_SERVING
            changed: bool = status != self._status
            self._status = status
            self._changed.notify_all()
            return changed

    def enter_graceful_shutdown(self) -> None:
        """NOT_SERVING from now on, whatever is reported."""
        self.closing.set()
        self.report(serving=False)

    def check(self, request: health_pb2.HealthCheckRequest, _: object = None) -> health_pb2.HealthCheckResponse:
        """The status of a service.

        Raises:
            UnknownServiceError: there is no such service.
        """
        if request.service not in self._services:
            raise UnknownServiceError(
                f"service: got '{request.service[:100]}', expected one of {sorted(self._services)}"
            )
        return health_pb2.HealthCheckResponse(status=self._status)

    def watch(
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> Iterator[health_pb2.HealthCheckResponse]:
        """The status of a service, now and whenever it changes, until the client goes."""
        known = request.service in self._services
        said = None
        if not context.add_callback(self._wake):
            return
        while context.is_active():
            status = self._status if known else _UNKNOWN
            if status != said:
                said = status
                yield health_pb2.HealthCheckResponse(status=status)
                continue
            with self._changed:
                if context.is_active() and (not known or self._status == said):
                    self._changed.wait()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
