"""What an agent and a fleet measure, read over real HTTP while real clients act."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from agent_process import AgentProcess
from hmarl.agent.v1 import agent_pb2
from hmarl.runtime.bundle import Bundle
from hmarl.sdk import AgentClient, ClientMetrics, Zero
from peers import peer
from picky import picky_bundle
from processes import LIMIT_S, children, fleet_process, threads, wait_for
from raw_frames import RawFrames
from scraping import Scraped, get, scrape, targets
from toy_bundle import write_toy_bundle

METRICS = ("--metrics", "127.0.0.1:0")
OBSERVATION, MASK = np.zeros(6, np.float32), np.ones(5, np.bool_)


@pytest.fixture(scope="module")
def agent(toy_bundle: Bundle) -> Iterator[AgentProcess]:
    with AgentProcess(toy_bundle.path, "agent_0", options=[*METRICS, "--max-streams", "1"]) as process:
        yield process


def settled(address: str, name: str, value: float, **labels: str) -> Scraped:
    """The metrics, once one of them is as it should be: a client may know of its reply before it has been counted."""
    wait_for(lambda: scrape(address).value(name, **labels) >= value, f"{name} {labels} {value}")
    return scrape(address)


def test_what_is_asked_by_frames_is_counted_alike(toy_bundle: Bundle) -> None:
    with (
        AgentProcess(toy_bundle.path, "agent_0", options=METRICS, door="frames") as process,
        RawFrames(process.address) as client,
        RawFrames(process.address) as rude,
    ):
        address = process.ready["metrics"]
        session = client.start()
        for step in (0, 1, 4, 4, 2):
            client.act(session, step)
        client.act("nosuch", 2)
        client.ask(check_health={})
        rude.socket.sendall(b"\x01\xff")
        assert rude.ended
        time.sleep(2.5)  # the agent acts in a session of its own once a second
        got = settled(address, "hmarl_agent_requests_total", 1, method="Connection", code="INVALID_ARGUMENT")
        for code, count in (("OK", 4), ("NOT_FOUND", 1), ("FAILED_PRECONDITION", 1)):
            assert got.value("hmarl_agent_requests_total", method="Act", code=code) == count
        for method in ("StartEpisode", "Check"):
            assert got.value("hmarl_agent_requests_total", method=method, code="OK") == 1
        assert got.value("hmarl_agent_act_seconds_count", method="Act") == 4
        assert (got.value("hmarl_agent_missed_steps_total"), got.value("hmarl_agent_replays_total")) == (2, 1)
        now = [got.value(f"hmarl_agent_{name}") for name in ("open_sessions", "open_streams", "serving")]
        assert now == [1, 1, 1]


def test_what_clients_did_is_counted_and_what_the_probe_did_is_not(toy_bundle: Bundle) -> None:
    with AgentProcess(toy_bundle.path, "agent_0", options=METRICS) as process, peer(process.address) as client:
        address = process.ready["metrics"]
        session = client.start()
        for step in (0, 1, 4, 4):
            client.act(session, step)
        for wrong in ("nosuch", session):
            with pytest.raises(grpc.RpcError):
                client.act(wrong, 2)
        assert client.raw("Act", b"\xff\xff") is grpc.StatusCode.INVALID_ARGUMENT
        assert client.healthy()
        time.sleep(2.5)  # the agent acts in a session of its own once a second
        got = scrape(address)
        acts = {
            labels["code"]: labels for labels in got.labels("hmarl_agent_requests_total") if labels["method"] == "Act"
        }
        counted = {code: got.value("hmarl_agent_requests_total", **labels) for code, labels in acts.items()}
        assert counted == {"OK": 4, "NOT_FOUND": 1, "FAILED_PRECONDITION": 1, "INVALID_ARGUMENT": 1}
        assert got.value("hmarl_agent_requests_total", method="StartEpisode", code="OK") == 1
        assert got.value("hmarl_agent_requests_total", method="Check", code="OK") == 1
        assert got.value("hmarl_agent_act_seconds_count", method="Act") == 4
        assert got.value("hmarl_agent_policy_seconds_count") == 3
        in_policy, in_server = (
            got.value("hmarl_agent_policy_seconds_sum"),
            got.value("hmarl_agent_act_seconds_sum", method="Act"),
        )
        assert 0 < in_policy < in_server < LIMIT_S
        assert (got.value("hmarl_agent_missed_steps_total"), got.value("hmarl_agent_replays_total")) == (2, 1)
        assert (got.value("hmarl_agent_open_sessions"), got.value("hmarl_agent_serving")) == (1, 1)
        (bundle,) = got.labels("hmarl_agent_bundle_info")
        assert bundle == {
            "agent_id": "agent_0",
            "algorithm": "toy",
            "bundle": "toy",
            "provider": "CPUExecutionProvider",
            "sha256": toy_bundle.sha256,
        }


def test_streamed_acts_are_counted_one_by_one_and_refused_streams_as_well(agent: AgentProcess) -> None:
    address = agent.ready["metrics"]
    with AgentClient(agent.address, stream=True, timeout_s=LIMIT_S) as client:
        client.reset(1)
        for _ in range(5):
            assert client.act(OBSERVATION, MASK).fresh
        got = settled(address, "hmarl_agent_requests_total", 5, method="StreamAct", code="OK")
        assert got.value("hmarl_agent_act_seconds_count", method="StreamAct") == 5
        assert got.value("hmarl_agent_open_streams") == 1
        with peer(agent.address) as other:
            session = other.start()
            message = agent_pb2.StreamActRequest(act=other.request(session, 0))
            with pytest.raises(grpc.RpcError):  # there is one place, and it is in use
                list(other.stub.StreamAct(iter([message]), timeout=LIMIT_S))
    got = settled(address, "hmarl_agent_rejected_peers_total", 1, reason="limit")
    assert got.value("hmarl_agent_requests_total", method="StreamAct", code="RESOURCE_EXHAUSTED") == 1
    assert got.value("hmarl_agent_requests_total", method="StreamAct", code="OK") == 5


def test_an_error_in_a_stream_is_counted_by_its_code(agent: AgentProcess) -> None:
    with peer(agent.address) as client:
        wrong = agent_pb2.StreamActRequest(act=client.request("nosuch", 0))
        (reply,) = client.stub.StreamAct(iter([wrong]), timeout=LIMIT_S)
        assert reply.error.code == grpc.StatusCode.NOT_FOUND.value[0]
    settled(agent.ready["metrics"], "hmarl_agent_requests_total", 1, method="StreamAct", code="NOT_FOUND")


def test_silent_and_slow_readers_neither_pile_up_nor_keep_others_from_reading(agent: AgentProcess) -> None:
    host, _, port = agent.ready["metrics"].rpartition(":")
    before = threads(agent.process.pid)
    with contextlib.ExitStack() as silent:
        for number in range(100):
            connection = silent.enter_context(socket.create_connection((host, int(port)), timeout=LIMIT_S))
            if number % 2:
                connection.sendall(b"GET /metrics HTT")
        assert scrape(agent.ready["metrics"]).value("hmarl_agent_serving") == 1
        assert threads(agent.process.pid) <= before + 20
    wait_for(lambda: threads(agent.process.pid) <= before + 2, "the end of connections that are closed")


def test_other_pages_are_not_there(agent: AgentProcess) -> None:
    with pytest.raises(OSError, match="404"):
        get(agent.ready["metrics"], "/../../etc/passwd")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("9464", "--metrics: got '9464', expected HOST:PORT"),
        ("unix:/tmp/m", "--metrics: got 'unix:/tmp/m', expected HOST:PORT"),
    ],
)
@pytest.mark.parametrize("command", ["agent", "fleet"])
def test_where_metrics_may_not_be_read_is_refused(command: str, address: str, said: str, toy_bundle: Bundle) -> None:
    words = [sys.executable, "-m", f"hmarl.runtime.commands.{command}", str(toy_bundle.path), "--metrics", address]
    words += ["--agent", "agent_0", "--listen", "127.0.0.1:0"] if command == "agent" else []
    ended = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_an_address_that_is_taken_is_named(agent: AgentProcess, toy_bundle: Bundle) -> None:
    taken = agent.ready["metrics"]
    words = [sys.executable, "-m", "hmarl.runtime.commands.agent", str(toy_bundle.path), "--agent", "agent_0"]
    words += ["--listen", "127.0.0.1:0", "--metrics", taken]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert ended.returncode == 4
    assert f"cannot listen on {taken}" in ended.stderr


@pytest.mark.parametrize(
    ("package", "option"), [("prometheus_client", "--metrics=127.0.0.1:0"), ("opentelemetry", "--traces")]
)
def test_a_missing_extra_ends_an_agent_with_its_name(toy_bundle: Bundle, package: str, option: str) -> None:
    program = f"import sys; sys.modules['{package}'] = None\nfrom hmarl.runtime.commands.agent import main; main()"
    words = [
        sys.executable,
        "-c",
        program,
        str(toy_bundle.path),
        "--agent",
        "agent_0",
        "--listen",
        "127.0.0.1:0",
        option,
    ]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert ended.returncode == 2
    assert "pip install 'hmarl[" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_fleet_lists_its_agents_and_counts_their_restarts(toy_bundle: Bundle, tmp_path: Path) -> None:
    with fleet_process(toy_bundle, tmp_path / "endpoints.json", *METRICS) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())["metrics"]
        assert told == json.loads((tmp_path / "endpoints.json").read_text())["metrics"]
        listed = {entry["labels"].get("agent"): entry["targets"][0] for entry in targets(told["fleet"])}
        assert listed == {None: told["fleet"], **told["agents"]}
        assert {entry["labels"]["fleet"] for entry in targets(told["fleet"])} == {told["fleet"]}
        assert told["scheme"] == "http"
        assert {
            name: scrape(where).labels("hmarl_agent_bundle_info")[0]["agent_id"]
            for name, where in told["agents"].items()
        } == {name: name for name in toy_bundle.agent_ids}
        victim = next(
            pid for pid in children(process.pid) if b"--agent=agent_1" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        os.kill(victim, signal.SIGKILL)
        got = settled(told["fleet"], "hmarl_fleet_restarts_total", 1, agent="agent_1", reason="exited")
        assert got.value("hmarl_fleet_restarts_total", agent="agent_0", reason="exited") == 0
        got = settled(told["fleet"], "hmarl_fleet_agent_serving", 1, agent="agent_1")
        assert got.value("hmarl_fleet_agents") == 2
        assert got.labels("hmarl_fleet_bundle_info") == [{"sha256": toy_bundle.sha256}]
        assert scrape(told["agents"]["agent_1"]).value("hmarl_agent_serving") == 1  # at the same address


def test_a_programs_clients_are_told_by_reason(tmp_path: Path) -> None:
    bundle = picky_bundle(tmp_path / "bundle")
    registry = CollectorRegistry()
    with (
        AgentProcess(bundle.path, "agent_0", log=tmp_path / "log") as process,
        AgentClient(process.address, fallback=Zero(), timeout_s=1.0, connect_timeout_s=LIMIT_S) as client,
    ):
        ClientMetrics(client, registry=registry)
        client.reset(1)
        assert client.act(np.array([1], np.float32)).fresh
        assert not client.act(np.array([9], np.float32)).fresh  # there is no such place
        process.freeze()
        assert not client.act(np.array([1], np.float32)).fresh
        process.thaw()
        got = Scraped(generate_latest(registry).decode())
    name = {"agent": "agent_0"}
    assert got.value("hmarl_client_fallbacks_total", reason="INTERNAL", **name) == 1
    assert got.value("hmarl_client_fallbacks_total", reason="DEADLINE_EXCEEDED", **name) == 1
    assert (got.value("hmarl_client_acts_total", **name), got.value("hmarl_client_fresh_acts_total", **name)) == (3, 1)
    assert got.value("hmarl_client_act_seconds_count", **name) == 3
    assert got.value("hmarl_client_act_seconds_bucket", le="0.5", **name) == 2


def test_reloads_are_counted_by_agents_and_by_the_team(toy_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "endpoints.json"
    retrained = write_toy_bundle(tmp_path / "retrained", sizes=(9,))
    words = [sys.executable, "-m", "hmarl.runtime.commands.fleet", "reload", str(out)]
    with fleet_process(toy_bundle, out, *METRICS) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())["metrics"]
        done = subprocess.run([*words, str(tmp_path / "nothing")], capture_output=True, timeout=LIMIT_S, check=False)
        assert done.returncode == 3
        subprocess.run([*words, str(retrained.path)], capture_output=True, timeout=2 * LIMIT_S, check=True)
        assert json.loads(out.read_text())["metrics"] == told
        team = scrape(told["fleet"])
        assert team.value("hmarl_fleet_reloads_total", outcome="reloaded") == 1
        assert team.value("hmarl_fleet_reloads_total", outcome="refused") == 1
        assert team.labels("hmarl_fleet_bundle_info") == [{"sha256": retrained.sha256}]
        for address in told["agents"].values():
            got = scrape(address)
            assert got.value("hmarl_agent_reloads_total", outcome="reloaded") == 1
            assert [each["sha256"] for each in got.labels("hmarl_agent_bundle_info")] == [retrained.sha256]
