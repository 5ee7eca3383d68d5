"""What a black box holds of sessions in this process, and that it comes out bit for bit when it is run again."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from mcap.reader import make_reader
from mcap_protobuf.decoder import DecoderFactory

from fragile_bundle import write_fragile_bundle
from hmarl.agent.v1.tensors import to_array
from hmarl.recording.v1 import recording_pb2 as pb
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.errors import NonFiniteError, ObservationError, RecordingError, StepOrderError
from hmarl.runtime.recording.agent import AgentRecorder
from hmarl.runtime.recording.reader import open_recording
from hmarl.runtime.recording.recorder import session_digest
from hmarl.runtime.recording.replay import AFTER_GAP
from hmarl.runtime.recording.settings import RecordSettings
from hmarl.runtime.registry import SessionRegistry
from hmarl.runtime.session import Policy, PolicySession
from recorded import entries, inputs, recorded, run_again
from toy_bundle import ActionType, write_toy_bundle


def play(session: PolicySession, steps: int, seed: int = 0) -> list[object]:
    """Actions for observations that follow from a seed."""
    generator = np.random.default_rng(seed)
    return [session.act(*inputs(session.policy, generator)).action for _ in range(steps)]


def acts(path: Path) -> list[pb.Act]:
    return [entry.message for entry in entries(path) if isinstance(entry.message, pb.Act)]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_toy_bundle(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("action", ["discrete", "multi_discrete", "box"])
def test_every_kind_of_policy_comes_out_the_same(tmp_path: Path, action: ActionType, plain: bool) -> None:
    bundle = write_toy_bundle(tmp_path / "bundle", action=action, plain=plain)
    with recorded(bundle, tmp_path / "box") as policy:
        for seed, (sample, choice) in enumerate([(False, None), (True, None), (True, "sample"), (False, "common")]):
            session = policy.session()
            session.reset(seed, sample=sample, instruction_choice=None if plain else choice, first_step=5 * seed)
            generator = np.random.default_rng(seed)
            for step in (0, 1, 2, 5, 5, 6):  # a gap and a repeat
                if step != 5 or session.steps < 4:
                    given = inputs(policy, generator)
                session.act(*given, step=5 * seed + step)
    report = run_again(tmp_path / "box", bundle)
    assert (report.episodes, report.acts, report.compared) == (4, 24, 24)
    assert (report.differing_acts, report.differing_bytes, report.differences) == (0, 0, [])
    outputs = 1 if plain else 4
    assert report.compared_bytes >= 24 * 8 * outputs


def test_what_is_recorded_is_what_was_given_and_done(tmp_path: Path, toy: Bundle) -> None:
    before = time.time_ns()
    with recorded(toy, tmp_path) as policy:
        session = policy.session()
        session.reset(7, sample=True, instruction_choice="sample", first_step=3)
        session.named("an id that lets in")
        generator = np.random.default_rng(1)
        given = [inputs(policy, generator) for _ in range(3)]
        done = [session.act(*each) for each in given]
        session.end()
    found = entries(tmp_path)
    episode = found[0].message
    assert isinstance(episode, pb.Episode)
    start = episode.start
    assert (start.seed, start.sample, start.instruction_choice, start.first_step) == (7, True, 2, 3)
    assert (episode.agent_id, episode.bundle_sha256, episode.goes_on) == ("agent_0", toy.sha256, False)
    assert episode.session == session_digest("an id that lets in")
    assert [entry.topic for entry in found] == [
        f"/agent/agent_0/{name}" for name in ("episodes", *["acts"] * 3, "ends")
    ]
    for act, (observation, mask), action in zip(acts(tmp_path), given, done, strict=True):
        assert act.request.session_id == ""
        assert to_array(act.request.observation, "").tobytes() == observation.tobytes()
        assert to_array(act.request.action_mask, "").tolist() == mask.tolist()
        assert to_array(act.response.action, "").item() == action.action
        logits = to_array(act.response.diagnostics["action_logits"], "")
        assert logits.tobytes() == action.diagnostics["action_logits"].tobytes()
        assert before <= act.wall_ns <= time.time_ns()
        assert 0 < act.latency_us < 1e7
    end = found[-1].message
    assert isinstance(end, pb.End)
    assert (end.steps, end.missed_steps, end.reason) == (3, 0, "ended")
    assert found[0].file.bundles[toy.sha256]["name"] == "toy"


def test_refusals_are_recorded_and_come_out_the_same(tmp_path: Path) -> None:
    fragile = write_fragile_bundle(tmp_path / "bundle", "discrete", "next_state")
    with recorded(fragile, tmp_path / "box") as policy:
        session = policy.session()
        session.reset(0)
        observation, mask = inputs(policy, np.random.default_rng(0))
        session.act(observation, mask)
        with pytest.raises(ObservationError, match="finite"):
            session.act(np.full(6, np.nan, np.float32), mask)
        with pytest.raises(ObservationError, match="no legal action"):
            session.act(observation, np.zeros(5, bool))
        with pytest.raises(ObservationError, match="float64"):
            session.act(observation.astype(np.float64), mask)
        with pytest.raises(StepOrderError):
            session.act(observation * 2, mask, step=0)
        with pytest.raises(NonFiniteError):
            session.act(np.full(6, 2e30, np.float32), mask)
        session.act(observation, mask)
    kinds = [act.refusal.kind for act in acts(tmp_path / "box")]
    assert kinds == [
        "",
        "ObservationError",
        "ObservationError",
        "ObservationError",
        "StepOrderError",
        "NonFiniteError",
        "",
    ]
    report = run_again(tmp_path / "box", fragile)
    assert report.differences == []
    assert (report.acts, report.compared) == (7, 6)  # what has another dtype is not recorded


def test_one_changed_weight_is_named_at_its_first_differing_step(tmp_path: Path) -> None:
    import onnx  # noqa: PLC0415
    from onnx import numpy_helper  # noqa: PLC0415

    from hmarl.runtime.bundle import write_bundle  # noqa: PLC0415
    from toy_bundle import toy_agent, toy_graph, toy_manifest  # noqa: PLC0415

    shape = {"observation_size": 6, "action": "discrete", "sizes": (8,), "plain": True}
    graph = onnx.load_model_from_string(toy_graph(**shape))
    manifest = toy_manifest([toy_agent("agent_0", **shape)])
    bundles = []
    for name, change in (("before", 0.0), ("after", 0.05)):
        weight = numpy_helper.to_array(graph.graph.initializer[0]).copy()
        weight.flat[3] += np.float32(change)
        graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, graph.graph.initializer[0].name))
        files = {"agents/agent_0.onnx": graph.SerializeToString()}
        bundles.append(write_bundle(tmp_path / name, manifest, files))
    with recorded(bundles[0], tmp_path / "box") as policy:
        session = policy.session()
        session.reset(11)
        then = play(session, 300)
    now = Policy(bundles[1], "agent_0").session()
    now.reset(11)
    first = next(step for step, (a, b) in enumerate(zip(then, play(now, 300), strict=True)) if a != b)
    assert first > 0
    with pytest.raises(RecordingError, match=f"got bundle {bundles[1].sha256}, expected {bundles[0].sha256}"):
        run_again(tmp_path / "box", bundles[1])
    report = run_again(tmp_path / "box", bundles[1], any_bundle=True)
    difference = report.differences[0]
    assert (difference.step, difference.field, difference.seed) == (first, "action", 11)
    assert difference.recorded == str(then[first])
    assert not report.same


def test_a_recurrent_state_that_differs_is_named_with_its_largest_difference(tmp_path: Path, toy: Bundle) -> None:
    with recorded(toy, tmp_path) as policy:
        session = policy.session()
        session.reset(0)
        play(session, 2)
        session.reset(0, states={"state": np.zeros(8, np.float32)})
        play(session, 2)
    assert run_again(tmp_path, toy).same
    other = write_toy_bundle(tmp_path / "other", agents=("agent_0",), sizes=(8,), observation_size=6, action="discrete")
    assert other.sha256 != toy.sha256  # of one agent, but with the same weights
    assert run_again(tmp_path, other, any_bundle=True).same


def test_sessions_of_several_threads_come_out_the_same(tmp_path: Path, toy: Bundle) -> None:
    with recorded(toy, tmp_path) as policy:

        def one(seed: int) -> None:
            session = policy.session()
            for episode in range(3):
                session.reset(seed + 10 * episode, sample=True)
                play(session, 40, seed)

        threads = [threading.Thread(target=one, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    report = run_again(tmp_path, toy)
    assert (report.episodes, report.compared, report.differing_bytes) == (12, 480, 0)


def test_files_are_bounded_and_each_can_be_run_alone(tmp_path: Path, toy: Bundle) -> None:
    """Also sessions that began long before the oldest file that is left."""
    with recorded(toy, tmp_path, total_mb=0.2, file_mb=0.02, flush_s=0.02) as policy:
        session = policy.session()
        session.reset(3, sample=True)
        for part in range(30):
            play(session, 50, part)
            time.sleep(0.02)
    files = sorted((tmp_path / "agent_0").iterdir())
    assert sum(file.stat().st_size for file in files) <= 0.25 * 2**20
    assert len(files) >= 3
    first = entries(files[0])[0].message
    assert isinstance(first, pb.Episode)
    assert first.goes_on
    assert first.start.first_step > 0
    for file in files:
        report = run_again(file, toy)
        assert (report.compared, report.differing_bytes) == (report.acts, 0)
        assert report.acts > 0
    assert run_again(tmp_path, toy).compared == sum(run_again(file, toy).compared for file in files)


def test_old_files_are_deleted_also_when_nothing_is_recorded(tmp_path: Path, toy: Bundle) -> None:
    with recorded(toy, tmp_path, keep_s=0.8, flush_s=0.05) as policy:
        session = policy.session()
        session.reset(0)
        play(session, 5)
        deadline = time.monotonic() + 30
        while not list((tmp_path / "agent_0").glob("*.mcap")):
            assert time.monotonic() < deadline
        while list((tmp_path / "agent_0").glob("*.mcap")):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_only_their_owner_can_read_files_and_no_session_id_is_in_them(tmp_path: Path, toy: Bundle) -> None:
    with recorded(toy, tmp_path) as policy:
        registry = SessionRegistry(policy, 10, 60.0)
        session = policy.session()
        session.reset(1)
        session_id = registry.add(session)
        play(session, 3)
        registry.own().act(*inputs(policy, np.random.default_rng(0)))  # the process's own probe
        registry.remove(session_id)
    (file,) = (tmp_path / "agent_0").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    messages = [entry.message for entry in entries(tmp_path)]
    assert session_id.encode() not in b"".join(message.SerializeToString() for message in messages)
    episodes = [message for message in messages if isinstance(message, pb.Episode)]
    assert [episode.session for episode in episodes] == [session_digest(session_id)]
    assert [message.reason for message in messages if isinstance(message, pb.End)] == ["ended"]


def test_what_comes_faster_than_it_is_written_is_counted_and_the_rest_comes_out_the_same(
    tmp_path: Path, toy: Bundle
) -> None:
    """And a recurrent policy is taken up again after the gap."""
    with recorded(toy, tmp_path, queue_mb=0.0, flush_s=2.0) as policy:  # 64 records may wait
        session = policy.session()
        session.reset(5, sample=True)
        play(session, 100)
        time.sleep(1.5)
        play(session, 30, 1)
    report = run_again(tmp_path, toy)
    assert (report.acts, report.missing) == (94, 36)
    assert (report.compared, report.skipped) == (93, {AFTER_GAP: 1})
    assert report.differing_bytes == 0
    gap = next(entry.message for entry in entries(tmp_path) if isinstance(entry.message, pb.Gap))
    assert (gap.acts, gap.first_step, gap.last_step) == (36, 64, 99)


def test_the_library_s_own_reader_reads_it(tmp_path: Path, toy: Bundle) -> None:
    with recorded(toy, tmp_path) as policy:
        session = policy.session()
        session.reset(0)
        play(session, 5)
    (file,) = (tmp_path / "agent_0").iterdir()
    with file.open("rb") as stream:
        reader = make_reader(stream, validate_crcs=True, decoder_factories=[DecoderFactory()])
        found = list(reader.iter_decoded_messages())
        summary = reader.get_summary()
        metadata = {each.name: each.metadata for each in reader.iter_metadata()}
    assert [decoded.channel.topic for decoded in found] == ["/agent/agent_0/episodes", *["/agent/agent_0/acts"] * 5]
    assert [decoded.decoded_message.request.step for decoded in found[1:]] == [0, 1, 2, 3, 4]
    assert found[1].schema.name == "hmarl.recording.v1.Act"
    assert summary is not None
    assert summary.statistics.message_count == 6
    assert metadata["hmarl.recorder"]["agent_id"] == "agent_0"
    assert f"hmarl.bundle.{toy.sha256}" in metadata


def test_a_file_that_was_cut_anywhere_is_read_up_to_its_last_whole_chunk(tmp_path: Path, toy: Bundle) -> None:
    with recorded(toy, tmp_path / "box", flush_s=0.04) as policy:
        session = policy.session()
        session.reset(0)
        for part in range(6):
            play(session, 5, part)
            time.sleep(0.06)
    (file,) = (tmp_path / "box" / "agent_0").iterdir()
    whole, counts = file.read_bytes(), []
    cut = tmp_path / "cut.mcap"
    for size in range(8, len(whole), 97):
        cut.write_bytes(whole[:size])
        counts.append(len(acts(cut)))
    assert run_again(cut, toy).compared == counts[-1]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == 30
    assert len(set(counts)) >= 4  # several chunks


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"no recording", "got no MCAP file"),
        (lambda data: data[:-400] + bytes(8) + data[-392:], None),  # in the index, which is not needed
        (lambda data: data[: len(data) // 2] + bytes(40) + data[len(data) // 2 + 40 :], "damaged at byte"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(
    tmp_path: Path, toy: Bundle, change: object, message: str | None
) -> None:
    with recorded(toy, tmp_path / "box", flush_s=0.04) as policy:
        session = policy.session()
        session.reset(0)
        play(session, 200)
    (file,) = (tmp_path / "box" / "agent_0").iterdir()
    file.write_bytes(change(file.read_bytes()))  # type: ignore[operator]
    if message is None:
        assert run_again(file, toy).compared == 200
        return
    with pytest.raises(RecordingError, match=message) as caught:
        run_again(file, toy)
    assert "\n" not in str(caught.value)


def test_another_bundle_of_a_reload_is_recorded_with_its_sessions(tmp_path: Path, toy: Bundle) -> None:
    other = write_toy_bundle(tmp_path / "other", sizes=(8, 8))
    with recorded(toy, tmp_path / "box") as policy:
        registry = SessionRegistry(policy, 10, 60.0)
        first = registry.policy.session()
        first.reset(1)
        play(first, 3)
        registry.switch(Policy(other, "agent_0"))
        second = registry.policy.session()
        second.reset(1)
        play(second, 3)
        play(first, 3, 1)
    report = run_again(tmp_path / "box", toy, other)
    assert (report.episodes, report.compared, report.differing_bytes) == (2, 9, 0)
    with pytest.raises(RecordingError, match=f"expected {other.sha256} \\('toy'\\)"):
        run_again(tmp_path / "box", toy)


def test_an_episode_without_acts_is_recorded_only_when_it_was_ended(tmp_path: Path, toy: Bundle) -> None:
    """Whoever starts episodes, and nothing else, fills no disk."""
    with recorded(toy, tmp_path) as policy:
        registry = SessionRegistry(policy, 1, 60.0)
        for seed in range(3):
            session = policy.session()
            session.reset(seed)
            registry.add(session, session_id="one")  # which ends the one before
        registry.remove("one")
    messages = [entry.message for entry in entries(tmp_path)]
    assert [message.start.seed for message in messages if isinstance(message, pb.Episode)] == [2]
    assert [message.reason for message in messages if isinstance(message, pb.End)] == ["ended"]


def test_an_agent_s_id_need_not_be_a_file_name(tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "bundle", agents=("a/b", "a_b", "…/.."))
    for agent_id in ("a/b", "a_b", "…/.."):
        with recorded(bundle, tmp_path / "box", agent_id) as policy:
            session = policy.session()
            session.reset(0)
            play(session, 2)
    assert len(list((tmp_path / "box").iterdir())) == 3
    assert run_again(tmp_path / "box", bundle).compared == 6


def test_an_act_waits_for_nothing_while_files_cannot_be_written(tmp_path: Path, toy: Bundle) -> None:
    """Its folder is gone; recording goes on once it is there again, and says what is missing."""
    policy = Policy(toy, "agent_0")
    recorder = AgentRecorder(RecordSettings(tmp_path / "box", flush_s=0.02), policy.agent)
    policy.observer = recorder
    shutil.rmtree(tmp_path / "box")
    session = policy.session()
    session.reset(0)
    play(session, 50)
    time.sleep(0.3)
    assert len(play(session, 50, 1)) == 100 - 50
    recorder.close()


def test_an_agent_that_was_not_trained_is_run_again_by_the_graph_it_acts_by(tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "bundle", interchangeable=("agent",))
    with recorded(bundle, tmp_path / "box", "agent_7", like="agent_0") as policy:
        session = policy.session()
        session.reset(2, sample=True)
        play(session, 10)
    report = run_again(tmp_path / "box", bundle)
    assert (report.compared, report.differing_bytes) == (10, 0)


FORKING = """
import os, sys
from pathlib import Path
import numpy as np
from hmarl.runtime.bundle import load_bundle
from recorded import inputs, recorded

with recorded(load_bundle(Path(sys.argv[1])), Path(sys.argv[2]), flush_s=0.02) as policy:
    session, generator = policy.session(), np.random.default_rng(0)
    session.reset(2)
    for _ in range(3):
        for _ in range(20):
            session.act(*inputs(policy, generator))
        if (child := os.fork()) == 0:
            sys.exit(0)  # with all that an interpreter does at its end
        os.waitpid(child, 0)
"""


def test_a_fork_writes_nothing_to_the_file(tmp_path: Path, toy: Bundle) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", FORKING, str(toy.path), str(tmp_path / "box")]
    subprocess.run(command, env=environment, check=True, timeout=120)
    report = run_again(tmp_path / "box", toy)
    assert (report.compared, report.differing_bytes) == (60, 0)


def test_an_empty_recording_is_none(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="without any"):
        open_recording(tmp_path)
    with pytest.raises(RecordingError, match="no such file"):
        open_recording(tmp_path / "none")
