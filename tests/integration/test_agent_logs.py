"""Logs as JSON: every line an object, found by the caller's request id, and without anything secret."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from agent_process import DOORS, AgentProcess
from hmarl.agent.v1 import agent_pb2, agent_pb2_grpc
from hmarl.runtime.bundle import Bundle
from hmarl.sdk import AgentClient, AsyncAgentClient, Zero, request_id
from peers import peer
from picky import picky_bundle
from processes import LIMIT_S, fleet_process, wait_for

SECRET = "Bearer c2VjcmV0LXRva2Vu"
NOWHERE = np.array([9], np.float32)  # that the picky policy fails on


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    bundle = picky_bundle(tmp_path / "bundle")
    options = ["--log-format", "json", "--log-level", "debug"]
    with AgentProcess(bundle.path, "agent_0", options=options, log=tmp_path / "log", door="both") as process:
        yield process


def lines(log: str) -> list[dict[str, Any]]:
    """Every line, all of which are objects."""
    return [json.loads(line) for line in log.splitlines()]


def found(agent: AgentProcess, name: str) -> dict[str, Any]:
    """The line that a request left."""
    wait_for(lambda: any(line.get("request_id") == name for line in lines(agent.log)), f"a line of {name}")
    return next(line for line in lines(agent.log) if line.get("request_id") == name)


@pytest.mark.parametrize("door", DOORS)
def test_a_failure_is_found_by_the_id_of_its_own_request(agent: AgentProcess, door: str) -> None:
    with AgentClient(agent.at(door), stream=door == "stream", fallback=Zero(), timeout_s=LIMIT_S) as client:
        client.reset(1)
        with request_id("before"):
            assert client.act(np.array([1], np.float32)).fresh
        with request_id("mission-7/step-2"):
            assert not client.act(NOWHERE).fresh
    line = found(agent, "mission-7/step-2")
    assert (line["level"], line["logger"], line["agent"]) == ("error", "hmarl.agent", "agent_0")
    assert "internal error" in line["message"]
    assert "InferenceError" in line["error"]


@pytest.mark.parametrize("door", ["unary", "frames"])
def test_the_asyncio_client_carries_ids_as_well(agent: AgentProcess, door: str) -> None:
    async def play() -> None:
        async with AsyncAgentClient(agent.at(door), fallback=Zero(), timeout_s=LIMIT_S) as client:
            await client.reset(1)
            with request_id("from-asyncio"):
                assert not (await client.act(NOWHERE)).fresh

    asyncio.run(play())
    assert "internal error" in found(agent, "from-asyncio")["message"]


def test_no_line_holds_a_secret_or_a_session(agent: AgentProcess) -> None:
    metadata = [("authorization", SECRET), ("x-request-id", "one"), ("cookie", SECRET)]
    with peer(agent.address) as client:
        session = client.start()
        request = agent_pb2.ActRequest(session_id=session, observation=client.request(session, 0).observation)
        with pytest.raises(grpc.RpcError):
            client.stub.Act(request, metadata=metadata, timeout=LIMIT_S)
        for method in ("Act", "StartEpisode", "EndEpisode"):
            with pytest.raises(grpc.RpcError):
                client.channel.unary_unary(f"/hmarl.agent.v1.AgentService/{method}")(
                    b"\xff\xff", metadata=metadata, timeout=LIMIT_S
                )
    assert found(agent, "one")["message"].startswith("refused: request: got 2 bytes")
    assert SECRET not in agent.log
    assert "c2VjcmV0" not in agent.log
    assert session not in agent.log


@pytest.mark.parametrize("command", ["agent", "fleet"])
def test_what_ends_a_program_is_an_object_too(command: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", f"hmarl.runtime.commands.{command}", str(tmp_path / "nothing"), "--log-format=json"]
    words += ["--agent", "agent_0"] if command == "agent" else []
    ended = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert ended.returncode == 3
    (line,) = lines(ended.stderr)
    assert line["level"] == "error"
    assert str(tmp_path / "nothing") in line["message"]


def test_a_fleets_members_log_as_it_does(toy_bundle: Bundle, tmp_path: Path) -> None:
    options = ("--log-format", "json", "--log-level", "info")
    with fleet_process(toy_bundle, tmp_path / "endpoints.json", *options) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.terminate()
        _, said = process.communicate(timeout=LIMIT_S)
    told = lines(said)
    assert {line.get("agent") for line in told} == {None, *toy_bundle.agent_ids}
    assert any(line["message"] == "stopped" and "agent" not in line for line in told)


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_peer_writes_lines_of_its_own(toy_bundle: Bundle, tmp_path: Path, form: str) -> None:
    """OpenTelemetry says of each trace state what is wrong with it, in the peer's own words."""
    options = ["--traces", "--log-format", form]
    state = "a=b\n2026-01-01 00:00:00,000 ERROR hmarl-agent agent_0: forged"
    hostile = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01", "tracestate": state}
    before = ["env", "OTEL_TRACES_EXPORTER=none"]
    log = tmp_path / "log"
    with AgentProcess(toy_bundle.path, "agent_0", before=before, options=options, log=log) as agent:
        with grpc.insecure_channel(agent.address) as channel:
            stub = agent_pb2_grpc.AgentServiceStub(channel)
            long = {**hostile, "tracestate": ",".join(f"a{number}={'x' * 200}" for number in range(60))}
            requests = [agent_pb2.StreamActRequest(metadata=each) for each in (hostile, long) for _ in range(100)]
            assert len(list(stub.StreamAct(iter(requests), timeout=20))) == 200
            twice = (("traceparent", hostile["traceparent"]), ("tracestate", ",".join(["a=b", "a=c", "no member"] * 9)))
            with pytest.raises(grpc.RpcError):
                stub.Act(agent_pb2.ActRequest(session_id="x"), timeout=20, metadata=twice)
        time.sleep(0.5)  # requests are told ten times a second
        agent.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "stopped" in agent.log, "the last line")
        said = agent.log
    assert "forged" not in said
    assert "Duplicate" not in said
    assert len(said.splitlines()) < 20


def test_a_message_is_one_line_whatever_it_holds() -> None:
    program = (
        "from hmarl.runtime.commands import _output\n"
        "import logging\n"
        "_output.start_logging('info', 'hmarl-x')\n"
        "logging.getLogger('any.package').warning('from %s', 'a\\nb\\x1b[2J\\u2028ü')\n"
        "_output.flush(5.0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.endswith(" WARNING hmarl-x: from a\\nb\\x1b[2J\\u2028ü\n")
    assert done.stderr.count("\n") == 1
