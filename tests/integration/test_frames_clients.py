"""Clients and fleets by frames: what is not there or not ours, what dies, freezes or is idle, and who takes which."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from agent_process import AgentProcess
from hmarl.runtime import fleet_member, frames_door, health_probe
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.fleet import Fleet
from hmarl.runtime.server import AgentServer
from hmarl.runtime.session import Policy
from hmarl.runtime.settings import ServerSettings
from hmarl.sdk import AgentClient, AgentError, AsyncAgentClient, NoOp, Security, UsageError, Zero, load_endpoints
from hmarl.sdk.clients.endpoints import refusing
from processes import LIMIT_S, fleet_process, wait_for

LEGAL = np.ones(5, np.bool_)


def seen(step: int) -> np.ndarray:
    return np.random.default_rng(step).normal(size=6).astype(np.float32)


async def connect_async(address: str, connect_timeout_s: float) -> None:
    async with AsyncAgentClient(address, connect_timeout_s=connect_timeout_s):
        pass


def connect(address: str, connect_timeout_s: float) -> None:
    AgentClient(address, connect_timeout_s=connect_timeout_s).close()


def connect_by_asyncio(address: str, connect_timeout_s: float) -> None:
    asyncio.run(connect_async(address, connect_timeout_s))


@pytest.mark.parametrize("by", [connect, connect_by_asyncio])
def test_what_is_not_there_or_is_no_agent_is_said(by: object, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "left"))
    left.close()
    for name, limit_s, said in (
        ("none", 0.3, "UNAVAILABLE: nothing listens there: No such file"),
        ("left", 0.3, "UNAVAILABLE: nothing listens there: Connection refused"),
        ("file", LIMIT_S, "UNIMPLEMENTED: that is no socket: give the path of the agent's --frames"),
    ):
        with pytest.raises(AgentError, match=f"^frames:.*/{name}: connecting: {said}"):
            by(f"frames:{tmp_path}/{name}", limit_s)  # type: ignore[operator]
    addresses = {"a": f"frames:{tmp_path}/none", "b": f"frames:{tmp_path}/left", "c": f"frames:{tmp_path}/file"}
    assert refusing({"a": addresses["a"], "b": addresses["b"]}) == ["a", "b"]
    with pytest.raises(AgentError, match="that is no socket"):
        refusing(addresses)


def test_an_address_that_answers_rubbish_or_nothing_is_no_agent(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "odd"))
        listener.listen()

        def answer() -> None:
            for said in (b"\x03\xff\xff\xff", b"\xff" * 20):
                stream = listener.accept()[0]
                stream.sendall(said)
                stream.recv(4096)
                stream.close()

        thread = threading.Thread(target=answer)
        thread.start()
        for _ in range(2):
            with pytest.raises(AgentError, match="INTERNAL: invalid reply"):
                AgentClient(f"frames:{tmp_path}/odd", connect_timeout_s=LIMIT_S)
        thread.join()
        with pytest.raises(AgentError, match=r"no answer within 0\.3 s"):
            AgentClient(f"frames:{tmp_path}/odd", connect_timeout_s=0.3)


def test_options_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="security: got it for frames:/x, where the kernel says who connects"):
        AgentClient("frames:/x", security=Security(token_file=str(tmp_path)))
    for spin_s in (-1.0, 0.1, True, "1"):
        with pytest.raises(UsageError, match=r"^spin_s: got"):
            AgentClient("frames:/x", spin_s=spin_s)  # type: ignore[arg-type]


def test_a_client_that_spins_gets_the_same(toy_bundle: Bundle) -> None:
    with AgentProcess(toy_bundle.path, "agent_0", door="frames") as process:
        actions = []
        for spin_s in (0.0, 0.001):
            with AgentClient(process.address, timeout_s=LIMIT_S, spin_s=spin_s) as agent:
                agent.reset(1, sample=True)
                actions.append([agent.act(seen(step), LEGAL).action for step in range(20)])
        assert actions[0] == actions[1]


def test_a_connection_that_was_idle_is_made_again_and_the_episode_goes_on(
    toy_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recurrent state and all."""
    monkeypatch.setattr(frames_door, "_IDLE_S", 0.2)
    server = AgentServer(ServerSettings(frames=tmp_path / "frames", grpc=False))
    server.serve(Policy(toy_bundle, "agent_0"))
    local = Policy(toy_bundle, "agent_0").session()
    local.reset(3)
    try:
        with AgentClient(server.address, timeout_s=LIMIT_S) as agent:
            agent.reset(3)
            for step in range(3):
                if step:
                    wait_for(lambda: not server.open_streams, "the end of the idle connection")
                action = agent.act(seen(step), LEGAL)
                assert (action.action, action.fresh) == (local.act(seen(step), LEGAL).action, True)
            assert (agent.statistics.rejoins, agent.statistics.fallbacks) == (0, 0)
    finally:
        server.stop(0.0)


def test_a_session_given_up_while_it_started_is_ended(toy_bundle: Bundle) -> None:
    with (
        AgentProcess(toy_bundle.path, "agent_0", door="frames", options=["--max-sessions", "2"]) as process,
        AgentClient(process.address, timeout_s=LIMIT_S, connect_timeout_s=0.3) as agent,
    ):
        process.freeze()
        for seed in range(5):
            with pytest.raises(AgentError, match="starting an episode"):
                agent.reset(seed)
        process.thaw()
        for seed in range(5):
            wait_for(lambda seed=seed: started(agent, seed), "an episode")
            assert agent.act(seen(0), LEGAL).fresh


def test_an_act_that_is_interrupted_leaves_a_client_that_acts(toy_bundle: Bundle) -> None:
    """By Ctrl-C, or whatever a program's signal handlers raise."""

    def interrupt(*_: object) -> None:
        raise InterruptedError

    local = Policy(toy_bundle, "agent_0").session()
    local.reset(3)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with (
            AgentProcess(toy_bundle.path, "agent_0", door="frames") as process,
            AgentClient(process.address, timeout_s=LIMIT_S) as agent,
        ):
            agent.reset(3)
            for step in range(0, 6, 2):
                action = agent.act(seen(step), LEGAL)
                if step and not action.missed_steps:  # otherwise it came first, over its new connection
                    local.act(seen(step - 1), LEGAL, step=step - 1)
                assert (action.action, action.fresh) == (local.act(seen(step), LEGAL, step=step).action, True)
                process.freeze()
                signal.setitimer(signal.ITIMER_REAL, 0.1)
                with pytest.raises(InterruptedError):
                    agent.act(seen(step + 1), LEGAL)
                process.thaw()
            assert agent.statistics.rejoins == 0
    finally:
        signal.signal(signal.SIGALRM, before)


def started(agent: AgentClient, seed: int) -> bool:
    try:
        agent.reset(seed)
    except AgentError:
        return False
    return True


def test_clients_of_a_forked_process_leave_the_parents_connection_alone(toy_bundle: Bundle) -> None:
    with (
        AgentProcess(toy_bundle.path, "agent_0", door="frames") as process,
        AgentClient(process.address, timeout_s=LIMIT_S) as agent,
    ):
        agent.reset(1)
        assert agent.act(seen(0), LEGAL).fresh
        child = os.fork()
        if not child:
            agent.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert [agent.act(seen(step), LEGAL).step for step in (1, 2)] == [1, 2]
        assert agent.statistics.rejoins == 0


# --- fleets -----------------------------------------------------------------------------------------------------------


def test_a_fleet_names_both_doors_and_programs_on_its_host_take_frames(toy_bundle: Bundle, tmp_path: Path) -> None:
    out, folder = tmp_path / "out.json", tmp_path / "frames"
    with fleet_process(toy_bundle, out, "--frames-dir", str(folder)) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        assert said["frames"] == {name: f"frames:{folder}/{i}-{name}.frames" for i, name in enumerate(said["agents"])}
        assert load_endpoints(out) == load_endpoints(out, "frames") == said["frames"]
        assert load_endpoints(out, "grpc") == said["agents"]
        for address in (*said["frames"].values(), *said["agents"].values()):
            with AgentClient(address, timeout_s=LIMIT_S) as agent:
                agent.reset(1)
                assert agent.act(np.zeros(agent.spec.observation_size, np.float32), legal(agent)).fresh
        elsewhere = tmp_path / "elsewhere.json"
        elsewhere.write_text(out.read_text().replace(str(folder), str(tmp_path / "not-here")))
        assert load_endpoints(elsewhere) == said["agents"]
        elsewhere.write_text(json.dumps({**said, "security": {}}))
        assert load_endpoints(elsewhere) == said["agents"]
        with pytest.raises(UsageError, match="door: got 'shm', expected 'frames', 'grpc' or None"):
            load_endpoints(out, "shm")
    assert list(folder.iterdir()) == []


def legal(agent: AgentClient) -> np.ndarray | None:
    return LEGAL if agent.spec.has_action_mask else None


def test_a_member_without_grpc_that_freezes_or_dies_is_replaced_and_its_client_goes_on(
    toy_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_probe, "CHECK_EVERY_S", 0.2)
    monkeypatch.setattr(fleet_member, "CHECK_EVERY_S", 0.2)
    monkeypatch.setattr(health_probe, "CHECK_LIMIT_S", 1.0)
    monkeypatch.setattr(fleet_member, "FROZEN_AFTER", 3)
    with Fleet(toy_bundle, frames_dir=tmp_path, options=["--no-grpc"]) as fleet:
        address = fleet.endpoints["agent_0"]
        assert address == f"frames:{tmp_path}/0-agent_0.frames"
        assert fleet.description().get("frames") is None
        with AgentClient(address, timeout_s=LIMIT_S, fallback=NoOp(0)) as agent:
            agent.reset(1)
            for strike in (signal.SIGSTOP, signal.SIGKILL):
                assert agent.act(seen(0), LEGAL).fresh
                struck = fleet.process_ids["agent_0"]
                os.kill(struck, strike)
                wait_for(lambda struck=struck: fleet.serving and fleet.process_ids["agent_0"] != struck, "another one")
                assert agent.act(seen(1), LEGAL).fresh
            assert agent.statistics.rejoins == 2
        assert fleet.members["agent_0"].restarts["frozen"] == 1


def test_late_replies_are_never_taken_for_fresh_ones(toy_bundle: Bundle) -> None:
    """Whatever comes late of acts, starts and ends, over connections old and new."""
    local = Policy(toy_bundle, "agent_0").session()
    with (
        AgentProcess(toy_bundle.path, "agent_0", door="frames") as process,
        AgentClient(process.address, timeout_s=0.05, fallback=Zero()) as agent,
    ):
        agent.timeout_s = LIMIT_S
        agent.reset(5)
        local.reset(5)
        assert agent.act(seen(0), LEGAL).action == local.act(seen(0), LEGAL).action
        step, fresh = 1, 0
        for pause_s in (0.0, 0.2, 0.7, 1.5):  # longer than its patience: it goes on over another connection
            agent.timeout_s = 0.02
            process.freeze()
            deadline = time.monotonic() + pause_s
            while time.monotonic() < deadline:
                assert not agent.act(seen(step), LEGAL).fresh
                step += 1
            process.thaw()
            agent.timeout_s = LIMIT_S
            for _ in range(5):
                action = agent.act(seen(step), LEGAL)
                assert action.step == step
                fresh += action.fresh
                step += 1
        assert fresh == 20
        assert agent.statistics.rejoins == 0
