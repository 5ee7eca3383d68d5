"""Spans of clients and agents in one trace, sent to a real collector's gRPC service."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agent_process import DOORS, AgentProcess
from hmarl.agent.v1 import agent_pb2
from hmarl.runtime.bundle import Bundle
from hmarl.sdk import AgentClient, AsyncAgentClient, StaleActionError
from otlp_collector import Collector, collector
from processes import LIMIT_S, wait_for

OBSERVATION, MASK = np.zeros(6, np.float32), np.ones(5, np.bool_)
SERVICE = "hmarl.agent.v1.AgentService"


@pytest.fixture(scope="module")
def kept() -> InMemorySpanExporter:
    """The spans of this process's clients; a process has one provider."""
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(kept: InMemorySpanExporter) -> InMemorySpanExporter:
    kept.clear()
    return kept


@pytest.fixture(scope="module")
def received() -> Iterator[Collector]:
    with collector() as found:
        yield found


@contextmanager
def traced_agent(bundle: Bundle, received: Collector, **environment: str) -> Iterator[AgentProcess]:
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{received.address}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        **environment,
    }
    before = ["env", *(f"{name}={value}" for name, value in variables.items())]
    with AgentProcess(bundle.path, "agent_0", before=before, options=["--traces"], door="both") as process:
        yield process


@pytest.fixture(scope="module")
def agent(toy_bundle: Bundle, received: Collector) -> Iterator[AgentProcess]:
    with traced_agent(toy_bundle, received) as process:
        yield process


def own(spans: InMemorySpanExporter, method: str) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name == f"{SERVICE}/{method}"]


def children_of(received: Collector, span: ReadableSpan, method: str) -> list[Any]:
    """The server's spans of a method below a client's span, once there are any."""

    def found() -> list[Any]:
        return [
            each
            for each in received.spans()
            if each.name == f"{SERVICE}/{method}"
            and int.from_bytes(each.parent_span_id, "big") == span.context.span_id
            and int.from_bytes(each.trace_id, "big") == span.context.trace_id
        ]

    wait_for(found, f"a span of {method}")
    return found()


@pytest.mark.parametrize("door", DOORS)
def test_every_call_of_a_client_is_the_parent_of_the_servers(
    agent: AgentProcess, received: Collector, spans: InMemorySpanExporter, door: str
) -> None:
    with AgentClient(agent.at(door), stream=door == "stream", traces=True, timeout_s=LIMIT_S) as client:
        client.reset(1)
        actions = [client.act(OBSERVATION, MASK) for _ in range(3)]
    (start,), acts, (end,) = own(spans, "StartEpisode"), own(spans, "Act"), own(spans, "EndEpisode")
    assert len(children_of(received, start, "StartEpisode")) == len(children_of(received, end, "EndEpisode")) == 1
    assert [span.attributes["hmarl.step"] for span in acts if span.attributes] == [action.step for action in actions]
    for act in acts:
        (below,) = children_of(received, act, "StreamAct" if door == "stream" else "Act")
        system = {each.key: each.value.string_value for each in below.attributes}["rpc.system"]
        assert act.attributes is not None
        assert system == act.attributes["rpc.system"] == ("frames" if door == "frames" else "grpc")
        assert act.start_time is not None
        assert act.end_time is not None
        assert act.start_time <= below.start_time_unix_nano <= below.end_time_unix_nano <= act.end_time
    assert received.resource["service.name"] == "hmarl-agent"
    assert received.resource["hmarl.agent"] == "agent_0"


def test_the_asyncio_client_is_traced_as_well(
    agent: AgentProcess, received: Collector, spans: InMemorySpanExporter
) -> None:
    async def play() -> None:
        async with AsyncAgentClient(agent.address, stream=True, traces=True, timeout_s=LIMIT_S) as client:
            await client.reset(1)
            await client.act(OBSERVATION, MASK)

    asyncio.run(play())
    for method, served in (("StartEpisode", "StartEpisode"), ("Act", "StreamAct"), ("EndEpisode", "EndEpisode")):
        (span,) = own(spans, method)
        assert len(children_of(received, span, served)) == 1


def test_a_programs_own_span_is_above_those_of_its_clients(
    agent: AgentProcess, received: Collector, spans: InMemorySpanExporter
) -> None:
    with AgentClient(agent.address, traces=True, timeout_s=LIMIT_S) as client:
        with trace.get_tracer("test").start_as_current_span("control step") as step:
            client.reset(1)
        (start,) = own(spans, "StartEpisode")
        assert start.parent is not None
        assert start.parent.span_id == step.get_span_context().span_id


def test_an_act_that_fails_says_so(toy_bundle: Bundle, spans: InMemorySpanExporter) -> None:
    with AgentProcess(toy_bundle.path, "agent_0") as process:
        client = AgentClient(process.address, traces=True, timeout_s=0.3)
        client.reset(1)
        process.freeze()
        with pytest.raises(StaleActionError):
            client.act(OBSERVATION, MASK)
        process.thaw()
        client.close()
    (act,) = own(spans, "Act")
    assert act.status.status_code is trace.StatusCode.ERROR


def test_the_probe_is_not_traced_and_a_sampler_of_the_environment_is_obeyed(
    toy_bundle: Bundle, received: Collector
) -> None:
    before = len(received.spans())
    with traced_agent(toy_bundle, received, OTEL_TRACES_SAMPLER="always_off") as process:
        with AgentClient(process.address, timeout_s=LIMIT_S) as client:
            client.reset(1)
            client.act(OBSERVATION, MASK)
        process.process.terminate()
        assert process.process.wait(LIMIT_S) == 0
    # Those that the other agent may still have sent have parents; the probe's would have none.
    assert all(span.parent_span_id for span in received.spans()[before:])


def test_an_agent_serves_though_no_collector_is_there(toy_bundle: Bundle, tmp_path: Path) -> None:
    with socket.socket() as silent:  # does not listen
        silent.bind(("127.0.0.1", 0))
        before = ["env", f"OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:{silent.getsockname()[1]}"]
        options = ["--traces", "--log-format", "json"]
        with AgentProcess(toy_bundle.path, "agent_0", before=before, options=options, log=tmp_path / "log") as process:
            with AgentClient(process.address, timeout_s=LIMIT_S) as client:
                client.reset(1)
                for _ in range(20):
                    assert client.act(OBSERVATION, MASK).fresh
            process.process.terminate()
            assert process.process.wait(LIMIT_S) == 0


def test_another_exporter_than_there_is_is_refused(toy_bundle: Bundle, tmp_path: Path) -> None:
    words = ["env", "OTEL_TRACES_EXPORTER=zipkin", sys.executable, "-m", "hmarl.runtime.commands.agent"]
    words += [str(toy_bundle.path), "--agent", "agent_0", "--listen", f"unix:{tmp_path}/s", "--traces"]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert ended.returncode == 2
    assert "OTEL_TRACES_EXPORTER: got 'zipkin', expected otlp" in ended.stderr


def test_requests_that_are_no_messages_end_no_traces(
    agent: AgentProcess, received: Collector, spans: InMemorySpanExporter
) -> None:
    hostile = [("traceparent", "00-zz-zz-zz"), ("tracestate", "=,=;" * 200), ("x-bin", b"\xff")]
    with grpc.insecure_channel(agent.address) as channel:
        stream = channel.stream_stream("/hmarl.agent.v1.AgentService/StreamAct")
        (reply,) = stream(iter([b"\xff\xff"]), metadata=hostile, timeout=LIMIT_S)
        assert agent_pb2.StreamActResponse.FromString(reply).error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        with pytest.raises(grpc.RpcError):
            channel.unary_unary("/hmarl.agent.v1.AgentService/Act")(b"\xff\xff", metadata=hostile, timeout=LIMIT_S)
    with AgentClient(agent.address, traces=True, timeout_s=LIMIT_S) as client:
        client.reset(1)
    (start,) = own(spans, "StartEpisode")
    assert len(children_of(received, start, "StartEpisode")) == 1


@pytest.mark.parametrize("module", ["agent", "fleet"])
def test_what_tracing_lacks_is_told_in_one_line_before_anything_is_started(module: str, toy_bundle: Bundle) -> None:
    hidden = "import sys; sys.modules['opentelemetry.sdk'] = None\n"
    other = "import os; os.environ['OTEL_TRACES_EXPORTER'] = 'zipkin'\n"
    which = ["--agent", "agent_0"] if module == "agent" else []
    words = [str(toy_bundle.path), *which, "--traces"]
    for setting, told in (
        (hidden, "pip install 'hmarl[otel]'"),
        (other, "OTEL_TRACES_EXPORTER: got 'zipkin', expected otlp (over gRPC) or none"),
    ):
        program = f"runpy.run_module('hmarl.runtime.commands.{module}', run_name='__main__')"
        code = f"{setting}import runpy, sys; sys.argv[1:] = {words!r}; {program}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        (line,) = done.stderr.splitlines()
        assert line.endswith(told)
