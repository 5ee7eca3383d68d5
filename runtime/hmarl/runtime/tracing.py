"""Requests as spans of OpenTelemetry; the extra ``otel``. What goes where is up to the OTEL_* environment variables."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence

from hmarl.agent.v1.status import Code
from hmarl.runtime import __version__
from hmarl.runtime.errors import MissingExtraError, UsageError
from hmarl.runtime.telemetry import STREAM_ACT, Answer, Metadata, Observer

try:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import SpanKind, Status, StatusCode, set_tracer_provider
    from opentelemetry.trace import TracerProvider as AnyTracerProvider
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError as error:
    raise MissingExtraError(error.name or "opentelemetry", "otel", "tracing") from error

SERVICE = "hmarl.agent.v1.AgentService"
_STATE, _MOST_MEMBERS, _LONGEST_STATE = "tracestate", 32, 4096
_NAME = r"[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13}"
_MEMBER = re.compile(rf"(?:{_NAME})=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{{0,255}}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")
TRACED = frozenset({"StartEpisode", "Act", STREAM_ACT, "EndEpisode"})
PROPAGATOR = TraceContextTextMapPropagator()
# What is the caller's fault, or no fault at all, is none of the server's spans (semantic conventions for gRPC).
_SERVERS_FAULT = frozenset(
    {
        Code.UNKNOWN,
        Code.DEADLINE_EXCEEDED,
        Code.UNIMPLEMENTED,
        Code.INTERNAL,
        Code.UNAVAILABLE,
        Code.DATA_LOSS,
    }
)


def exporter() -> str:
    """What the environment has traces sent by: otlp or none.

    Raises:
        UsageError: OTEL_TRACES_EXPORTER names another exporter than the extra brings.
    """
    name = os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip() or "otlp"
    if name not in ("otlp", "none"):
        raise UsageError(f"OTEL_TRACES_EXPORTER: got '{name}', expected otlp (over gRPC) or none")
    return name


def exporting_provider(service: str, attributes: dict[str, str] | None = None) -> TracerProvider:
    """A provider that samples and exports as the environment says: OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_ENDPOINT.

    Args:
        service: the name of the service, unless OTEL_SERVICE_NAME says otherwise.
        attributes: more of what the spans are of.

    Raises:
        UsageError: as ``exporter``.
    """
    sent_by = exporter()
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    own = Resource({"service.name": service, "service.version": __version__, **(attributes or {})})
    provider = TracerProvider(resource=own.merge(_given_resource()))
    if sent_by == "otlp":
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


def carrier(metadata: Metadata) -> dict[str, str]:
    """What of a request's metadata names its trace. OpenTelemetry logs each state that it cannot read, as it came.

    A state that breaks the rules of W3C's Trace Context is left out, as they have it.
    """
    found = {key: value for key, value in metadata if key in PROPAGATOR.fields and isinstance(value, str)}
    if not _well_formed(found.get(_STATE, "")):
        del found[_STATE]
    return found


def _well_formed(state: str) -> bool:
    members = [each for each in map(str.strip, state.split(",")) if each] if len(state) <= _LONGEST_STATE else [""]
    names = {each.partition("=")[0] for each in members}
    return len(names) == len(members) <= _MOST_MEMBERS and all(map(_MEMBER.fullmatch, members))


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
        span = self._tracer.start_span(
            f"{SERVICE}/{answer.method}",
            context=PROPAGATOR.extract(carrier(answer.metadata())),
            kind=SpanKind.SERVER,
            attributes={
                "rpc.system": answer.system,
                "rpc.service": SERVICE,
                "rpc.method": answer.method,
                "rpc.grpc.status_code": int(answer.code),
            },
            start_time=began_ns,
        )
        if answer.code in _SERVERS_FAULT:
            span.set_status(Status(StatusCode.ERROR, answer.code.name))
        span.end(began_ns + int((answer.ended_s - answer.began_s) * 1e9))
