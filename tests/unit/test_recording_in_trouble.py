"""Black boxes in trouble: records that cannot be made, disks that are full, clocks that jump."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmarl.agent.v1 import agent_pb2
from hmarl.recording.v1 import recording_pb2 as pb
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.errors import StepOrderError, UsageError
from hmarl.runtime.recording.box_files import BoxFiles
from hmarl.runtime.recording.kept_files import KeptFiles
from hmarl.runtime.recording.library import MAGIC
from hmarl.runtime.recording.reader import BoxFile, open_recording
from hmarl.runtime.recording.recorder import AGENT, CLIENT, LARGEST_ACT_BYTES, UNMADE, RecordedEpisode, Recorder
from hmarl.runtime.recording.replay import AFTER_GAP, BEFORE_FILE, NO_INPUTS, NO_REPLY, UNKNOWN_STATE, Replayer
from hmarl.runtime.recording.settings import RecordSettings
from hmarl.sdk.commands.replay import main
from processes import wait_for
from recorded import entries, inputs, recorded, run_again
from small_disk import fill, small_disk
from toy_bundle import write_toy_bundle

LAST_STEP = 2**64 - 1


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_toy_bundle(tmp_path_factory.mktemp("toy") / "bundle")


def messages(path: Path, kind: type[Any]) -> list[Any]:
    return [entry.message for entry in entries(path) if isinstance(entry.message, kind)]


def files_of(box: Path) -> list[Path]:
    return sorted(box.rglob("*.mcap"))


def begun(recorder: Recorder) -> RecordedEpisode:
    return recorder.episode("sha256", agent_pb2.StartEpisodeRequest(), {}, [], lambda: {"sha256": "sha256"})


def play(bundle: Bundle, box: Path, steps: int, **settings: Any) -> None:
    """Steps of one session, as fast as they are written."""
    with recorded(bundle, box, **settings) as policy:
        session, generator = policy.session(), np.random.default_rng(0)
        session.reset(0)
        for step in range(steps):
            session.act(*inputs(policy, generator))
            if step % 50 == 49:
                time.sleep(0.03)


class Clock:
    """A time of day that jumps, beside seconds that do not."""

    def __init__(self, wall_s: float) -> None:
        self.now, self.jump_s, self._begin_s = 1000.0, 0.0, wall_s

    def pass_s(self, seconds: float) -> None:
        self.now += seconds

    def now_s(self) -> float:
        return self.now

    def wall_s(self) -> float:
        return self._begin_s + self.now - 1000.0 + self.jump_s


def kept_files(folder: Path, clock: Clock, total_bytes: int = 2**30) -> KeptFiles:
    """For 100 s."""
    return KeptFiles(folder, total_bytes, 100.0, clock.now_s, clock.wall_s)


def write(kept: KeptFiles, clock: Clock, content: bytes) -> Path:
    path = kept.next_path("agent_0", "20261130T000000-7")
    path.write_bytes(content)
    os.utime(path, (clock.wall_s(), clock.wall_s()))
    return path


@contextmanager
def recorder_of(box: Path, **settings: Any) -> Iterator[Recorder]:
    recorder = Recorder(RecordSettings(box, **settings), AGENT, "agent_0", {}, 64)
    try:
        yield recorder
    finally:
        recorder.close()


def test_a_session_at_the_last_step_there_is_costs_no_other_session_a_record(tmp_path: Path, toy: Bundle) -> None:
    """Its acts go over several files, each of which says what it expects next."""
    with recorded(toy, tmp_path / "box", total_mb=10.0, file_mb=0.02, flush_s=0.02) as policy:
        generator = np.random.default_rng(0)
        last, other = policy.session(), policy.session()
        last.reset(1, first_step=LAST_STEP)
        other.reset(2, sample=True)
        given = inputs(policy, generator)
        last.act(*given)
        for _ in range(20):
            assert last.act(*given, step=LAST_STEP).replayed
            with pytest.raises(StepOrderError):
                last.act(*inputs(policy, generator), step=3)
            for _ in range(10):
                other.act(*inputs(policy, generator))
            time.sleep(0.02)
    files = files_of(tmp_path / "box")
    assert len(files) >= 3
    assert messages(tmp_path / "box", pb.Gap) == []
    report = run_again(tmp_path / "box", toy)
    assert (report.acts, report.compared, report.differing_bytes) == (241, 241, 0)
    for file in files[1:]:
        alone = run_again(file, toy)
        assert alone.same
        assert alone.compared == alone.acts - alone.skipped[BEFORE_FILE]
        assert alone.compared > 0


def test_an_episode_is_taken_up_after_a_gap_before_the_last_step_there_is(tmp_path: Path, toy: Bundle) -> None:
    """An agent's recording, whose first act is gone."""
    with recorded(toy, tmp_path / "box") as policy:
        session = policy.session()
        session.reset(1, first_step=LAST_STEP - 1)
        generator = np.random.default_rng(0)
        given = [inputs(policy, generator) for _ in range(2)]
        session.act(*given[0])
        session.act(*given[1])
        session.act(*given[1], step=LAST_STEP)
    found = [entry for entry in entries(tmp_path / "box") if getattr(entry.message, "sequence", 1) != 0]
    found[0].message.states_lost = True
    report = Replayer([toy]).run(found)
    assert (report.acts, report.compared, report.same) == (2, 0, True)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: pb.Act(request=agent_pb2.ActRequest(step=2**64)), "out of range"),
        (lambda: pb.Act(refusal=pb.Refusal(message="x" * (LARGEST_ACT_BYTES + 2**21))), "bytes, expected at most"),
    ],
)
def test_a_record_that_cannot_be_made_costs_itself_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, make: Any, reason: str
) -> None:
    with recorder_of(tmp_path) as recorder:
        good, bad = begun(recorder), begun(recorder)
        for step in range(30):
            recorder.act(good, step, lambda step: pb.Act(request=agent_pb2.ActRequest(step=step)), (step,))
            if step % 10 == 5:
                recorder.act(bad, step, make, ())
        recorder.act(bad, 30, lambda: pb.Act(request=agent_pb2.ActRequest(step=30)), ())
        wait_for(lambda: files_of(tmp_path) and sum(gap.acts for gap in messages(tmp_path, pb.Gap)) == 3, "writing")
    assert len(files_of(tmp_path)) == 1
    acts = messages(tmp_path, pb.Act)
    assert [act.request.step for act in acts] == [*range(30), 30]
    assert acts[-1].sequence == 3
    gaps = messages(tmp_path, pb.Gap)  # one or more, as they are written
    assert {(gap.episode, gap.reason) for gap in gaps} == {(2, UNMADE)}
    assert (sum(gap.acts for gap in gaps), gaps[0].first_step, gaps[-1].last_step) == (3, 5, 25)
    assert reason in caplog.text


def test_a_path_that_is_no_text_keeps_nothing_from_being_recorded(tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / os.fsdecode(b"bundle-\xff"))
    with recorded(bundle, tmp_path / "box") as policy:
        session = policy.session()
        session.reset(0)
        session.act(*inputs(policy, np.random.default_rng(0)))
    report = run_again(tmp_path / "box", bundle)
    assert (report.compared, report.missing, report.differing_bytes) == (1, 0, 0)
    assert "bundle-\\udcff" in entries(tmp_path / "box")[0].file.bundles[bundle.sha256]["path"]


def test_a_disk_that_stays_full_leaves_no_file_that_is_none(tmp_path: Path) -> None:
    """Each try begins a file; what was written before and after is read."""
    act = (
        "/agent/agent_0/acts",
        pb.Act,
        pb.Act(refusal=pb.Refusal(message=os.urandom(4000).hex())).SerializeToString(),
        0,
        0,
    )
    with small_disk(tmp_path / "disk") as disk:
        files = BoxFiles(RecordSettings(disk / "box"), "agent_0", {})
        files.write(*act)
        files.flush()
        fill(disk / "filler")
        for _ in range(3):
            with pytest.raises(OSError, match="No space left"):  # noqa: PT012 - either may notice
                for _ in range(3):
                    files.write(*act)
                    files.flush()
            files.abandon()
        assert len(files_of(disk)) == 1
        (disk / "filler").unlink()
        files.write(*act)
        files.close()
        assert len(files_of(disk)) == 2
        assert len(messages(disk, pb.Act)) >= 2


@pytest.mark.parametrize("left", [b"", MAGIC[:5], bytes(8), bytes(5000)])
def test_a_file_of_which_a_power_failure_left_nothing_costs_no_other(
    tmp_path: Path, toy: Bundle, left: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with recorded(toy, tmp_path / "box") as policy:
        session = policy.session()
        session.reset(0)
        session.act(*inputs(policy, np.random.default_rng(0)))
    (file,) = files_of(tmp_path / "box")
    empty = file.with_name("agent_0-20200101T000000-1-000001.mcap")
    empty.write_bytes(left)
    assert main([str(tmp_path / "box"), "--bundle", str(toy.path)]) == 0
    said = capsys.readouterr().out
    assert f"{empty}: was not finished; read up to byte 0," in said
    assert "1 acts run again" in said
    assert run_again(empty, toy).acts == 0


def test_zeros_at_the_end_of_a_file_are_what_was_never_written(tmp_path: Path, toy: Bundle) -> None:
    with recorded(toy, tmp_path / "box") as policy:
        session = policy.session()
        session.reset(0)
        session.act(*inputs(policy, np.random.default_rng(0)))
        deadline = time.monotonic() + 30
        while not (files_of(tmp_path / "box") and messages(tmp_path / "box", pb.Act)):
            assert time.monotonic() < deadline
        flushed = files_of(tmp_path / "box")[0].read_bytes()
    torn = tmp_path / "torn.mcap"
    torn.write_bytes(flushed + bytes(50_000))
    assert run_again(torn, toy).compared == 1
    (file,) = open_recording(torn)
    assert len(list(file.read())) == 2
    assert file.cut_at == len(flushed)


def test_files_of_before_the_clock_was_set_are_not_old(tmp_path: Path, toy: Bundle) -> None:
    """Nor those of a former recorder whose clock began with 1970, or was a year ahead; those that are old are."""
    play(toy, tmp_path / "box", 4)
    (file,) = files_of(tmp_path / "box")
    now = time.time()
    for number, changed_s in enumerate((60.0, now + 365 * 86400.0, now - 6 * 86400.0, now - 8 * 86400.0)):
        other = file.with_name(f"agent_0-20200101T000000-7-{number:06}.mcap")
        shutil.copy(file, other)
        os.utime(other, (changed_s, changed_s))
    play(toy, tmp_path / "box", 4)
    left = files_of(tmp_path / "box")
    assert [path.name[-11:-5] for path in left[:3]] == ["000000", "000001", "000002"]
    assert len(left) == 5
    ages_s = [time.time() - path.stat().st_mtime for path in left]
    assert ages_s == pytest.approx([0.0, 0.0, 6 * 86400.0, 0.0, 0.0], abs=60.0)  # for who comes next


def test_what_was_written_last_stays_whatever_time_of_day_the_files_bear(tmp_path: Path, toy: Bundle) -> None:
    """The clock was a year ahead, and is right again: the first files go, by the order in which they were written."""
    settings = {"total_mb": 0.2, "file_mb": 0.02, "flush_s": 0.02}
    play(toy, tmp_path / "box", 400, **settings)
    first = files_of(tmp_path / "box")
    for file in first:
        os.utime(file, (time.time() + 365 * 86400.0,) * 2)
    play(toy, tmp_path / "box", 1500, **settings)
    left = files_of(tmp_path / "box")
    assert set(left) - set(first) == set(left[-len(set(left) - set(first)) :])
    assert sum(file.stat().st_size for file in set(left) - set(first)) > 0.12 * 2**20
    assert len(set(left) & set(first)) < len(first)
    acts = messages(tmp_path / "box", pb.Act)
    assert acts[-1].sequence == 1499
    assert sum(file.stat().st_size for file in left) <= 0.25 * 2**20


@pytest.mark.parametrize("jump_s", [56 * 365 * 86400.0, -365 * 86400.0])
@pytest.mark.parametrize("begin_s", [60.0, 1.8e9])
def test_no_jump_of_the_clock_makes_a_file_old(tmp_path: Path, jump_s: float, begin_s: float) -> None:
    """Not for a recorder that goes on, nor for one that is started then; and old files go after all."""
    clock = Clock(begin_s)
    kept = kept_files(tmp_path, clock)
    files = []
    for _ in range(3):
        files.append(write(kept, clock, b"content"))
        kept.keep_bounds(None)
        clock.pass_s(20.0)
    clock.jump_s += jump_s if begin_s + jump_s > 0 else 0.0
    kept.keep_bounds(None)
    clock.pass_s(30.0)
    later = kept_files(tmp_path, clock)
    for each in (kept, later):
        each.keep_bounds(None)
        assert files_of(tmp_path) == files
    clock.pass_s(25.0)  # the first is 115 s old now, the second 95
    kept.keep_bounds(None)
    assert files_of(tmp_path) == files[1:]
    clock.pass_s(20.0)
    if clock.wall_s() > 1.7e9:  # a former recorder's file is judged where the clock is set
        later.keep_bounds(None)
        assert files_of(tmp_path) == files[2:]


def test_a_clock_that_is_not_set_yet_judges_no_file(tmp_path: Path) -> None:
    """A machine starts without a clock: once it is told the time, what was recorded before is as old as it is."""
    clock = Clock(1.8e9)
    kept = kept_files(tmp_path, clock)
    old = write(kept, clock, b"content")
    clock.pass_s(150.0)
    young = write(kept, clock, b"content")
    clock.jump_s = -1.8e9
    kept = kept_files(tmp_path, clock)
    kept.keep_bounds(None)
    assert files_of(tmp_path) == [old, young]
    clock.jump_s = 0.0
    kept.keep_bounds(None)
    assert files_of(tmp_path) == [young]


def test_a_file_that_goes_on_changing_is_not_old(tmp_path: Path) -> None:
    clock = Clock(1.8e9)
    kept = kept_files(tmp_path, clock)
    file = write(kept, clock, b"")
    for size in range(5):
        clock.pass_s(90.0)
        file.write_bytes(bytes(size))  # by another process
        kept.keep_bounds(None)
    assert file.exists()
    clock.pass_s(101.0)
    kept.keep_bounds(None)
    assert not file.exists()


def test_only_files_that_are_recordings_by_their_names_are_deleted(tmp_path: Path) -> None:
    clock = Clock(1.8e9)
    repaired = tmp_path / "agent_0-repaired.mcap"
    repaired.write_bytes(bytes(5000))
    former = tmp_path / "agent_0-20261130T000000-7-000001.mcap"
    former.write_bytes(bytes(500))
    kept = kept_files(tmp_path, clock, total_bytes=1200)
    files = [write(kept, clock, bytes(500)) for _ in range(3)]
    assert open_recording(tmp_path) == [BoxFile(path) for path in (former, repaired, *files)]
    kept.keep_bounds(files[0])
    assert files_of(tmp_path) == [repaired, files[0], files[2]]


def test_a_writer_whose_file_another_one_deleted_goes_on_in_a_new_one(tmp_path: Path, toy: Bundle) -> None:
    with recorded(toy, tmp_path / "box", flush_s=0.02) as policy:
        session, generator = policy.session(), np.random.default_rng(0)
        session.reset(0)
        deadline = time.monotonic() + 30
        while not files_of(tmp_path / "box"):
            session.act(*inputs(policy, generator))
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (first,) = files_of(tmp_path / "box")
        first.unlink()
        while not files_of(tmp_path / "box"):
            session.act(*inputs(policy, generator))
            assert time.monotonic() < deadline
            time.sleep(0.05)
    report = run_again(tmp_path / "box", toy)
    assert (report.same, report.compared) == (True, report.acts)
    assert report.acts > 0


@pytest.mark.parametrize("side", [AGENT, CLIENT])
def test_an_episode_that_cannot_be_taken_up_costs_itself_alone(tmp_path: Path, toy: Bundle, side: str) -> None:
    """As files of clients of 0.2 describe it: with a state that is none. An agent's is taken up at its next act."""
    play(toy, tmp_path / "box", 6)
    play(toy, tmp_path / "box", 6)
    found = entries(tmp_path / "box")
    episode = found[0].message
    assert isinstance(episode, pb.Episode)
    episode.goes_on = True
    episode.states["state"].SetInParent()
    found[0].file.recorder["side"] = side
    if side == CLIENT:
        for entry in found[1:7]:
            entry.message.delivery.fresh = True
    report = Replayer([toy]).run(found)
    skipped = {UNKNOWN_STATE: 6} if side == CLIENT else {AFTER_GAP: 1}
    assert (report.acts, report.skipped, report.differing_acts) == (12, skipped, 0)
    assert report.compared == 12 - sum(skipped.values())


def test_a_state_that_is_not_in_the_recording_costs_its_episode_alone(tmp_path: Path, toy: Bundle) -> None:
    play(toy, tmp_path / "box", 6)
    play(toy, tmp_path / "box", 6)
    found = entries(tmp_path / "box")
    episode = found[0].message
    assert isinstance(episode, pb.Episode)
    episode.goes_on = episode.states_lost = True
    for entry in found[1:7]:
        del entry.message.response.diagnostics["next_state"]
    report = Replayer([toy]).run(found)
    assert (report.compared, report.skipped, report.same) == (6, {AFTER_GAP: 6}, True)


def test_no_step_follows_the_last_one_there_is(tmp_path: Path, toy: Bundle) -> None:
    with recorded(toy, tmp_path / "box") as policy:
        session, generator = policy.session(), np.random.default_rng(0)
        session.reset(1, first_step=LAST_STEP)
        session.act(*inputs(policy, generator))
        for step in (None, LAST_STEP + 1, -1):
            with pytest.raises(UsageError, match=r"step: got .*, expected 0 <= step < 2\*\*64"):
                session.act(*inputs(policy, generator), step=step)
    report = run_again(tmp_path / "box", toy)
    assert (report.acts, report.compared, report.skipped, report.same) == (4, 1, {NO_INPUTS: 3}, True)


@pytest.mark.parametrize("plain", [False, True])
def test_after_a_gap_a_client_does_not_know_the_state(tmp_path: Path, plain: bool) -> None:
    bundle = write_toy_bundle(tmp_path / "bundle", plain=plain)
    play(bundle, tmp_path / "box", 6)
    found = entries(tmp_path / "box")
    found[0].file.recorder["side"] = CLIENT
    for entry in found[1:]:
        entry.message.delivery.fresh = True
    del found[3]
    report = Replayer([bundle]).run(found)
    assert (report.acts, report.same) == (5, True)
    assert report.skipped == ({} if plain else {UNKNOWN_STATE: 3})


@pytest.mark.parametrize("plain", [False, True])
def test_an_act_without_an_answer_that_cannot_be_run_again_costs_its_episode_alone(tmp_path: Path, plain: bool) -> None:
    """What the agent made of it is not known; of a policy without memory that does not matter."""
    bundle = write_toy_bundle(tmp_path / "bundle", plain=plain)
    play(bundle, tmp_path / "box", 6)
    play(bundle, tmp_path / "box", 6)
    found = entries(tmp_path / "box")
    for entry in found:
        entry.file.recorder["side"] = CLIENT
        if isinstance(entry.message, pb.Act):
            entry.message.delivery.fresh = True
    unanswered = found[3].message
    unanswered.delivery.fresh = False
    unanswered.request.ClearField("observation")
    unanswered.refusal.kind = "StaleActionError"
    report = Replayer([bundle]).run(found)
    assert report.same
    assert report.skipped == ({NO_REPLY: 1} if plain else {NO_REPLY: 1, UNKNOWN_STATE: 3})
    assert report.compared == 12 - sum(report.skipped.values())
