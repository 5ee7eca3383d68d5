"""SIGHUP to one agent: new episodes get the new bundle, running ones end on the old; what is wrong changes nothing."""

from __future__ import annotations

import asyncio
import io
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from agent_process import AgentProcess
from hmarl.runtime.bundle import Bundle, load_bundle
from hmarl.runtime.session import Policy
from hmarl.runtime.verify import random_feeds
from hmarl.sdk.clients.async_client import AsyncAgentClient
from hmarl.sdk.clients.client import AgentClient
from hmarl.sdk.clients.local_agent import LocalAgent
from hmarl.sdk.clients.together import reset_together
from hmarl.sdk.errors import OtherBundleError
from processes import LIMIT_S, rss_mib, wait_for
from terminal_process import terminal_process
from toy_bundle import write_toy_bundle

MASK = np.ones(5, np.bool_)
SIZES = (("a", 1000), ("b", 1001))
SERVED = "is served to new episodes"
UNCHANGED = "reload: nothing has changed: "


@pytest.fixture(scope="module")
def retrained(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Another bundle of the same agents and spaces; its recurrent state is larger."""
    return write_toy_bundle(tmp_path_factory.mktemp("retrained") / "bundle", sizes=(9,))


@pytest.fixture
def link(toy_bundle: Bundle, tmp_path: Path) -> Path:
    """What the agent is started with: a link that is turned to another bundle at once."""
    path = tmp_path / "current"
    path.symlink_to(toy_bundle.path)
    return path


def turn(link: Path, bundle: Path) -> None:
    """Let a link point elsewhere, at once."""
    other = link.with_name("next")
    other.symlink_to(bundle)
    other.replace(link)


def served(link: Path, tmp_path: Path, *options: str, door: str = "unary") -> AgentProcess:
    return AgentProcess(link, "agent_0", options=options, log=tmp_path / "log", door=door)


def asked(process: AgentProcess, says: str) -> str:
    """Send SIGHUP and wait for what the agent says; returns that."""
    before = process.log.count(says)
    process.process.send_signal(signal.SIGHUP)
    wait_for(lambda: process.log.count(says) > before, says)
    return next(line for line in reversed(process.log.splitlines()) if says in line)


def agree(agent: AgentClient, local: LocalAgent, generator: np.random.Generator, acts: int) -> None:
    """Both act alike, step by step."""
    for _ in range(acts):
        seen = generator.normal(size=6).astype(np.float32)
        got = agent.act(seen, MASK)
        assert (got.action, got.fresh) == (local.act(seen, MASK).action, True)


@pytest.mark.parametrize("door", ["unary", "frames"])
def test_new_episodes_get_the_new_bundle_and_running_ones_end_on_the_old(
    toy_bundle: Bundle, retrained: Bundle, link: Path, tmp_path: Path, door: str
) -> None:
    generator = np.random.default_rng(0)
    old, new = LocalAgent(toy_bundle, "agent_0"), LocalAgent(retrained, "agent_0")
    with served(link, tmp_path, door=door) as process, AgentClient(process.address, timeout_s=LIMIT_S) as running:
        for local in (running, old):
            local.reset(7, sample=True)
        agree(running, old, generator, 5)
        turn(link, retrained.path)
        line = asked(process, SERVED)
        assert retrained.sha256 in line
        agree(running, old, generator, 20)
        with AgentClient(process.address, timeout_s=LIMIT_S) as later:
            assert later.info.bundle_sha256 == retrained.sha256
            for local in (later, new):
                local.reset(7, sample=True)
            agree(later, new, generator, 20)
            agree(running, old, generator, 5)
            # While it is held, an episode may still ask for the bundle before; then the team's others are on it, too.
            later.reset(8, bundle_sha256=toy_bundle.sha256)
            old_too = LocalAgent(toy_bundle, "agent_0")
            old_too.reset(8)
            agree(later, old_too, generator, 5)
            assert later.info.bundle_sha256 == toy_bundle.sha256
            with pytest.raises(OtherBundleError, match=f"expected {retrained.sha256}, which is served now"):
                later.reset(9, bundle_sha256="0" * 64)
        with pytest.raises(OtherBundleError, match=f"got bundle {retrained.sha256}, expected {toy_bundle.sha256}"):
            running.reset(8)  # as ever: only who allows it goes on with another bundle
        assert "is served already" in asked(process, "is served already")


def test_a_team_of_which_one_agent_has_switched_begins_on_one_bundle(
    toy_bundle: Bundle, retrained: Bundle, tmp_path: Path
) -> None:
    links = [tmp_path / name for name in ("agent_0", "agent_1")]
    for link in links:
        link.symlink_to(toy_bundle.path)
    with ExitStack() as stack:
        processes = [
            stack.enter_context(AgentProcess(link, link.name, log=tmp_path / f"{link.name}.log")) for link in links
        ]
        clients = [stack.enter_context(AgentClient(each.address, timeout_s=LIMIT_S)) for each in processes]
        turn(links[0], retrained.path)
        asked(processes[0], SERVED)
        # Asked first, the one that has not switched says the old one, which the other one still holds.
        assert reset_together(clients[::-1], 7) == toy_bundle.sha256
        assert [client.info.bundle_sha256 for client in clients] == [toy_bundle.sha256] * 2
        # Asked first, the one that has switched says the new one: all begin anew until the other one has it, too.
        begun: list[str] = []
        starting = threading.Thread(target=lambda: begun.append(reset_together(clients, 8)))
        starting.start()
        starting.join(0.3)
        assert begun == []
        turn(links[1], retrained.path)
        asked(processes[1], SERVED)
        starting.join(LIMIT_S)
        assert begun == [retrained.sha256]
        assert [client.info.bundle_sha256 for client in clients] == [retrained.sha256] * 2


def test_the_asyncio_client_names_bundles_as_well(
    toy_bundle: Bundle, retrained: Bundle, link: Path, tmp_path: Path
) -> None:
    async def play(address: str, turned: Callable[[], object]) -> None:
        async with AsyncAgentClient(address, timeout_s=LIMIT_S) as agent:
            turned()
            assert await agent.current_bundle() == retrained.sha256
            for bundle in (toy_bundle, retrained):
                local = LocalAgent(bundle, "agent_0")
                local.reset(3)
                await agent.reset(3, bundle_sha256=bundle.sha256)
                seen = np.ones(6, np.float32)
                assert (await agent.act(seen, MASK)).action == local.act(seen, MASK).action
                assert agent.info.bundle_sha256 == bundle.sha256
            with pytest.raises(OtherBundleError, match="which is served now"):
                await agent.reset(3, bundle_sha256="0" * 64)

    with served(link, tmp_path) as process:
        turn(link, retrained.path)
        asyncio.run(play(process.address, lambda: asked(process, SERVED)))


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def damaged(path: Path) -> None:
    write_toy_bundle(path, sizes=(9,))
    (path / "agents" / "agent_0.onnx").write_bytes(b"changed")


def no_graph(path: Path) -> None:
    from hmarl.runtime.bundle import write_bundle  # noqa: PLC0415
    from toy_bundle import toy_agent, toy_graph, toy_manifest  # noqa: PLC0415

    shape = {"observation_size": 6, "action": "discrete", "sizes": (8,), "plain": False}
    agents = [toy_agent(name, **shape) for name in ("agent_0", "agent_1")]  # type: ignore[arg-type]
    write_bundle(path, toy_manifest(agents), {"agents/agent_0.onnx": b"no graph", "agents/agent_1.onnx": toy_graph()})


def other_actions_than_recorded(path: Path) -> None:
    policy = Policy(write_toy_bundle(path, sizes=(9,)), "agent_0")
    feeds = random_feeds(policy.agent, 20, np.random.default_rng(1))
    outputs = policy.run_batch(feeds) | {"action_logits": np.zeros((20, 5), np.float32)}
    files = {f"parity/agent_0.{name}.npy": npy(array) for name, array in feeds.items()}
    files |= {f"parity/agent_0.expected.{name}.npy": npy(array) for name, array in outputs.items()}
    write_toy_bundle(path, sizes=(9,), more_files=files)


def other_agents(path: Path) -> None:
    write_toy_bundle(path, agents=("agent_0", "agent_2"))


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "damaged": (damaged, "'agents/agent_0.onnx' has SHA-256"),
    "no graph": (no_graph, "agents/agent_0.onnx: not an ONNX file"),
    "parity": (other_actions_than_recorded, "agent 'agent_0': parity with the trainer: 'action_logits' differs"),
    "agents": (other_agents, "agents: got agent_0, agent_2, expected those of the bundle that is served, agent_0, "),
    "observation": (
        lambda path: write_toy_bundle(path, observation_size=7),
        "agent 'agent_0': observation: got float32 [7], expected float32 [6]",
    ),
    "action": (lambda path: write_toy_bundle(path, action="multi_discrete"), "agent 'agent_0': action space: got "),
    "mask": (
        lambda path: write_toy_bundle(path, plain=True),
        "agent 'agent_0': action mask: got none, expected bool [5]",
    ),
    "gone": (lambda path: None, "no such directory"),
}


def test_what_is_wrong_with_a_bundle_is_said_and_changes_nothing(
    toy_bundle: Bundle, retrained: Bundle, link: Path, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    local = LocalAgent(toy_bundle, "agent_0")
    with served(link, tmp_path) as process, AgentClient(process.address, timeout_s=LIMIT_S) as agent:
        for each in (agent, local):
            each.reset(7, sample=True)
        for name, (make, expected) in WRONG.items():
            make(tmp_path / name)
            turn(link, tmp_path / name)
            assert expected in asked(process, UNCHANGED)
            agree(agent, local, generator, 2)
            assert agent.current_bundle() == toy_bundle.sha256
        turn(link, retrained.path)
        asked(process, SERVED)
        assert agent.current_bundle() == retrained.sha256


def test_health_stays_and_a_signal_meanwhile_is_one_more_reload(
    toy_bundle: Bundle, retrained: Bundle, link: Path, tmp_path: Path
) -> None:
    with served(link, tmp_path) as process, grpc.insecure_channel(process.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        turn(link, retrained.path)
        process.process.send_signal(signal.SIGHUP)
        time.sleep(0.05)
        turn(link, toy_bundle.path)
        for _ in range(5):  # however many: what lies there in the end is served in the end
            process.process.send_signal(signal.SIGHUP)
        statuses = set()
        with AgentClient(process.address) as agent:
            begun = time.monotonic()
            while "is served" not in process.log or time.monotonic() < begun + 1.0:
                statuses.add(health.Check(health_pb2.HealthCheckRequest(), timeout=LIMIT_S).status)
                time.sleep(0.01)
                assert time.monotonic() < begun + LIMIT_S
            wait_for(lambda: agent.current_bundle() == toy_bundle.sha256, "the last one")
        assert statuses == {health_pb2.HealthCheckResponse.SERVING}


def test_systemd_is_told_of_a_reload_and_of_its_end(
    link: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both well and not: a service manager that waits for the end must not wait for ever (Type=notify-reload)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(LIMIT_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with served(link, tmp_path) as process:
            assert manager.recv(100) == b"READY=1"
            for bundle in (link.resolve(), tmp_path / "none"):
                turn(link, bundle)
                asked_at_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
                process.process.send_signal(signal.SIGHUP)
                first, _, second = manager.recv(100).decode().partition("\n")
                assert first == "RELOADING=1"
                assert int(second.removeprefix("MONOTONIC_USEC=")) >= asked_at_us
                assert manager.recv(100) == b"READY=1"


def test_an_agent_that_drains_takes_no_other_bundle(
    toy_bundle: Bundle, retrained: Bundle, link: Path, tmp_path: Path
) -> None:
    with (
        served(link, tmp_path, "--grace-s", "1000") as process,
        AgentClient(process.address, timeout_s=LIMIT_S) as agent,
    ):
        agent.reset(7)
        process.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "draining" in process.log, "draining")
        turn(link, retrained.path)
        process.process.send_signal(signal.SIGHUP)  # a second signal to stop would end it at once
        while UNCHANGED not in process.log:
            assert agent.act(np.zeros(6, np.float32), MASK).fresh
            time.sleep(0.05)
        assert "this process is stopping and takes no other bundle" in process.log
        assert agent.act(np.zeros(6, np.float32), MASK).fresh


def test_memory_returns_after_ten_reloads(tmp_path: Path) -> None:
    """Two bundles of 4 MiB an agent take turns; each is held for a moment."""
    bundles = [write_toy_bundle(tmp_path / name, agents=("agent_0",), sizes=(1024, size)) for name, size in SIZES]
    link = tmp_path / "current"
    link.symlink_to(bundles[0].path)
    with served(link, tmp_path) as process:
        first = rss_mib(process.process.pid)
        for number in range(10):
            turn(link, bundles[(number + 1) % 2].path)
            asked(process, SERVED)
        wait_for(lambda: process.log.count("is no longer held") == 10, "the end of what was held")
        # Ten of them are 40 MiB and more, several times that while they are loaded. What is no longer held is freed
        # a moment after the log says so.
        wait_for(lambda: rss_mib(process.process.pid) < first + 16.0, "getting the memory back")


def test_the_end_of_the_terminal_drains_like_sigterm(toy_bundle: Bundle, tmp_path: Path) -> None:
    """The one SIGHUP that does not ask for a reload: the terminal that the process was started in has gone."""
    address = tmp_path / "s"
    words = ["-m", "hmarl.runtime.commands.agent", str(toy_bundle.path), "--agent", "agent_0"]
    with terminal_process(*words, "--listen", f"unix:{address}") as (process, hang_up):
        assert process.stdout is not None
        assert process.stderr is not None
        assert "serving" in process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        assert any("is served already" in line for line in process.stderr), "the terminal is there"
        hang_up()
        assert process.wait(LIMIT_S) == 0
        assert not address.exists()


def test_a_signal_while_an_agent_is_loading_is_obeyed_once_it_serves(toy_bundle: Bundle, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(toy_bundle.path, tmp_path / "bundle"))
    command = [sys.executable, "-m", "hmarl.runtime.commands.agent", str(bundle), "--agent", "agent_0"]
    with subprocess.Popen(
        [*command, "--listen", f"unix:{tmp_path}/s"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        wait_for(lambda: handles(process.pid, signal.SIGHUP), "the signal's handler")
        process.send_signal(signal.SIGHUP)
        assert "serving" in process.stdout.readline()
        assert any("is served already" in line for line in process.stderr)
        process.terminate()
    assert load_bundle(bundle).sha256 == toy_bundle.sha256


def handles(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
