"""A client's calls as spans of OpenTelemetry; the extra ``otel``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hmarl.runtime import __version__
from hmarl.runtime.tracing import PROPAGATOR, SERVICE
from hmarl.sdk.clients.agent import Action
from hmarl.sdk.clients.call_metadata import call_metadata
from hmarl.sdk.clients.wires import is_frames
from hmarl.sdk.errors import MissingExtraError

try:
    from opentelemetry.trace import Span, SpanKind, get_tracer
except ModuleNotFoundError as error:
    raise MissingExtraError(error.name or "opentelemetry", "otel", "tracing") from error


class ClientSpans:
    """Makes spans by the program's own provider of traces, and has calls carry their context.

    Args:
        address: of the agent.
    """

    def __init__(self, address: str) -> None:
        self._tracer = get_tracer("hmarl.sdk", __version__)
        self._address = address

    @contextmanager
    def span(self, method: str) -> Iterator[Span]:
        """What the block does is one call of the service, by what the program sees; retries are parts of it."""
        attributes = {
            "rpc.system": "frames" if is_frames(self._address) else "grpc",
            "rpc.service": SERVICE,
            "rpc.method": method,
            "server.address": self._address,
        }
        with self._tracer.start_as_current_span(
            f"{SERVICE}/{method}", kind=SpanKind.CLIENT, attributes=attributes
        ) as span:
            carrier: dict[str, str] = {}
            PROPAGATOR.inject(carrier)
            with call_metadata(carrier.items()):
                yield span

    def tell(self, span: Span, action: Action) -> None:
        """Say what came of an act."""
        span.set_attributes({"hmarl.step": action.step, "hmarl.fresh": action.fresh})
