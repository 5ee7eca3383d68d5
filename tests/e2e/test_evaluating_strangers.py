"""hmarl-eval with a bundle or a process of a stranger: neither chooses what is imported, nor fills the memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent_process import AgentProcess
from hmarl.agent.v1 import agent_pb2, agent_pb2_grpc
from hmarl.runtime.command_line import run as run_program
from hmarl.sdk.commands.evaluate import evaluate_command
from raw_bundle import GRAPH, manifest_bytes, plain_agent, plain_graph, write_raw
from toy_bundle import write_toy_bundle


def hmarl_eval(*arguments: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hmarl.sdk.commands.evaluate", *map(str, arguments), "--episodes", "1", "--json"]
    environment = os.environ if path is None else {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def trap(kind: str, victim: Path) -> dict[str, Any]:
    """An environment that would write a file when it is made."""
    code = f"open({str(victim)!r}, 'w')"
    (victim.parent / "time-it.py").write_text("from timeit import timeit")
    interpreter = victim.parent / "interpreter"
    interpreter.write_text(f"#!/bin/sh\ntouch {victim}\n")
    interpreter.chmod(0o755)
    call = {"stmt": code, "number": 1}
    return {
        "family": {"name": "pettingzoo/timeit:timeit", "arguments": call},
        "path": {"name": "timeit:timeit", "arguments": call},
        "argument": {"name": "smac/3m", "arguments": {"entry": "timeit:timeit", **call}},
        "no identifier": {"name": "smac/3m", "arguments": {"entry": "time-it:timeit", **call}},
        "interpreter": {"name": "smac/3m", "arguments": {"python": str(interpreter)}},
    }[kind] | {"team_reward": "sum"}


@pytest.mark.parametrize("kind", ["family", "path", "argument", "no identifier", "interpreter"])
def test_a_bundle_does_not_choose_what_is_imported(tmp_path: Path, kind: str) -> None:
    victim = tmp_path / "victim"
    files = {GRAPH: plain_graph()}
    bundle = write_raw(tmp_path / "b", files, manifest_bytes(files, environment=trap(kind, victim)))
    done = hmarl_eval("--bundle", bundle, path=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "which would be imported and called here; if you trust it, say so with" in " ".join(done.stderr.split())
    assert not victim.exists()


@pytest.mark.parametrize("kind", ["family", "argument"])
def test_a_served_agent_does_not_choose_what_is_imported(tmp_path: Path, kind: str) -> None:
    victim = tmp_path / "victim"
    bundle = write_toy_bundle(tmp_path / "b", agents=("a",), plain=True, environment=trap(kind, victim))
    with AgentProcess(bundle.path, "a") as process:
        endpoints = tmp_path / "endpoints.json"
        endpoints.write_text(json.dumps({"agents": {"a": process.address}}))
        done = hmarl_eval("--endpoints", endpoints)
    assert done.returncode == 2, done.stderr
    assert not victim.exists()


class Imposter(agent_pb2_grpc.AgentServiceServicer):
    """Answers as a real agent would, but for the environment."""

    def __init__(self, info: agent_pb2.GetAgentInfoResponse) -> None:
        self._info = info

    def GetAgentInfo(
        self, request: agent_pb2.GetAgentInfoRequest, context: grpc.ServicerContext
    ) -> agent_pb2.GetAgentInfoResponse:
        return self._info


@pytest.mark.parametrize("told", ["[" * 100_000, "{}", "[]", "", '{"name": 1}'])
def test_a_served_agent_whose_environment_is_none_is_told_in_one_line(tmp_path: Path, told: str) -> None:
    bundle = write_toy_bundle(tmp_path / "b", agents=("a",), plain=True)
    with AgentProcess(bundle.path, "a") as process, grpc.insecure_channel(process.address) as channel:
        info = agent_pb2_grpc.AgentServiceStub(channel).GetAgentInfo(agent_pb2.GetAgentInfoRequest())
    info.environment_json = told
    server = grpc.server(ThreadPoolExecutor(2))
    agent_pb2_grpc.add_AgentServiceServicer_to_server(Imposter(info), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    endpoints = tmp_path / "endpoints.json"
    endpoints.write_text(json.dumps({"agents": {"a": f"127.0.0.1:{port}"}}))
    said: list[str] = []
    try:
        code = run_program(evaluate_command, ["--endpoints", str(endpoints)], said.append)
    finally:
        server.stop(None)
    assert code == 4
    (line,) = said
    assert "an agent does not say its environment: " in line


def test_whoever_names_the_environment_gets_it(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    files = {GRAPH: plain_graph()}
    bundle = write_raw(tmp_path / "b", files, manifest_bytes(files, environment=trap("family", victim)))
    done = hmarl_eval("--bundle", bundle, "--env", "pettingzoo/timeit:timeit")
    assert "got a float without possible_agents" in done.stderr
    assert victim.exists()


def test_a_graph_that_fills_the_memory_is_not_opened(tmp_path: Path) -> None:
    files = {GRAPH: b"junk"}
    environment = {"name": "mpe/simple_spread", "team_reward": "sum"}
    bundle = write_raw(tmp_path / "b", files, manifest_bytes(files, plain_agent(), environment=environment))
    done = hmarl_eval("--bundle", bundle)
    assert done.returncode == 3
    assert "agents/a.onnx: not an ONNX file" in done.stderr


def test_the_advice_can_be_typed_as_it_is(tmp_path: Path) -> None:
    files = {GRAPH: plain_graph()}
    environment = {"name": "smac/3m", "arguments": {"entry": "timeit:timeit", "stmt": "1"}, "team_reward": "sum"}
    bundle = write_raw(tmp_path / "b", files, manifest_bytes(files, environment=environment))
    advice = hmarl_eval("--bundle", bundle).stderr.strip().rpartition(" with ")[2]
    assert advice == "--set env.entry=timeit:timeit"
    assert "got a float without" in hmarl_eval("--bundle", bundle, *advice.split()).stderr
