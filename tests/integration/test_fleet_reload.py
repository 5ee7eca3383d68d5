"""hmarl-fleet reload: a team gets another bundle as a whole, or none of its agents does; real processes throughout."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmarl.runtime.bundle import Bundle, write_bundle
from hmarl.sdk.clients.client import AgentClient
from hmarl.sdk.clients.endpoints import load_endpoints
from hmarl.sdk.clients.local_agent import LocalAgent
from hmarl.sdk.clients.together import reset_together
from hmarl.sdk.errors import OtherBundleError
from hmarl.sdk.evaluation.deployed_teams import FleetTeam
from hmarl.sdk.spaces import EnvironmentSpec
from processes import LIMIT_S, alive, children, fleet_process, wait_for
from toy_bundle import toy_agent, toy_graph, toy_manifest, write_toy_bundle

MASK = np.ones(5, np.bool_)
AGENTS = ("agent_0", "agent_1")


@pytest.fixture(scope="module")
def retrained(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Another bundle of the same agents and spaces."""
    return write_toy_bundle(tmp_path_factory.mktemp("retrained") / "bundle", sizes=(9,))


@pytest.fixture(scope="module")
def half_good(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that agent_0 can serve, and agent_1 cannot."""
    agents = [toy_agent(name, observation_size=6, action="discrete", sizes=(8,), plain=False) for name in AGENTS]
    files = {"agents/agent_0.onnx": toy_graph(seed=5), "agents/agent_1.onnx": b"no graph"}
    return write_bundle(tmp_path_factory.mktemp("half") / "bundle", toy_manifest(agents), files)


@dataclass
class Served:
    """A running fleet of the toy bundle."""

    process: subprocess.Popen[str]
    out: Path

    @property
    def document(self) -> dict[str, Any]:
        return dict(json.loads(self.out.read_text()))

    def members(self) -> dict[str, int]:
        """Process ids by agent; those of graphs' trials are children of theirs."""
        found = {}
        for pid in children(self.process.pid):
            with suppress(OSError):  # one that has just ended
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                found.update({word.removeprefix("--agent="): pid for word in words if word.startswith("--agent=")})
        return found

    def reload(self, bundle: Path | str, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*RELOAD, str(self.out), str(bundle), *options],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    def bundles(self) -> dict[str, str]:
        """What every agent says that it serves."""
        found = {}
        for name, address in load_endpoints(self.out).items():
            with AgentClient(address, timeout_s=LIMIT_S) as agent:
                found[name] = agent.current_bundle()
        return found


RELOAD = [sys.executable, "-m", "hmarl.runtime.commands.fleet", "reload"]


@contextmanager
def served(bundle: Bundle, tmp_path: Path, *options: str) -> Iterator[Served]:
    out = tmp_path / "endpoints.json"
    with fleet_process(bundle, out, *options) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield Served(process, out)


def all_serve(bundle: Bundle) -> dict[str, str]:
    return dict.fromkeys(AGENTS, bundle.sha256)


class Match:
    """An episode of a team, each act of which is held against the bundle that the episode began on."""

    def __init__(self, clients: list[AgentClient], bundles: dict[str, Bundle]) -> None:
        self._clients = clients
        self._bundles = bundles
        self._locals: list[LocalAgent] = []
        self._generator = np.random.default_rng(0)
        self.sha256 = ""

    def begin(self, seed: int) -> None:
        self.sha256 = reset_together(self._clients, seed, sample=True)
        self._locals = [LocalAgent(self._bundles[self.sha256], name) for name in AGENTS]
        for local in self._locals:
            local.reset(seed, sample=True)

    def play(self, steps: int) -> None:
        for _ in range(steps):
            for client, local in zip(self._clients, self._locals, strict=True):
                seen = self._generator.normal(size=6).astype(np.float32)
                got = client.act(seen, MASK)
                assert (got.action, got.fresh) == (local.act(seen, MASK).action, True)
                assert client.info.bundle_sha256 == self.sha256


@contextmanager
def match(served: Served, *bundles: Bundle) -> Iterator[Match]:
    with ExitStack() as stack:
        addresses = load_endpoints(served.out)
        clients = [stack.enter_context(AgentClient(addresses[name], timeout_s=LIMIT_S)) for name in AGENTS]
        yield Match(clients, {bundle.sha256: bundle for bundle in bundles})


def test_a_good_bundle_reaches_all_and_running_episodes_end_on_the_old(
    toy_bundle: Bundle, retrained: Bundle, tmp_path: Path
) -> None:
    with served(toy_bundle, tmp_path) as fleet, match(fleet, toy_bundle, retrained) as running:
        members, before = fleet.members(), fleet.document
        running.begin(1)
        running.play(5)
        done = fleet.reload(retrained.path)
        assert (done.returncode, done.stderr) == (0, "")
        assert [line.split(",")[0] for line in done.stdout.splitlines()[:2]] == [f"{name} is ready" for name in AGENTS]
        assert f"all agents serve {retrained.path} ({retrained.sha256})" in done.stdout
        after = fleet.document
        assert after == {**before, "bundle": str(retrained.path), "bundle_sha256": retrained.sha256}
        assert fleet.bundles() == all_serve(retrained)
        running.play(20)
        assert running.sha256 == toy_bundle.sha256
        running.begin(2)
        assert running.sha256 == retrained.sha256
        running.play(20)
        assert fleet.members() == members, "the same processes"
        again = json.loads(fleet.reload(retrained.path, "--json").stdout)
        assert (again["done"], again["bundle_sha256"]) == (True, retrained.sha256)
        # One that crashes now comes up with what the others serve.
        os.kill(members["agent_1"], signal.SIGKILL)
        wait_for(lambda: fleet.members().get("agent_1", members["agent_1"]) != members["agent_1"], "the restart")
        assert fleet.bundles() == all_serve(retrained)
        with pytest.raises(OtherBundleError):  # an episode on a bundle that a new process has never seen
            AgentClient(load_endpoints(fleet.out)["agent_1"]).reset(1, bundle_sha256=toy_bundle.sha256)


def test_a_bundle_that_any_agent_cannot_serve_changes_none(
    toy_bundle: Bundle, half_good: Bundle, tmp_path: Path
) -> None:
    wider = write_toy_bundle(tmp_path / "wider", observation_size=7)
    broken = write_toy_bundle(tmp_path / "broken", sizes=(9,))
    (broken.path / "README.md").write_text("changed")
    with served(toy_bundle, tmp_path) as fleet, match(fleet, toy_bundle) as running:
        before = fleet.document
        running.begin(1)
        for path, code, expected in (
            (half_good.path, 3, "agent 'agent_1': agents/agent_1.onnx: not an ONNX file"),
            (wider.path, 3, "agent 'agent_0': observation: got float32 [7], expected float32 [6]"),
            (broken.path, 3, "'README.md' has SHA-256"),
            (tmp_path / "none", 3, "no such directory or zip file"),
        ):
            done = fleet.reload(path, "--json")
            assert done.returncode == code
            assert done.stderr.startswith("hmarl-fleet reload: nothing has changed: ")
            assert expected in done.stderr
            assert len(done.stderr.splitlines()) == 1
            told = json.loads(done.stdout.splitlines()[-1])
            assert (told["done"], told["exit_code"]) == (False, code)
            assert (fleet.document, fleet.bundles()) == (before, all_serve(toy_bundle))
            running.play(3)
        running.begin(2)
        running.play(3)


def test_a_member_that_is_killed_while_it_loads_leaves_the_team_as_it_was(
    toy_bundle: Bundle, retrained: Bundle, tmp_path: Path
) -> None:
    with served(toy_bundle, tmp_path) as fleet:
        for victim in AGENTS:  # the first of them, and one before which another is ready
            pid = fleet.members()[victim]
            with subprocess.Popen(
                [*RELOAD, str(fleet.out), str(retrained.path)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as asking:
                wait_for(lambda pid=pid: children(pid), "the trial of its graph")
                trials = children(pid)
                try:
                    for trial in trials:
                        os.kill(trial, signal.SIGSTOP)  # so that it does not end before
                    os.kill(pid, signal.SIGKILL)
                finally:  # stopped before it asked to die with its parent, it would stay for ever
                    for trial in trials:
                        with suppress(ProcessLookupError):  # it may have died with its parent
                            os.kill(trial, signal.SIGCONT)
                wait_for(lambda trials=trials: not any(map(alive, trials)), "the trial's end")
                _, said = asking.communicate(timeout=LIMIT_S)
            assert asking.returncode == 4
            assert said == f"hmarl-fleet reload: nothing has changed: agent '{victim}' has ended meanwhile: try again\n"
            wait_for(lambda pid=pid, victim=victim: fleet.members().get(victim, pid) != pid, "the restart")
            assert fleet.bundles() == all_serve(toy_bundle)
        # And then it does.
        wait_for(lambda: fleet.reload(retrained.path).returncode == 0, "a reload")
        assert fleet.bundles() == all_serve(retrained)


def test_a_member_that_does_not_switch_is_started_again_with_the_new_bundle(
    toy_bundle: Bundle, retrained: Bundle, tmp_path: Path
) -> None:
    """agent_0 has prepared the bundle and is then stopped, as if it were stuck: the team is not left half new."""
    with served(toy_bundle, tmp_path) as fleet:
        members = fleet.members()
        os.kill(members["agent_1"], signal.SIGSTOP)  # so that the team does not switch before agent_0 is stopped
        with subprocess.Popen(
            [*RELOAD, str(fleet.out), str(retrained.path)], stdout=subprocess.PIPE, text=True
        ) as asking:
            assert asking.stdout is not None
            assert asking.stdout.readline().startswith("agent_0 is ready")
            os.kill(members["agent_0"], signal.SIGSTOP)
            os.kill(members["agent_1"], signal.SIGCONT)
            said = asking.stdout.read()
            assert asking.wait(LIMIT_S) == 0
        assert "agent_0 has ended, and is started again with the new bundle" in said
        assert fleet.bundles() == all_serve(retrained)
        assert not alive(members["agent_0"])
        assert fleet.members()["agent_1"] == members["agent_1"]


def test_a_second_reload_is_refused_while_one_runs(toy_bundle: Bundle, retrained: Bundle, tmp_path: Path) -> None:
    with served(toy_bundle, tmp_path) as fleet:
        pid = fleet.members()["agent_1"]
        os.kill(pid, signal.SIGSTOP)  # the first one takes its time
        with subprocess.Popen(
            [*RELOAD, str(fleet.out), str(retrained.path)], stdout=subprocess.PIPE, text=True
        ) as asking:
            assert asking.stdout is not None
            assert asking.stdout.readline().startswith("agent_0 is ready")
            second = fleet.reload(toy_bundle.path)
            os.kill(pid, signal.SIGCONT)
            assert asking.wait(LIMIT_S) == 0
        assert (second.returncode, "another reload is running" in second.stderr) == (4, True)
        assert fleet.bundles() == all_serve(retrained)


def test_sighup_reads_the_path_again_and_leaves_members_alone(
    toy_bundle: Bundle, retrained: Bundle, tmp_path: Path
) -> None:
    link = tmp_path / "current"
    link.symlink_to(toy_bundle.path)
    bundle = Bundle(link, toy_bundle.manifest, toy_bundle.sha256)
    with served(bundle, tmp_path) as fleet:
        assert fleet.document["bundle"] == str(link)
        next_link = tmp_path / "next"
        next_link.symlink_to(retrained.path)
        next_link.replace(link)
        # A member that crashes now is started with what the link pointed to: the others serve that.
        pid = fleet.members()["agent_0"]
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: fleet.members().get("agent_0", pid) != pid, "the restart")
        assert fleet.bundles() == all_serve(toy_bundle)
        os.kill(fleet.members()["agent_0"], signal.SIGHUP)  # of no effect on a member
        fleet.process.send_signal(signal.SIGHUP)
        wait_for(lambda: fleet.document["bundle_sha256"] == retrained.sha256, "the endpoints file")
        assert fleet.document["bundle"] == str(link)
        assert fleet.bundles() == all_serve(retrained)
        assert len(fleet.members()) == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="copies in memory are Linux's")
def test_a_member_comes_back_whatever_lies_at_the_path_by_then(
    toy_bundle: Bundle, retrained: Bundle, tmp_path: Path
) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(toy_bundle.path, path)

    def again(fleet: Served, name: str) -> None:
        pid = fleet.members()[name]
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: fleet.members().get(name, pid) != pid, "the restart")

    with served(Bundle(path, toy_bundle.manifest, toy_bundle.sha256), tmp_path) as fleet:
        shutil.rmtree(path)
        again(fleet, "agent_0")
        assert fleet.bundles() == all_serve(toy_bundle)
        shutil.copytree(retrained.path, path)
        (path / "README.md").write_text("changed")
        assert fleet.reload(path).returncode == 3
        again(fleet, "agent_1")
        assert fleet.bundles() == all_serve(toy_bundle)
        (path / "README.md").write_bytes((retrained.path / "README.md").read_bytes())
        assert fleet.reload(path).returncode == 0
        again(fleet, "agent_0")
        assert fleet.bundles() == all_serve(retrained)


def test_teams_follow_at_their_next_episode(toy_bundle: Bundle, retrained: Bundle, tmp_path: Path) -> None:
    """Reloads to and fro while teams start episodes: every episode is of one bundle in all of its agents."""
    ended = threading.Event()
    with served(toy_bundle, tmp_path) as fleet, match(fleet, toy_bundle, retrained) as playing:

        def turn() -> None:
            for number in range(4):
                assert fleet.reload((retrained, toy_bundle)[number % 2].path).returncode == 0
            ended.set()

        reloading = threading.Thread(target=turn)
        reloading.start()
        seen, seed = set(), 0
        while not ended.is_set():
            seed += 1
            playing.begin(seed)
            playing.play(2)
            seen.add(playing.sha256)
        reloading.join(LIMIT_S)
        assert seen == {toy_bundle.sha256, retrained.sha256}


def test_evaluated_teams_follow_and_count(toy_bundle: Bundle, retrained: Bundle, tmp_path: Path) -> None:
    agents = tuple(LocalAgent(toy_bundle, name).spec for name in AGENTS)
    with served(toy_bundle, tmp_path) as fleet:
        team = FleetTeam(fleet.out, EnvironmentSpec("toy/toy", agents, 6, None, "sum"))
        try:
            team.reset(np.arange(2))
            assert fleet.reload(retrained.path).returncode == 0
            team.reset(np.arange(3))
            assert team.bundles == {toy_bundle.sha256: 2, retrained.sha256: 3}
            infos = {client.info.bundle_sha256 for clients in team.clients.values() for client in clients}
            assert infos == {retrained.sha256}
        finally:
            team.close()


def test_no_one_else_reaches_the_door(toy_bundle: Bundle, tmp_path: Path) -> None:
    with served(toy_bundle, tmp_path) as fleet:
        door = Path(fleet.document["control"])
        assert stat.S_IMODE(door.stat().st_mode) == 0o600
        assert stat.S_IMODE(door.parent.stat().st_mode) == 0o700
        for nonsense in (b"", b"nonsense\n", b"[]\n", b'{"reload": 7}\n', b"x" * 3_000_000):
            with socket.socket(socket.AF_UNIX) as caller:
                caller.connect(str(door))
                caller.settimeout(LIMIT_S)
                with suppress(ConnectionError):
                    caller.sendall(nonsense)
                    caller.shutdown(socket.SHUT_WR)
                    assert caller.recv(100) == b""
        assert fleet.reload(toy_bundle.path).returncode == 0
    assert not door.parent.exists()
    late = subprocess.run([*RELOAD, str(fleet.out), "b"], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert (late.returncode, "take the file that hmarl-fleet --out wrote" in late.stderr) == (2, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_not_obeyed_even_where_the_folder_lets_it_in(
    toy_bundle: Bundle, retrained: Bundle, tmp_path: Path
) -> None:
    program = """
import os, socket, sys
os.setgid(65534)
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as caller:
    caller.settimeout(30)
    try:
        caller.connect(sys.argv[1])
        caller.sendall(sys.argv[2].encode())
        print(caller.recv(100))
    except OSError as error:
        print(type(error).__name__)
"""
    with served(toy_bundle, tmp_path) as fleet:
        door = Path(fleet.document["control"])
        order = json.dumps({"reload": str(retrained.path)}) + "\n"

        def call() -> str:
            words = [sys.executable, "-c", program, str(door), order]
            return subprocess.run(words, capture_output=True, text=True, check=True, timeout=LIMIT_S).stdout.strip()

        assert call() == "PermissionError"
        door.parent.chmod(0o755)
        door.chmod(0o666)
        assert call() in ("b''", "ConnectionResetError", "BrokenPipeError")
        assert fleet.bundles() == all_serve(toy_bundle)


def test_a_bundle_that_is_called_reload_is_served_as_a_path(toy_bundle: Bundle, tmp_path: Path) -> None:
    write_toy_bundle(tmp_path / "reload")

    def fleet(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "hmarl.runtime.commands.fleet", *words],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 2
        return done.stderr

    said = fleet("reload", "--out", "endpoints.json")
    assert said.startswith("hmarl-fleet reload: --out: got an unknown option")
    assert "; if you mean what is called 'reload' here, write ./reload; see hmarl-fleet reload --help" in said
    assert "ENDPOINTS (the endpoints file of the running fleet); if you mean" in fleet("reload")
    assert fleet("./reload", "--count", "0").startswith("hmarl-fleet: --count: got '0'"), "taken for a bundle"
