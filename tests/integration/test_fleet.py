"""hmarl-fleet and hmarl-verify as real processes."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hmarl.agent.v1 import agent_pb2, agent_pb2_grpc
from hmarl.runtime import fleet_member
from hmarl.runtime.bundle import Bundle, load_bundle, write_bundle
from hmarl.runtime.cores import available_cores
from hmarl.runtime.fleet import Fleet
from hmarl.runtime.fleet_member import FleetError
from hmarl.runtime.session import Policy
from hmarl.runtime.verify import random_feeds, verify_agent
from processes import LIMIT_S, alive, children, fleet_process, wait_for
from toy_bundle import toy_agent, toy_graph, toy_manifest, write_toy_bundle


def agent_id(address: str) -> str:
    """Ask an agent who it is, waiting for it to serve."""
    with grpc.insecure_channel(address) as channel:
        info = agent_pb2_grpc.AgentServiceStub(channel).GetAgentInfo(
            agent_pb2.GetAgentInfoRequest(), wait_for_ready=True, timeout=LIMIT_S
        )
        return str(info.agent_id)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_fleet_serves_all_agents_and_one_signal_stops_all(toy_bundle: Bundle, tmp_path: Path, number: int) -> None:
    out = tmp_path / "endpoints.json"
    with fleet_process(toy_bundle, out) as process:
        assert process.stdout is not None
        printed = json.loads(process.stdout.readline())
        endpoints = json.loads(out.read_text())
        assert printed == endpoints
        assert endpoints["bundle_sha256"] == toy_bundle.sha256
        assert {name: agent_id(address) for name, address in endpoints["agents"].items()} == {
            name: name for name in toy_bundle.agent_ids
        }
        members = children(process.pid)
        assert len(members) == 2
        process.send_signal(number)
        assert process.wait(LIMIT_S) == 0
        assert not any(alive(pid) for pid in members)
        assert not out.exists()


def test_a_killed_member_comes_back_on_the_same_address(toy_bundle: Bundle) -> None:
    with Fleet(toy_bundle) as fleet:
        before, address = fleet.process_ids["agent_0"], fleet.endpoints["agent_0"]
        other = fleet.process_ids["agent_1"]
        for _ in range(2):
            os.kill(fleet.process_ids["agent_0"], signal.SIGKILL)
            wait_for(lambda: not fleet.serving, "noticing the crash")
            wait_for(lambda: fleet.serving, "the restart")
            assert fleet.endpoints["agent_0"] == address
            assert agent_id(address) == "agent_0"
        assert fleet.process_ids["agent_0"] != before
        assert fleet.process_ids["agent_1"] == other
        members = list(fleet.process_ids.values())
    assert not any(alive(pid) for pid in members)


def test_pinned_members_take_the_cores_in_turn(toy_bundle: Bundle) -> None:
    cores = available_cores()
    with Fleet(toy_bundle, pin=True) as fleet:
        for index, pid in enumerate(fleet.process_ids.values()):
            tasks = list(Path(f"/proc/{pid}/task").iterdir())
            assert len(tasks) > 1
            for task in tasks:
                assert os.sched_getaffinity(int(task.name)) == {cores[index % len(cores)]}
    assert available_cores() == cores, "the supervisor itself is free"


def test_a_fleet_on_unix_sockets(toy_bundle: Bundle, tmp_path: Path) -> None:
    with Fleet(toy_bundle, socket_dir=tmp_path) as fleet:
        assert fleet.endpoints["agent_1"] == f"unix:{tmp_path}/1-agent_1.sock"
        os.kill(fleet.process_ids["agent_1"], signal.SIGKILL)
        wait_for(lambda: not fleet.serving, "noticing the crash")
        wait_for(lambda: fleet.serving, "the restart")
        assert agent_id(fleet.endpoints["agent_1"]) == "agent_1"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="parent-death signals are Linux's")
def test_members_die_with_a_supervisor_that_is_killed(toy_bundle: Bundle, tmp_path: Path) -> None:
    with fleet_process(toy_bundle, tmp_path / "endpoints.json") as process:
        assert process.stdout is not None
        process.stdout.readline()
        members = children(process.pid)
        assert len(members) == 2
        process.kill()
        wait_for(lambda: not any(alive(pid) for pid in members), "the end of the members")


def test_an_agent_that_its_bundle_keeps_from_starting_ends_the_fleet_with_code_3(tmp_path: Path) -> None:
    agents = [
        toy_agent(name, observation_size=6, action="discrete", sizes=(8,), plain=False) for name in ("good", "bad")
    ]
    files = {"agents/good.onnx": toy_graph(), "agents/bad.onnx": b"no graph"}
    bundle = write_bundle(tmp_path / "b", toy_manifest(agents), files)
    with fleet_process(bundle, tmp_path / "endpoints.json") as process:
        assert process.wait(LIMIT_S) == 3
        assert process.stderr is not None
        message = process.stderr.read()
    assert "agent 'bad' ended with exit code 3, which starting it again cannot help" in message
    assert "agents/bad.onnx: not an ONNX file" in message
    assert children(process.pid) == []
    assert not (tmp_path / "endpoints.json").exists()


def test_restarts_are_limited(toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_member, "MAX_FAILURES", 2)
    with Fleet(toy_bundle) as fleet:
        for _ in range(2):
            os.kill(fleet.process_ids["agent_0"], signal.SIGKILL)
            wait_for(lambda: not fleet.serving, "noticing the crash")
            wait_for(lambda: fleet.serving or fleet._failed.is_set(), "the restart or the end")
        with pytest.raises(FleetError, match="agent 'agent_0' keeps failing: exit code -9, 2 failures in a row"):
            fleet.check()
        assert fleet.process_ids == {}


def test_a_damaged_bundle_starts_nothing(toy_bundle: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(toy_bundle.path, tmp_path / "b"))
    (copy / "README.md").write_text("changed")
    done = subprocess.run(
        [sys.executable, "-m", "hmarl.runtime.commands.fleet", str(copy)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "'README.md' has SHA-256" in done.stderr) == (3, True)


def test_health_of_every_member_is_serving(toy_bundle: Bundle) -> None:
    with Fleet(toy_bundle) as fleet:
        for address in fleet.endpoints.values():
            with grpc.insecure_channel(address) as channel:
                check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=LIMIT_S)
                assert check.status == health_pb2.HealthCheckResponse.SERVING


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def parity_files(policy: Policy, change: dict[str, np.ndarray] | None = None) -> dict[str, bytes]:
    feeds = random_feeds(policy.agent, 40, np.random.default_rng(1))
    outputs = {**policy.run_batch(feeds), **(change or {})}
    files = {f"parity/agent_0.{name}.npy": npy(array) for name, array in feeds.items()}
    return files | {f"parity/agent_0.expected.{name}.npy": npy(array) for name, array in outputs.items()}


def run_verify(bundle: Bundle) -> tuple[int, dict[str, object], str]:
    command = [sys.executable, "-m", "hmarl.runtime.commands.verify", str(bundle.path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_verify_accepts_a_good_bundle_and_repeats_parity(toy_bundle: Bundle, tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "b", more_files=parity_files(Policy(toy_bundle, "agent_0")))
    code, document, _ = run_verify(bundle)
    assert (code, document["ok"]) == (0, True)
    first, second = document["agents"]  # type: ignore[misc]
    assert (first["parity_samples"], first["near_ties"], second["parity_samples"]) == (40, 0, 0)


@pytest.mark.parametrize("name", ["action", "instruction", "action_logits", "next_state"])
def test_verify_finds_outputs_that_are_off(toy_bundle: Bundle, tmp_path: Path, name: str) -> None:
    policy = Policy(toy_bundle, "agent_0")
    outputs = policy.run_batch(random_feeds(policy.agent, 40, np.random.default_rng(1)))
    changed = outputs[name].copy()
    changed[7] = (changed[7] + 1) % 4 if changed.dtype == np.int64 else changed[7] + 2e-5
    bundle = write_toy_bundle(tmp_path / "b", more_files=parity_files(policy, {name: changed}))
    code, document, message = run_verify(bundle)
    assert (code, document["ok"]) == (3, False)
    assert f"parity with the trainer: '{name}' differs" in message


def test_verify_lets_a_near_tie_pass_and_counts_it(toy_bundle: Bundle, tmp_path: Path) -> None:
    policy = Policy(toy_bundle, "agent_0")
    feeds = random_feeds(policy.agent, 40, np.random.default_rng(1))
    outputs = policy.run_batch(feeds)
    # As if torch had computed scores of row 7 whose best two, noise and all, are equal, and had taken the other one.
    noise = -np.log(-np.log(feeds["action_noise"][7].astype(np.float64)))
    legal = np.flatnonzero(feeds["action_mask"][7])
    scores = outputs["action_logits"][7] + noise
    best = int(outputs["action"][7])
    second = max((index for index in legal.tolist() if index != best), key=lambda index: scores[index])
    logits, actions = outputs["action_logits"].copy(), outputs["action"].copy()
    logits[7, second] = scores[best] - noise[second] - 1e-6
    actions[7] = second
    change = {"action_logits": logits, "action": actions}
    bundle = write_toy_bundle(tmp_path / "b", more_files=parity_files(policy, change))
    report = verify_agent(load_bundle(bundle.path), "agent_0")
    assert (report.problems, report.near_ties) == ([], 1)


def test_verify_refuses_pickles(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    bundle = write_toy_bundle(tmp_path / "b", more_files={"parity/agent_0.observation.npy": buffer.getvalue()})
    assert any("not a plain .npy file" in problem for problem in verify_agent(bundle, "agent_0").problems)
