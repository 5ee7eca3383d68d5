"""Requests as spans of OpenTelemetry; the extra ``otel``. What goes where is up to the OTEL_* environment variables."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import grpc

from hmarl.runtime import __version__
from hmarl.runtime.errors import MissingExtraError, UsageError
from hmarl.runtime.telemetry import STREAM_ACT, Answer, Observer

try:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import SpanKind, Status, StatusCode, set_tracer_provider
    from opentelemetry.trace import TracerProvider as AnyTracerProvider
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError as error:
    raise MissingExtraError(error.name or "opentelemetry", "otel", "tracing") from error

SERVICE = "hmarl.agent.v1.AgentService"
TRACED = frozenset({"StartEpisode", "Act", STREAM_ACT, "EndEpisode"})
PROPAGATOR = TraceContextTextMapPropagator()
# What is the caller's fault, or no fault at all, is none of the server's spans (semantic conventions for gRPC).
_SERVERS_FAULT = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


def exporting_provider(service: str, attributes: dict[str, str] | None = None) -> TracerProvider:
    """A provider that samples and exports as the environment says: OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_ENDPOINT.

    Args:
        service: the name of the service, unless OTEL_SERVICE_NAME says otherwise.
        attributes: more of what the spans are of.

    Raises:
        UsageError: OTEL_TRACES_EXPORTER names another exporter than the extra brings.
    """
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip() or "otlp"
    if exporter not in ("otlp", "none"):
        raise UsageError(f"OTEL_TRACES_EXPORTER: got '{exporter}', expected otlp (over gRPC) or none")
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    own = Resource({"service.name": service, "service.version": __version__, **(attributes or {})})
    provider = TracerProvider(resource=own.merge(_given_resource()))
    if exporter == "otlp":
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def start_tracing(service: str) -> None:
    """Have this program's traces exported as the environment says; for programs that have no provider of their own.

    Args:
        service: the name of the service, unless OTEL_SERVICE_NAME says otherwise.

    Raises:
        UsageError: see ``exporting_provider``.
    """
    set_tracer_provider(exporting_provider(service))


def _given_resource() -> Resource:
    """What the environment says, without what OpenTelemetry says where it does not."""
    from opentelemetry.sdk.resources import OTELResourceDetector  # noqa: PLC0415

    return OTELResourceDetector().detect()


class TracedRequests(Observer):
    """Makes a span of every request to act, and of those that begin and end episodes.

    A span is made when the request has been answered, at once with its beginning and end: no request waits for it.

    Args:
        provider: samples and exports.
    """

    def __init__(self, provider: AnyTracerProvider) -> None:
        self._tracer = provider.get_tracer("hmarl.runtime", __version__)

    def answered(self, answers: Sequence[Answer]) -> None:
        """See ``Observer``."""
        now_ns, now_s = time.time_ns(), time.perf_counter()
        for answer in answers:
            if answer.method in TRACED:
                self._make(answer, now_ns - int((now_s - answer.began_s) * 1e9))

    def _make(self, answer: Answer, began_ns: int) -> None:
        carrier = {key: value for key, value in answer.metadata() if isinstance(value, str)}
        span = self._tracer.start_span(
            f"{SERVICE}/{answer.method}",
            context=PROPAGATOR.extract(carrier),
            kind=SpanKind.SERVER,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": SERVICE,
                "rpc.method": answer.method,
                "rpc.grpc.status_code": answer.code.value[0],
            },
            start_time=began_ns,
        )
        if answer.code in _SERVERS_FAULT:
            span.set_status(Status(StatusCode.ERROR, answer.code.name))
        span.end(began_ns + int((answer.ended_s - answer.began_s) * 1e9))
