"""Addresses at which no agent is: all are named, and a command says so without waiting for agents to be started."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from agent_process import AgentProcess
from hmarl.runtime.bundle import Bundle
from hmarl.sdk.clients import endpoints
from hmarl.sdk.clients.agent import agent_spec
from hmarl.sdk.clients.client import AgentClient
from hmarl.sdk.clients.endpoints import at_once, load_endpoints, refusing
from hmarl.sdk.errors import AgentError, UsageError
from hmarl.sdk.evaluation.deployed_teams import FleetTeam
from hmarl.sdk.spaces import EnvironmentSpec


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A port that refuses, and the path of a socket that is not there."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # taken, and nothing listens
        yield {"agent_0": f"127.0.0.1:{bound.getsockname()[1]}", "agent_1": f"unix:{tmp_path}/none.sock"}


def evaluated(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hmarl.sdk.commands.evaluate", "--endpoints", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_the_command_names_all_of_them_and_what_to_start(closed: dict[str, str], tmp_path: Path) -> None:
    """It used to wait for ten seconds, and to name the first one."""
    path = tmp_path / "endpoints.json"
    path.write_text(json.dumps({"bundle": "/runs/my team/bundle", "agents": closed}))
    done = evaluated(path)
    assert (done.returncode, done.stderr) == (
        4,
        f"hmarl-eval: endpoints: nothing listens at {closed['agent_0']} (agent_0), {closed['agent_1']} (agent_1); "
        f"has the fleet ended? start it: hmarl-fleet '/runs/my team/bundle' --out {path}\n",
    )


def test_a_team_names_those_that_are_absent_and_no_others(toy_bundle: Bundle, closed: dict[str, str]) -> None:
    spec = EnvironmentSpec("toy", tuple(map(agent_spec, toy_bundle.manifest.agents)), 6, None, "sum")
    with AgentProcess(toy_bundle.path, "agent_0") as served:
        addresses = {**closed, "agent_0": served.address}
        with pytest.raises(AgentError) as absent:
            FleetTeam(addresses, spec, wait=False)
        assert str(absent.value) == (
            f"endpoints: nothing listens at {closed['agent_1']} (agent_1); start 'hmarl-agent' or 'hmarl-fleet' there"
        )
        one = EnvironmentSpec("toy", spec.agents[:1], 6, None, "sum")
        FleetTeam(addresses, one, wait=False).close()  # agent_1 has no part in it


def test_clients_that_waited_in_vain_are_all_named(closed: dict[str, str]) -> None:
    with pytest.raises(AgentError) as silent:
        at_once(lambda name: AgentClient(closed[name], connect_timeout_s=0.2), closed)
    for address in closed.values():
        assert f"{address}: connecting: DEADLINE_EXCEEDED: no answer within 0.2 s" in str(silent.value)


def test_what_is_wrong_otherwise_goes_first_and_results_keep_their_order() -> None:
    def work(name: str) -> str:
        if name == "b":
            raise AgentError("b is away")
        if name == "c":
            raise UsageError("c is another")
        return name.upper()

    with pytest.raises(UsageError, match="c is another"):
        at_once(work, ["a", "b", "c"])
    with pytest.raises(AgentError, match=r"^b is away$"):
        at_once(work, ["a", "b"])
    assert list(at_once(work, ["z", "a", "m"]).items()) == [("z", "Z"), ("a", "A"), ("m", "M")]


def test_one_that_is_being_started_again_is_waited_for(closed: dict[str, str]) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    later = threading.Timer(0.3, lambda: (server.add_insecure_port(closed["agent_1"]), server.start()))
    later.start()
    try:
        assert refusing({"agent_1": closed["agent_1"]}, limit_s=30.0) == []
    finally:
        later.join()
        server.stop(None)


@pytest.mark.parametrize("late_s", [0.0, 1.0])
def test_one_that_does_not_answer_may_be_there(
    closed: dict[str, str], late_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a busy machine looks at the answers later than it should."""
    clock = iter([late_s])
    monkeypatch.setattr(endpoints, "now_s", lambda: next(clock, 0.0))
    with socket.socket() as hung:
        hung.bind(("127.0.0.1", 0))
        hung.listen()  # the kernel connects, and no one answers
        assert refusing({**closed, "hung": f"127.0.0.1:{hung.getsockname()[1]}"}) == list(closed)


def test_a_file_that_is_not_there_names_who_writes_it(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"none\.json: No such file or directory; hmarl-fleet BUNDLE --out FILE writes"
    ):
        load_endpoints(tmp_path / "none.json")
