"""Black boxes of real processes: killed, on a full disk, of a fleet in trouble, and of its clients."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from mcap.exceptions import EndOfFile
from mcap.reader import NonSeekingReader
from mcap_protobuf.decoder import DecoderFactory

from agent_process import AgentProcess
from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.agent_pb2_grpc import AgentServiceStub
from hmarl.agent.v1.tensors import to_tensor
from hmarl.recording.v1 import recording_pb2 as pb
from hmarl.runtime.bundle import Bundle, load_bundle
from hmarl.runtime.recording.beside import laid_beside
from hmarl.runtime.recording.reader import open_recording
from hmarl.runtime.recording.replay import NO_REPLY, UNKNOWN_STATE
from hmarl.runtime.recording.settings import RecordSettings
from hmarl.sdk.clients.async_client import AsyncAgentClient
from hmarl.sdk.clients.client import AgentClient
from hmarl.sdk.errors import StaleActionError, UsageError
from hmarl.sdk.fallback import Hold
from hmarl.sdk.faults.link import FaultyLink, LinkFaults
from processes import fleet_process, wait_for
from recorded import entries, run_again
from serving import SHIPPED_BUNDLE
from small_disk import fill, small_disk
from toy_bundle import write_toy_bundle


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_toy_bundle(tmp_path_factory.mktemp("toy") / "bundle")


def given(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    mask = generator.random(5) < 0.6
    mask[generator.integers(5)] = True
    return generator.normal(size=6).astype(np.float32), mask


def replay(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hmarl.sdk.commands.replay", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def acts(path: Path, *, fresh: bool = True) -> list[pb.Act]:
    found = [entry.message for entry in entries(path) if isinstance(entry.message, pb.Act)]
    return [act for act in found if not fresh or not act.HasField("delivery") or act.delivery.fresh]


@pytest.mark.parametrize("stream", [False, True])
def test_both_sides_record_the_same_acts(tmp_path: Path, toy: Bundle, stream: bool) -> None:
    box = tmp_path / "box"
    with AgentProcess(toy.path, "agent_0", options=("--record", str(box))) as process:
        with AgentClient(process.address, stream=stream, diagnostics=True, record=box) as client:
            generator = np.random.default_rng(0)
            for seed in (3, 4):
                client.reset(seed, sample=True)
                for _ in range(20):
                    client.act(*given(generator))
        process.process.terminate()
        process.process.wait(20)
    agent, mine = (acts(box / name) for name in ("agent_0", "agent_0.client"))
    assert len(agent) == len(mine) == 40
    for theirs, ours in zip(agent, mine, strict=True):
        assert theirs.request == ours.request
        assert theirs.response.action == ours.response.action
        assert theirs.latency_us < ours.latency_us
    sessions = [
        [entry.message.session for entry in entries(box / name) if isinstance(entry.message, pb.Episode)]
        for name in ("agent_0", "agent_0.client")
    ]
    assert sessions[0] == sessions[1]
    assert len(set(sessions[0])) == 2
    report = run_again(box, toy)
    assert (report.episodes, report.compared, report.differing_bytes) == (4, 80, 0)
    done = replay(box, "--bundle", toy.path, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["same"], said["compared"], said["cut_off"]) == (True, 80, {})
    beside = said["beside"]
    assert [beside[name] for name in ("acts", "in_time", "late", "not_received")] == [40, 40, 0, 0]
    assert (beside["different_inputs"], beside["different_actions"]) == (0, 0)
    assert 0 < beside["way_us"]["p50"] <= beside["way_us"]["max"]


@pytest.mark.parametrize("no_grpc", [False, True])
def test_acts_that_come_by_frames_are_recorded_alike(tmp_path: Path, toy: Bundle, no_grpc: bool) -> None:
    box, door = tmp_path / "box", tmp_path / "door"
    options = ["--record", str(box), "--frames", str(door), *(["--no-grpc"] if no_grpc else [])]
    with AgentProcess(toy.path, "agent_0", options=options) as process:
        with AgentClient(f"frames:{door}", record=box) as client:
            generator = np.random.default_rng(0)
            client.reset(3, sample=True)
            for _ in range(20):
                client.act(*given(generator))
        process.process.terminate()
        process.process.wait(20)
    report = run_again(box, toy)
    assert (report.episodes, report.compared, report.differing_bytes) == (2, 40, 0)
    beside = laid_beside(open_recording(box))
    assert beside is not None
    assert (beside.acts, beside.in_time, beside.same) == (20, 20, True)


def test_no_client_keeps_the_acts_of_another_from_being_recorded(tmp_path: Path, toy: Bundle) -> None:
    """One repeats the last step there is, as is legal, while files are begun."""
    options = ("--record", str(tmp_path / "box"), "--record-file-mb", "0.01")
    with AgentProcess(toy.path, "agent_0", options=options) as process:
        with grpc.insecure_channel(process.address) as channel, AgentClient(process.address) as client:
            stub, generator = AgentServiceStub(channel), np.random.default_rng(0)
            start = agent_pb2.StartEpisodeRequest(seed=1, first_step=2**64 - 1)
            act = agent_pb2.ActRequest(session_id=stub.StartEpisode(start).session_id, step=2**64 - 1)
            act.observation.CopyFrom(to_tensor(np.zeros(6, np.float32)))
            act.action_mask.CopyFrom(to_tensor(np.ones(5, bool)))
            client.reset(2, sample=True)
            for _ in range(4):
                stub.Act(act)
                for _ in range(50):
                    client.act(*given(generator))
                time.sleep(0.3)  # longer than a flush takes
        process.process.terminate()
        process.process.wait(20)
    assert len(list((tmp_path / "box").rglob("*.mcap"))) >= 3
    report = run_again(tmp_path / "box", toy)
    assert (report.acts, report.compared, report.missing, report.differing_bytes) == (204, 204, 0, 0)


def test_a_client_at_the_last_step_there_is_says_so(tmp_path: Path, toy: Bundle) -> None:
    with AgentProcess(toy.path, "agent_0") as process, AgentClient(process.address, record=tmp_path / "box") as client:
        generator = np.random.default_rng(0)
        client.reset(1, first_step=2**64 - 1)
        assert client.act(*given(generator)).step == 2**64 - 1
        with pytest.raises(UsageError, match=f"step: got {2**64}, expected 0 <= step"):
            client.act(*given(generator))
        client.reset(2)
        assert client.act(*given(generator)).fresh
    report = run_again(tmp_path / "box", toy)
    assert (report.acts, report.compared, report.missing, report.same) == (3, 2, 0, True)


def test_a_killed_agent_leaves_all_but_the_last_moment(tmp_path: Path, toy: Bundle) -> None:
    with AgentProcess(toy.path, "agent_0", options=("--record", str(tmp_path / "box"))) as process:
        with AgentClient(process.address, fallback=Hold(expires_after_s=60.0)) as client:
            client.reset(1, sample=True)
            generator = np.random.default_rng(0)
            for _ in range(50):
                client.act(*given(generator))
            time.sleep(2.0)  # far longer than a flush takes
            for _ in range(50):
                client.act(*given(generator))
            process.kill()
        (file,) = (tmp_path / "box" / "agent_0").iterdir()
        report = run_again(file, toy)
        assert 50 <= report.compared <= 100
        assert report.differing_bytes == 0
        with file.open("rb") as stream:  # the library's reader, from front to back
            reader = NonSeekingReader(stream, decoder_factories=[DecoderFactory()])
            found = reader.iter_decoded_messages(log_time_order=False)
            assert [next(found).channel.topic for _ in range(report.compared + 1)][-1] == "/agent/agent_0/acts"
            with pytest.raises(EndOfFile):
                next(found)
        said = json.loads(replay(file, "--bundle", toy.path, "--json").stdout)
        assert said["compared"] == report.compared
        assert list(said["cut_off"]) == [str(file)]


def test_acts_go_on_when_the_disk_is_full(tmp_path: Path, toy: Bundle) -> None:
    """Each of them is recorded in the end, or counted as missing."""
    with small_disk(tmp_path / "disk", "128k") as disk:
        log, options, acted = tmp_path / "log", ("--record", str(disk / "box")), 0
        with (
            AgentProcess(toy.path, "agent_0", options=options, log=log) as process,
            AgentClient(process.address) as client,
        ):
            generator = np.random.default_rng(0)

            def act_until(over: Callable[[], object]) -> None:
                nonlocal acted
                deadline = time.monotonic() + 60
                while not over():
                    assert time.monotonic() < deadline
                    assert client.act(*given(generator)).fresh
                    acted += 1
                    time.sleep(0.02)

            client.reset(1, sample=True)
            files = disk / "box" / "agent_0"
            act_until(lambda: list(files.iterdir()))
            act_until(lambda: acted >= 40)
            fill(disk / "filler")
            act_until(lambda: "recording stopped" in process.log)
            assert "No space left on device; acts go on" in process.log
            (disk / "filler").unlink()
            act_until(lambda: len(list(files.iterdir())) == 2)  # tried again
            client.close()
            process.process.terminate()
            process.process.wait(20)
        report = run_again(disk / "box", toy)
        assert report.compared > 20
        assert report.missing > 0
        assert report.acts + report.missing == acted
        assert report.differing_bytes == 0
        assert process.log.count("recording stopped") == 1


def play_in_trouble(addresses: dict[str, str], box: Path, kill: Sequence[Any]) -> int:
    """Episodes of three agents, who act at the same time over bad links; returns how many acts had no fresh action."""
    late, faults = 0, LinkFaults(delay_s=0.01, jitter_s=0.06)

    def fails(client: AgentClient, observation: np.ndarray) -> bool:
        try:
            return not client.act(observation).fresh
        except StaleActionError:  # the episode has had no action yet
            return True

    with ExitStack() as stack:
        links = {name: stack.enter_context(FaultyLink(address, faults, seed=1)) for name, address in addresses.items()}
        clients = [
            stack.enter_context(
                AgentClient(link.address, timeout_s=0.1, fallback=Hold(expires_after_s=60.0), record=box)
            )
            for link in links.values()
        ]
        generator, pool = np.random.default_rng(0), stack.enter_context(ThreadPoolExecutor(len(clients)))
        for seed in range(2):
            for client in clients:
                client.reset(seed, sample=True)
            for step in range(40):
                if step == 15:
                    kill[seed]()
                late += sum(pool.map(fails, clients, generator.normal(size=(len(clients), 18)).astype(np.float32)))
    return late


def test_a_fleet_in_trouble_comes_out_bit_for_bit(tmp_path: Path) -> None:
    bundle, out, box = load_bundle(SHIPPED_BUNDLE), tmp_path / "endpoints.json", tmp_path / "box"
    with fleet_process(bundle, out, "--record", str(box)) as fleet:
        wait_for(out.exists, "starting the fleet")
        addresses = json.loads(out.read_text())["agents"]
        own = subprocess.run(["pgrep", "-P", str(fleet.pid)], capture_output=True, text=True, check=True)
        members = [int(pid) for pid in own.stdout.split()]

        def killed(index: int) -> Any:
            return lambda: os.kill(members[index], signal.SIGKILL)

        late = play_in_trouble(addresses, box, [killed(0), killed(1)])
        time.sleep(0.5)
    assert late > 0
    assert sorted(path.name for path in box.iterdir()) == sorted(
        name + side for name in addresses for side in ("", ".client")
    )
    report = run_again(box, bundle)
    assert report.differences == []
    assert report.differing_bytes == 0
    assert report.compared > 50
    assert report.skipped[NO_REPLY] == late
    done = replay(box, "--bundle", bundle.path)
    assert done.returncode == 0, done.stderr
    assert f"the same: {report.compared} acts run again" in done.stdout
    assert "was not finished" in done.stdout  # those of the killed
    beside = laid_beside(open_recording(box))
    assert beside is not None
    assert beside.same
    assert beside.in_time > 0
    assert beside.acts <= beside.in_time + beside.late + beside.not_received
    assert beside.late > 0  # the links are slower than the clients wait
    assert beside.there_us["p50"] > 10_000  # the links' delay


def test_a_client_for_asyncio_records_too(tmp_path: Path, toy: Bundle) -> None:
    box = tmp_path / "box"

    async def play(address: str) -> None:
        async with AsyncAgentClient(address, record=RecordSettings(box, flush_s=0.1)) as client:
            await client.reset(5, sample=True)
            generator = np.random.default_rng(0)
            for _ in range(25):
                await client.act(*given(generator))

    with AgentProcess(toy.path, "agent_1") as process:
        asyncio.run(play(process.address))
    report = run_again(box, toy)
    assert (report.acts, report.compared, report.differing_bytes) == (25, 25, 0)


@pytest.mark.parametrize("plain", [False, True])
def test_each_file_of_a_client_can_be_run_alone(tmp_path: Path, toy: Bundle, plain: bool) -> None:
    """Of a recurrent policy from the next episode on: a client is not told the state."""
    bundle = write_toy_bundle(tmp_path / "bundle", plain=True) if plain else toy
    box, episodes, steps = tmp_path / "box", 4, 60
    record = RecordSettings(box, total_mb=10.0, file_mb=0.005, flush_s=0.02)
    with AgentProcess(bundle.path, "agent_0") as process, AgentClient(process.address, record=record) as client:
        generator = np.random.default_rng(0)
        for seed in range(episodes):
            client.reset(seed, sample=True)
            for step in range(steps):
                observation, mask = given(generator)
                client.act(observation, None if plain else mask)
                if step % 20 == 19:
                    time.sleep(0.06)
    files = open_recording(box)
    assert len(files) >= 3
    report = run_again(box, bundle)
    assert (report.acts, report.compared, report.differing_bytes) == (episodes * steps, episodes * steps, 0)
    described = [entry.message for entry in entries(box) if isinstance(entry.message, pb.Episode)]
    going_on = [episode for episode in described if episode.goes_on]
    assert going_on
    assert all(episode.states_lost is not plain and not episode.states for episode in going_on)
    for file in files:
        alone = run_again(file.path, bundle)
        assert alone.same
        assert alone.compared == alone.acts - alone.skipped[UNKNOWN_STATE]
        first, second = (entry.message for entry in entries(file.path)[:2])
        assert (alone.skipped[UNKNOWN_STATE] > 0) == (not plain and first.goes_on and isinstance(second, pb.Act))
    assert json.loads(replay(files[1].path, "--bundle", bundle.path, "--json").stdout)["same"]


def test_an_agent_that_comes_back_with_another_bundle_is_run_again_on_both(tmp_path: Path, toy: Bundle) -> None:
    """Both are of recurrent policies, with states of other sizes; both sides are recorded."""
    other, box = write_toy_bundle(tmp_path / "other", sizes=(8, 16)), tmp_path / "box"
    options, generator = ("--record", str(box)), np.random.default_rng(0)
    with AgentProcess(toy.path, "agent_0", options=options) as first:
        fallback = Hold(expires_after_s=60.0)
        with AgentClient(first.address, record=box, allow_bundle_change=True, fallback=fallback) as client:
            client.reset(7, sample=True)
            for _ in range(20):
                assert client.act(*given(generator)).fresh
            time.sleep(0.6)  # longer than a flush takes
            first.kill()
            assert not client.act(*given(generator)).fresh
            with AgentProcess(other.path, "agent_0", listen=first.address, options=options) as second:
                wait_for(lambda: client.act(*given(generator)).fresh, "joining again")
                for _ in range(20):
                    assert client.act(*given(generator)).fresh
                second.process.terminate()
                second.process.wait(20)
            assert (client.info.bundle_sha256, client.statistics.rejoins) == (other.sha256, 1)
            statistics = client.statistics
    report = run_again(box, toy, other)
    assert (report.differing_acts, report.differing_bytes) == (0, 0)
    assert report.compared == 2 * statistics.fresh == 82
    mine = [entry.message for entry in entries(box / "agent_0.client")]
    episodes = [message for message in mine if isinstance(message, pb.Episode)]
    assert [episode.bundle_sha256 for episode in episodes] == [toy.sha256, other.sha256]
    assert 20 < episodes[1].start.first_step <= statistics.acts - 21
    ends = [message for message in mine if isinstance(message, pb.End)]
    assert [(end.steps, end.reason) for end in ends] == [(statistics.acts - 21, "replaced"), (21, "ended")]
    done = replay(box, "--bundle", toy.path, "--bundle", other.path, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["beside"]["in_time"] == statistics.fresh


def test_without_the_extra_one_line_says_so(tmp_path: Path, toy: Bundle) -> None:
    hidden = "import sys; sys.modules['mcap'] = None\n"
    for module, words in (
        ("hmarl.runtime.commands.agent", [str(toy.path), "--agent", "agent_0", "--record", str(tmp_path / "box")]),
        ("hmarl.runtime.commands.fleet", [str(toy.path), "--record", str(tmp_path / "box")]),
        ("hmarl.sdk.commands.replay", [str(tmp_path), "--bundle", str(toy.path)]),
    ):
        code = f"{hidden}import runpy; sys.argv[1:] = {words!r}; runpy.run_module({module!r}, run_name='__main__')"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 2, done.stderr
        (line,) = done.stderr.splitlines()
        assert line.endswith("recording and replaying needs the package 'mcap': pip install 'hmarl[record]'")
    assert not (tmp_path / "box").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["{box}"], 2, "--bundle: got none"),
        (["{box}/none", "--bundle", "{toy}"], 3, "got no such file or folder"),
        (["{box}", "--bundle", "{toy}"], 3, "got a folder without any *.mcap"),
        (["{toy}/manifest.json", "--bundle", "{toy}"], 3, "got no MCAP file"),
        (["{box}", "--bundle", "{box}"], 3, "got a folder without any *.mcap"),
    ],
)
def test_wrong_use_of_replay_is_one_line(tmp_path: Path, toy: Bundle, words: list[str], code: int, said: str) -> None:
    done = replay(*(word.format(box=tmp_path, toy=toy.path) for word in words))
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    assert said in line


def test_a_folder_that_cannot_be_one_is_refused_at_once(tmp_path: Path, toy: Bundle) -> None:
    (tmp_path / "box").write_text("")
    command = [sys.executable, "-m", "hmarl.runtime.commands.agent", str(toy.path), "--agent", "agent_0"]
    done = subprocess.run(
        [*command, "--record", str(tmp_path / "box")], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "--record: " in done.stderr
    assert "cannot be made a folder" in done.stderr
