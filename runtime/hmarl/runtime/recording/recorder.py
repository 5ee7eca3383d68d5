"""Takes records from threads that must not wait, and writes them from a thread of its own.

An act that is recorded costs copying what it was given and computed, and nothing else: messages are made, and files
written, elsewhere. What comes faster than it can be written is left out, counted, and recorded as a gap.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hmarl.agent.v1 import agent_pb2
from hmarl.recording.v1 import recording_pb2 as pb
from hmarl.runtime.errors import RecordingError, UsageError, one_line
from hmarl.runtime.observing import ENDED
from hmarl.runtime.recording.box_files import BoxFiles
from hmarl.runtime.recording.settings import RecordSettings
from hmarl.runtime.repeats import RepeatLog

LOGGER = logging.getLogger("hmarl.record")
AGENT, CLIENT = SIDES = ("agent", "client")
RECORDER, BUNDLE = "hmarl.recorder", "hmarl.bundle"  # titles of metadata
# Why acts are missing.
OVERFLOW, UNWRITABLE = "more came than could be written", "the disk could not be written to"
UNMADE, FAILED = "no record of them could be made", "recording failed"
LAST_STEP = 2**64 - 1
LARGEST_ACT_BYTES = 2**24  # readers take no larger chunks than twice this
_LARGEST_MESSAGE_BYTES = LARGEST_ACT_BYTES + 2**20
_OVERHEAD_BYTES = 512  # of a record that waits, beside its numbers
_LEAST_WAITING, _MOST_WAITING = 64, 2**16
_RETRY_S = 5.0  # after a disk that was full
_END_LIMIT_S = 1.5
# The interpreter is given up for a moment after so many records: an act that comes meanwhile waits for no more.
_RECORDS_A_TURN = 2
_TURN_S = 0.00002

MakeAct = Callable[..., pb.Act]


def step_after(step: int) -> int:
    """The step that follows one; after the last one there is, that one: it can still be repeated."""
    return min(step + 1, LAST_STEP)


class RecordedEpisode:
    """One episode: what is written of it at the beginning of each file, and how far it has got.

    Args:
        number: which one.
        agent_id: whose.
        bundle_sha256: what it is played on.
        start: as it was asked for.
        states: recurrent state that was given, by input name.
        state_names: input and output name of each state.
        bundle: what the files say of the bundle.
    """

    __slots__ = (
        "_first_step",
        "_next_sequence",
        "_states",
        "agent_id",
        "bundle",
        "bundle_sha256",
        "described_in",
        "monotonic_ns",
        "number",
        "sequence",
        "session",
        "start",
        "state_names",
        "wall_ns",
    )

    def __init__(
        self,
        number: int,
        agent_id: str,
        bundle_sha256: str,
        start: agent_pb2.StartEpisodeRequest,
        states: Mapping[str, agent_pb2.Tensor],
        state_names: Sequence[tuple[str, str]],
        bundle: Callable[[], Mapping[str, str]],
    ) -> None:
        self.number = number
        self.agent_id = agent_id
        self.bundle_sha256 = bundle_sha256
        self.start = start
        self.state_names = state_names
        self.bundle = bundle
        self.session = ""
        self.monotonic_ns, self.wall_ns = time.monotonic_ns(), time.time_ns()
        self.sequence = 0  # of the next act; counted by whoever acts
        self.described_in = 0  # which file; this and what follows belong to the writing thread
        self._next_sequence = 0
        self._first_step = start.first_step
        self._states: Mapping[str, agent_pb2.Tensor] | None = states  # by input name; None: not known

    def description(self, sequence: int) -> pb.Episode:
        """What a file says before an act of this sequence number."""
        said = pb.Episode(
            episode=self.number,
            agent_id=self.agent_id,
            bundle_sha256=self.bundle_sha256,
            start=self.start,
            goes_on=sequence > 0,
            session=self.session,
            monotonic_ns=self.monotonic_ns,
            wall_ns=self.wall_ns,
        )
        said.start.first_step = self._first_step
        if sequence == self._next_sequence and self._states is not None:
            for name, tensor in self._states.items():
                said.states[name].CopyFrom(tensor)
        else:
            said.states_lost = bool(self.state_names)
        return said

    def written(self, act: pb.Act) -> None:
        """An act was added to a file."""
        self._next_sequence = act.sequence + 1
        if act.HasField("response"):
            self._first_step = step_after(act.request.step)
        if act.HasField("response") or act.HasField("delivery"):  # a client's may have arrived, whatever came of it
            outputs = act.response.diagnostics
            known = all(computed in outputs for _, computed in self.state_names)
            self._states = {given: outputs[computed] for given, computed in self.state_names} if known else None


class _Missed:
    """Acts of an episode that are not recorded."""

    __slots__ = ("acts", "first_step", "last_step", "reason")

    def __init__(self, step: int, reason: str) -> None:
        step = min(step, LAST_STEP)  # one beyond it may be what no record could be made of
        self.acts, self.first_step, self.last_step, self.reason = 1, step, step, reason

    def add(self, later: _Missed) -> None:
        self.acts += later.acts
        self.last_step = later.last_step


class _ActRecord(NamedTuple):
    episode: RecordedEpisode
    sequence: int
    step: int
    make: MakeAct
    values: tuple[Any, ...]


class _EndRecord(NamedTuple):
    episode: RecordedEpisode
    end: pb.End


class _Made(NamedTuple):
    """What is written of a record, once all of it could be made.

    Attributes:
        bundle: what the file says of the episode's first; None where it has done so.
        messages: topic, kind, content, sequence number and time of day of each.
    """

    bundle: Mapping[str, str] | None
    messages: list[tuple[str, type[Any], bytes, int, int]]


class Recorder:
    """A black box.

    Args:
        settings: where, and how much.
        side: ``AGENT`` or ``CLIENT``.
        agent_id: whose acts are recorded.
        about: what the files say of the process.
        record_bytes: numbers of one act, in bytes.

    Raises:
        UsageError: the folder cannot be made, or is not to be written to, or an act is too large to be recorded.
    """

    def __init__(
        self, settings: RecordSettings, side: str, agent_id: str, about: Mapping[str, str], record_bytes: int
    ) -> None:
        if record_bytes > LARGEST_ACT_BYTES:
            raise UsageError(
                f"record: an act of agent '{agent_id}' takes {record_bytes} bytes, expected at most {LARGEST_ACT_BYTES}"
            )
        self.agent_id = agent_id
        self._topic = f"/{side}/{agent_id}"
        self._flush_s = settings.flush_s
        metadata = {RECORDER: {"recording": secrets.token_hex(8), "side": side, "agent_id": agent_id, **about}}
        folder = agent_id if side == AGENT else f"{agent_id}.{side}"
        self._files = BoxFiles(settings, folder, metadata)
        waiting = int(settings.queue_mb * 2**20) // (record_bytes + _OVERHEAD_BYTES)
        self._limit = min(max(waiting, _LEAST_WAITING), _MOST_WAITING)
        self._queue: deque[_ActRecord | _EndRecord] = deque()  # adding and taking are one step each
        self._missing = threading.Lock()
        self._missed: dict[tuple[RecordedEpisode, str], _Missed] = {}  # by episode and reason
        # What is missing if it cannot be flushed: acts, and gaps that were told.
        self._unflushed: list[tuple[RecordedEpisode, int]] = []
        self._unflushed_gaps: list[tuple[RecordedEpisode, _Missed]] = []
        self._episodes = 0
        self._log = RepeatLog(LOGGER)
        self._flushed_s = self._resume_s = 0.0
        self._stopped_by = UNWRITABLE
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hmarl-record", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self._files.folder

    def episode(
        self,
        bundle_sha256: str,
        start: agent_pb2.StartEpisodeRequest,
        states: Mapping[str, agent_pb2.Tensor],
        state_names: Sequence[tuple[str, str]],
        bundle: Callable[[], Mapping[str, str]],
    ) -> RecordedEpisode:
        """A new episode; see ``RecordedEpisode``."""
        with self._missing:
            self._episodes += 1
            number = self._episodes
        return RecordedEpisode(number, self.agent_id, bundle_sha256, start, states, state_names, bundle)

    def act(self, episode: RecordedEpisode, step: int, make: MakeAct, values: tuple[Any, ...]) -> None:
        """Record an act, or count it where too many wait. One at a time for an episode.

        Args:
            episode: whose.
            step: which one.
            make: makes the message of ``values``, in another thread.
            values: which belong to the recorder from now on.
        """
        sequence = episode.sequence
        episode.sequence = sequence + 1
        if len(self._queue) < self._limit:
            self._queue.append(_ActRecord(episode, sequence, step, make, values))
        else:
            self._miss(episode, _Missed(step, OVERFLOW))

    def end(self, episode: RecordedEpisode, steps: int, missed_steps: int, reason: str) -> None:
        """Record the end of an episode; not where too many records wait, or of one without acts that no one ended."""
        if len(self._queue) < self._limit and (episode.sequence or reason == ENDED):
            end = pb.End(episode=episode.number, steps=steps, missed_steps=missed_steps, reason=reason)
            end.monotonic_ns, end.wall_ns = time.monotonic_ns(), time.time_ns()
            self._queue.append(_EndRecord(episode, end))

    def close(self) -> None:
        """Write what waits and finish the file, within a moment; a second call does nothing."""
        atexit.unregister(self.close)
        self._stop.set()
        self._thread.join(_END_LIMIT_S)

    def _miss(self, episode: RecordedEpisode, missed: _Missed) -> None:
        with self._missing:
            known = self._missed.setdefault((episode, missed.reason), missed)
            if known is not missed:
                known.add(missed)

    def _run(self) -> None:
        while not self._stop.wait(self._flush_s / 4):
            self._round(flush=time.monotonic() - self._flushed_s >= self._flush_s / 2)
        self._resume_s = 0.0  # once more, whatever went wrong before
        self._round(flush=True)
        try:
            self._files.close()
        except OSError as error:
            self._fails(error)

    def _round(self, flush: bool) -> None:
        """Write what waits; whatever goes wrong, later rounds go on."""
        try:
            self._write_waiting()
            if flush:
                self._flushed_s = time.monotonic()
                self._files.flush()
                self._unflushed.clear()
                self._unflushed_gaps.clear()
                self._log.flush()
        except OSError as error:
            self._fails(error)
        except Exception as error:  # no record is worth the acts
            self._log.say("failed", logging.ERROR, f"recording failed, and may fail again: {one_line(error)}", error)
            self._fails(None)

    def _write_waiting(self) -> None:
        taken = len(self._queue)
        if time.monotonic() < self._resume_s:
            for _ in range(taken):
                record = self._queue.popleft()
                if isinstance(record, _ActRecord):
                    self._miss(record.episode, _Missed(record.step, self._stopped_by))
            return
        for number in range(taken):
            record = self._queue.popleft()
            if isinstance(record, _ActRecord):
                self._write_act(record)
            else:
                self._write_end(record)
            if number % _RECORDS_A_TURN == _RECORDS_A_TURN - 1:
                time.sleep(_TURN_S)
        with self._missing:
            missed, self._missed = self._missed, {}
        gaps = [(episode, gap) for (episode, _), gap in missed.items()]
        self._unflushed_gaps += gaps
        for episode, gap in gaps:
            self._write_gap(episode, gap)

    def _write_act(self, record: _ActRecord) -> None:
        """Write an act; one that cannot be made costs itself alone."""
        episode = record.episode
        self._unflushed.append((episode, record.step))
        self._files.opened()
        try:
            act = record.make(*record.values)
            act.episode, act.sequence = episode.number, record.sequence
            made = self._made(episode, record.sequence, "acts", act, record.sequence)
        except Exception as error:  # peers have a hand in what is recorded
            self._unmade(error)
            self._unflushed.pop()
            self._miss(episode, _Missed(record.step, UNMADE))
            return
        self._write(episode, made)
        episode.written(act)

    def _write_end(self, record: _EndRecord) -> None:
        episode = record.episode
        self._files.opened()
        try:
            made = self._made(episode, episode.sequence, "ends", record.end, 0)
        except Exception as error:  # as above
            self._unmade(error)
            return
        self._write(episode, made)

    def _write_gap(self, episode: RecordedEpisode, gap: _Missed) -> None:
        wall_ns = time.time_ns()
        said = pb.Gap(episode=episode.number, acts=gap.acts, reason=gap.reason, wall_ns=wall_ns)
        said.first_step, said.last_step = gap.first_step, gap.last_step
        self._files.write(*self._message("gaps", said, 0))
        self._log.say(gap.reason, logging.WARNING, f"{gap.acts} acts are not in the recording: {gap.reason}")

    def _made(self, episode: RecordedEpisode, number: int, name: str, message: pb.Act | pb.End, sequence: int) -> _Made:
        """All that is written of a record, before ``number`` of the episode; raises whatever keeps it from that."""
        messages = [self._message(name, message, sequence)]
        if episode.described_in == self._files.file_number:
            return _Made(None, messages)
        known = _title(episode) in self._files.metadata
        messages.insert(0, self._message("episodes", episode.description(number), 0))
        return _Made(None if known else episode.bundle(), messages)

    def _message(
        self, name: str, message: pb.Episode | pb.Act | pb.Gap | pb.End, sequence: int
    ) -> tuple[str, type[Any], bytes, int, int]:
        content = message.SerializeToString()
        if len(content) > _LARGEST_MESSAGE_BYTES:
            raise RecordingError(f"got a record of {len(content)} bytes, expected at most {_LARGEST_MESSAGE_BYTES}")
        return f"{self._topic}/{name}", type(message), content, sequence, message.wall_ns

    def _write(self, episode: RecordedEpisode, made: _Made) -> None:
        if made.bundle is not None:
            self._files.describe(_title(episode), made.bundle)
        for message in made.messages:
            self._files.write(*message)
        episode.described_in = self._files.file_number

    def _unmade(self, error: Exception) -> None:
        text = f"an act or the end of an episode is not in the recording: {UNMADE}: {one_line(error)}"
        self._log.say(UNMADE, logging.ERROR, text, error)

    def _fails(self, error: OSError | None) -> None:
        """Record nothing for a while: the disk is full, or worse. What was not flushed is missing."""
        self._files.abandon()
        self._resume_s = time.monotonic() + _RETRY_S
        self._stopped_by = FAILED if error is None else UNWRITABLE
        for episode, step in self._unflushed:
            self._miss(episode, _Missed(step, self._stopped_by))
        for episode, gap in self._unflushed_gaps:
            self._miss(episode, gap)
        self._unflushed.clear()
        self._unflushed_gaps.clear()
        if error is not None:
            self._log.say(
                "disk",
                logging.WARNING,
                f"recording stopped: {self._files.folder}: {error.strerror or one_line(error)}; acts go on, and it is "
                f"tried again every {_RETRY_S:g} s",
            )


def _title(episode: RecordedEpisode) -> str:
    """Of the metadata that tells its bundle."""
    return f"{BUNDLE}.{episode.bundle_sha256}"


def session_digest(session_id: str) -> str:
    """What a recording calls a session: the id itself would let its reader act in it."""
    return hashlib.blake2b(session_id.encode(), digest_size=8).hexdigest()
