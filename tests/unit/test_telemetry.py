"""What watches a server: told what it answers, counted, written down; nothing where it is not asked for."""

from __future__ import annotations

import gc
import importlib
import json
import logging
import sys
from collections.abc import Sequence

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.status import Code
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.commands._watching import targets
from hmarl.runtime.json_lines import JsonLines
from hmarl.runtime.metrics import AgentMetrics, FleetMetrics
from hmarl.runtime.request_ids import current, request_of
from hmarl.runtime.session import PolicySession
from hmarl.runtime.telemetry import RELOAD_REFUSED, Act, Answer, Observer, Telemetry
from hmarl.sdk import ClientMetrics, LocalAgent, MissingExtraError, UsageError, request_id
from hmarl.sdk.clients import call_metadata
from hmarl.sdk.clients.agent import AgentStatistics
from scraping import Scraped

OK = Code.OK


def answer(method: str, code: Code = OK, took_s: float = 0.0) -> Answer:
    return Answer(method, code, 1.0, 1.0 + took_s)


def read(metrics: AgentMetrics | FleetMetrics) -> Scraped:
    return Scraped(metrics.text().decode())


# --- nothing is watched unless it is asked for ------------------------------------------------------------------------


def test_without_an_observer_every_function_comes_back_as_it_is() -> None:
    telemetry = Telemetry()

    def reply(body: bytes, context: grpc.ServicerContext) -> None:
        raise AssertionError

    handler = grpc.stream_unary_rpc_method_handler(lambda bodies, context: b"")
    assert telemetry.acting(PolicySession.act) is PolicySession.act
    assert telemetry.streaming(reply) is reply  # type: ignore[arg-type]
    assert telemetry.methods({"Act": handler})["Act"] is handler


class Broken(Observer):
    """One that cannot cope with what it is told."""

    def answered(self, answers: Sequence[Answer]) -> None:
        raise ValueError


def test_an_observer_that_fails_keeps_no_other_from_being_told(caplog: pytest.LogCaptureFixture) -> None:
    metrics = AgentMetrics()
    telemetry = Telemetry(Broken(), metrics)
    reply = telemetry.streaming(lambda body, context: agent_pb2.StreamActResponse())
    for _ in range(2):
        reply(b"", None)  # type: ignore[arg-type]
        telemetry.flush()
    assert read(metrics).value("hmarl_agent_requests_total", method="StreamAct", code="OK") == 2
    assert len(caplog.records) == 1


def test_a_request_of_a_stream_that_is_no_message_has_no_metadata() -> None:
    assert Answer("StreamAct", OK, 0.0, 0.0, b"\xff\xff").metadata() == ()
    with_id = agent_pb2.StreamActRequest(metadata={"x-request-id": "one"}).SerializeToString()
    assert Answer("StreamAct", OK, 0.0, 0.0, with_id).metadata() == [("x-request-id", "one")]


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_acts_are_counted_by_code_and_timed_when_they_succeed() -> None:
    metrics = AgentMetrics()
    metrics.answered([answer("Act", took_s=0.00015)])
    metrics.answered([answer("Act", took_s=0.25)])
    metrics.answered([answer("Act", Code.OUT_OF_RANGE, took_s=0.25)])
    metrics.answered([answer("StartEpisode", took_s=0.25)])
    got = read(metrics)
    assert got.value("hmarl_agent_requests_total", method="Act", code="OK") == 2
    assert got.value("hmarl_agent_requests_total", method="Act", code="OUT_OF_RANGE") == 1
    assert got.value("hmarl_agent_requests_total", method="StartEpisode", code="OK") == 1
    assert got.value("hmarl_agent_act_seconds_count", method="Act") == 2
    assert got.value("hmarl_agent_act_seconds_sum", method="Act") == pytest.approx(0.25015)
    assert got.value("hmarl_agent_act_seconds_bucket", method="Act", le="0.0001") == 0
    assert got.value("hmarl_agent_act_seconds_bucket", method="Act", le="0.0002") == 1
    assert got.value("hmarl_agent_act_seconds_bucket", method="Act", le="0.5") == 2


def test_replays_cost_no_policy_time_and_their_gaps_are_not_counted_twice() -> None:
    metrics = AgentMetrics()
    metrics.acted([Act(0.001, 3, False), Act(0.5, 3, True)])
    got = read(metrics)
    assert got.value("hmarl_agent_policy_seconds_count") == 1
    assert got.value("hmarl_agent_policy_seconds_sum") == 0.001
    assert got.value("hmarl_agent_missed_steps_total") == 3
    assert got.value("hmarl_agent_replays_total") == 1


@pytest.mark.parametrize(
    ("code", "reason"),
    [("UNAUTHENTICATED", "unauthenticated"), ("PERMISSION_DENIED", "forbidden"), ("RESOURCE_EXHAUSTED", "limit")],
)
def test_calls_that_are_turned_away_are_counted_by_reason(code: str, reason: str) -> None:
    metrics = AgentMetrics()
    assert read(metrics).value("hmarl_agent_rejected_peers_total", reason=reason) == 0
    metrics.answered([answer("StartEpisode", Code[code])])
    assert read(metrics).value("hmarl_agent_rejected_peers_total", reason=reason) == 1


def test_reloads_certificates_and_lost_lines_are_told() -> None:
    metrics = AgentMetrics(lambda: 7)
    assert not read(metrics).labels("hmarl_agent_certificate_expiry_timestamp_seconds")
    Telemetry(metrics).reloaded(RELOAD_REFUSED)
    metrics.watch(None, lambda: 1.9e9)  # type: ignore[arg-type]
    got = read(metrics)
    assert got.value("hmarl_agent_reloads_total", outcome="refused") == 1
    assert got.value("hmarl_agent_log_lines_dropped_total") == 7
    assert got.value("hmarl_agent_certificate_expiry_timestamp_seconds") == 1.9e9
    assert got.value("hmarl_agent_serving") == 0


def test_prometheus_finds_agents_by_the_host_that_it_asked() -> None:
    agents = {"a": "0.0.0.0:9465", "b": "127.0.0.1:9466", "c": "0.0.0.0:0"}
    assert targets("0.0.0.0:9464", agents, "robot7", "http") == [
        {"targets": ["robot7:9464"], "labels": {"fleet": "robot7:9464"}},
        {"targets": ["robot7:9465"], "labels": {"fleet": "robot7:9464", "agent": "a"}},
        {"targets": ["127.0.0.1:9466"], "labels": {"fleet": "robot7:9464", "agent": "b"}},
    ]
    over_tls = targets("0.0.0.0:9464", {}, "robot7", "https")
    assert over_tls == [{"targets": ["robot7:9464"], "labels": {"fleet": "robot7:9464", "__scheme__": "https"}}]


# --- clients ----------------------------------------------------------------------------------------------------------


def test_a_programs_counters_never_fall_when_clients_go(toy_bundle: Bundle) -> None:
    registry = CollectorRegistry()
    metrics = ClientMetrics(registry=registry)

    def act(times: int) -> None:
        with LocalAgent(toy_bundle, "agent_0") as agent:
            metrics.add(agent)
            metrics.add(agent)
            agent.reset(1)
            for _ in range(times):
                agent.act(np.zeros(6, np.float32), np.ones(5, np.bool_))

    act(3)
    act(2)
    gc.collect()
    got = Scraped(generate_latest(registry).decode())
    assert got.value("hmarl_client_acts_total", agent="agent_0") == 5
    assert got.value("hmarl_client_fresh_acts_total", agent="agent_0") == 5
    assert got.value("hmarl_client_act_seconds_count", agent="agent_0") == 5
    assert got.value("hmarl_client_act_seconds_bucket", agent="agent_0", le="+Inf") == 5


def test_latencies_are_counted_up_to_their_bound_and_added_up() -> None:
    first, second = AgentStatistics(), AgentStatistics(acts=1, fallback_reasons={"UNAVAILABLE": 2})  # type: ignore[arg-type]
    assert [first.took(each) for each in (1e-5, 1.1e-5, 0.3, 7.0)] == [1e-5, 1.1e-5, 0.3, 7.0]
    second.took(0.3)
    first.add(second)
    assert first.latency_counts == [1, 1, *[0] * 12, 2, 0, 1]
    assert first.latency_sum_s == pytest.approx(7.600021)
    assert (first.acts, first.fallback_reasons) == (1, {"UNAVAILABLE": 2})


# --- logs -------------------------------------------------------------------------------------------------------------


def record(message: str, error: BaseException | None = None) -> logging.LogRecord:
    info = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord("hmarl.agent", logging.WARNING, "", 0, message, None, info)


def test_a_record_is_one_line_of_json_whatever_it_says() -> None:
    told = record("two\nlines \x1b[2J é", ValueError("a\nb"))
    told.created = 1.5
    line = JsonLines("agent_0").format(told)
    assert "\n" not in line
    assert line.isascii()
    got = json.loads(line)
    assert got.pop("error").endswith("ValueError: a\nb")
    assert got == {
        "time": "1970-01-01T00:00:01.500Z",
        "level": "warning",
        "logger": "hmarl.agent",
        "agent": "agent_0",
        "message": "two\nlines \x1b[2J é",
    }


def test_what_a_peer_may_write_into_a_line_is_bounded() -> None:
    with request_of([("x-request-id", "r" * 10_000)]):
        got = json.loads(JsonLines().format(record("m" * 10**6)))
    assert (len(got["request_id"]), len(got["message"])) == (128, 16384)


def test_the_id_of_a_request_holds_for_its_block_alone() -> None:
    with request_of([("user-agent", "x")], [("x-request-id", b"binary"), ("x-request-id", "outer")]):
        with request_of([("x-request-id", "inner")], [("x-request-id", "outer")]):
            assert current() == "inner"
        assert current() == "outer"
    assert current() is None


@pytest.mark.parametrize("name", ["", "a\nb", "é", "x" * 129, 3])
def test_an_id_that_no_metadata_can_carry_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="request_id: got"), request_id(name):
        pass


def test_calls_carry_an_id_within_its_block() -> None:
    with request_id("one"), call_metadata.call_metadata([("traceparent", "00-0-0-00")]):
        with request_id("two"):
            assert dict(call_metadata.current()) == {"x-request-id": "two", "traceparent": "00-0-0-00"}
        assert dict(call_metadata.current())["x-request-id"] == "one"
    assert call_metadata.current() == ()


@pytest.mark.parametrize(
    ("extra", "package", "module"),
    [("metrics", "prometheus_client", "hmarl.runtime.metrics"), ("otel", "opentelemetry.sdk", "hmarl.runtime.tracing")],
)
def test_a_missing_extra_is_named(extra: str, package: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in sys.modules if each == module or each.startswith(package)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # type: ignore[arg-type]
    with pytest.raises(MissingExtraError, match=rf"pip install 'hmarl\[{extra}\]'"):
        importlib.import_module(module)
