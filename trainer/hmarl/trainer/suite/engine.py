"""Trains the runs of a suite: so many processes at a time, each run until it has a record, failures apart, within a
budget. A process trains one run, or several that differ in their seeds alone.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Protocol

from hmarl.runtime.command_line import ExitCode
from hmarl.sdk.errors import UsageError
from hmarl.trainer.records.problems import CheckpointError
from hmarl.trainer.runs.lock import InUseError, RunLock
from hmarl.trainer.runs.stopping import StopRequest
from hmarl.trainer.suite.executor import Executor, Started, how_it_ended
from hmarl.trainer.suite.ledger import Ledger
from hmarl.trainer.suite.planned import PlannedRun, ended_at, has_begun, resuming_words, training_words
from hmarl.trainer.suite.progress import steps_done

_POLL_S, _KEEP_S = 0.1, 10.0
_TOO_OFTEN = (ExitCode.USAGE,)  # the same command would be refused again


@dataclass(frozen=True)
class Limits:
    """How much a suite may take.

    Attributes:
        jobs: processes at the same time.
        retries: how often a run that failed is started again before it is left.
        run_s: seconds of training a run, None without a limit. Its last state counts then.
        total_s: seconds of the suite, in all commands together, None without a limit.
    """

    jobs: int = 1
    retries: int = 1
    run_s: float | None = None
    total_s: float | None = None


@dataclass(frozen=True)
class Places:
    """Where a suite keeps its runs.

    Attributes:
        runs: their directories and logs.
        failed: directories that nothing could go on from.
    """

    runs: Path
    failed: Path

    def directory(self, run: PlannedRun) -> Path:
        """Of a run."""
        return self.runs / run.name

    def log(self, run: PlannedRun) -> Path:
        """What a run prints; the first of those that one process trains prints for all."""
        return self.runs / f"{run.name}.log"


class Watcher(Protocol):
    """Told what goes on."""

    def show(self, ledger: Ledger) -> None:
        """Show how the runs stand; called several times a second."""

    def say(self, text: str) -> None:
        """A line of something that has happened."""


@dataclass
class _Going:
    """A process that goes on.

    Attributes:
        runs: that it trains.
        started: the process.
        looked_at: when its time was counted last, on the monotonic clock.
        cutting: time is used up: it has been asked to stop, or is being concluded.
        concluding: its run was cut off, and it only evaluates what that has come to.
    """

    runs: tuple[PlannedRun, ...]
    started: Started
    looked_at: float
    cutting: bool = False
    concluding: bool = False


@dataclass
class Engine:
    """Trains all runs that have no record.

    Args:
        runs: what is planned, in the order in which they are started.
        places: where they are kept.
        keep: writes the record of a run that has ended; raises CheckpointError where it is damaged.
        kept: whether a run has its record.
        executor: starts them.
        limits: how much they may take.
        ledger: what is remembered of them.
        watcher: told what goes on.
    """

    runs: Sequence[PlannedRun]
    places: Places
    keep: Callable[[PlannedRun], None]
    kept: Callable[[PlannedRun], bool]
    executor: Executor
    limits: Limits
    ledger: Ledger
    watcher: Watcher
    _waiting: list[PlannedRun] = field(default_factory=list)
    _cut_off: list[PlannedRun] = field(default_factory=list)  # to be concluded
    _by_itself: set[str] = field(default_factory=set)  # what has failed along with others
    _going: list[_Going] = field(default_factory=list)
    _written_at: float = 0.0

    def train(self, stop: StopRequest) -> None:
        """Train until every run has its record or has failed, the budget is used up, or ``stop`` is asked for.

        Raises:
            StorageError: what is remembered of them could not be written.
            KeyboardInterrupt: asked to stop for the second time.
        """
        once = {run.name: run for run in self.runs}
        self._waiting = [run for run in once.values() if self._to_be_trained(run)]
        self.places.runs.mkdir(parents=True, exist_ok=True)
        try:
            with stop.postponed():
                looked_at = time.monotonic()
                while (self._waiting or self._cut_off or self._going) and not (stop() or self._used_up()):
                    self._start()
                    self._look()
                    self.ledger.spent_s += time.monotonic() - looked_at
                    looked_at = time.monotonic()
                    self._remember()
                    time.sleep(_POLL_S)
                self._stop_all()
        finally:
            for going in self._going:  # only where something went wrong here, or it was insisted upon
                going.started.kill()
            self.ledger.write()

    # --- before -----------------------------------------------------------------------------------------------------

    def _to_be_trained(self, run: PlannedRun) -> bool:
        """Whether a run has to be started, or gone on with."""
        entry = self.ledger.of(run.name)
        entry.attempts, entry.error = 0, ""
        more = entry.status == "cut off" and (self.limits.run_s is None or entry.spent_s < self.limits.run_s)
        if self.kept(run) and not more:
            entry.status = "cut off" if entry.status == "cut off" else "done"
            return False
        entry.status = "waiting"
        return True

    def _used_up(self) -> bool:
        return self.limits.total_s is not None and self.ledger.spent_s >= self.limits.total_s

    # --- while it goes on -------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """As many as fit; one whose directory another process uses waits for it."""
        while self._cut_off and len(self._going) < self.limits.jobs:
            run = self._cut_off.pop(0)
            directory = self.places.directory(run)
            self._begin((run,), resuming_words([directory], steps_done(directory)), concluding=True)
        for run in list(self._waiting):
            if len(self._going) >= self.limits.jobs:
                return
            if run not in self._waiting or in_use(self.places.directory(run)):
                continue
            if self._is_trained(run):  # but killed before its record was written
                self._waiting.remove(run)
                self._finish(run)
                continue
            runs = (run, *islice(self._companions(run), run.at_once - 1))
            for each in runs:
                self._waiting.remove(each)
            if len(runs) == 1:  # where several fail it is not known which of them does
                self.ledger.of(run.name).attempts += 1
            self._begin(runs, training_words(runs, [self.places.directory(each) for each in runs]))

    def _is_trained(self, run: PlannedRun) -> bool:
        return (ended_at(self.places.directory(run)) or 0) >= run.steps

    def _companions(self, run: PlannedRun) -> Iterator[PlannedRun]:
        """Others that wait and that the same process can train: from the start, or from where they were stopped."""
        begun = has_begun(self.places.directory(run))
        for other in self._waiting:
            if other == run or self._by_itself & {run.name, other.name} or other.shared_words != run.shared_words:
                continue
            directory = self.places.directory(other)
            if has_begun(directory) == begun and not in_use(directory) and not self._is_trained(other):
                yield other

    def _begin(self, runs: tuple[PlannedRun, ...], words: list[str], concluding: bool = False) -> None:
        first, *others = runs
        try:
            for other in others:
                with self.places.log(other).open("a", encoding="utf-8") as log:
                    log.write(f"trained along with {first.name}, see {self.places.log(first)}\n")
            started = self.executor.start(words, self.places.log(first), first.threads)
        except OSError as error:
            self._not_started(runs, error)
            return
        self._going.append(_Going(runs, started, time.monotonic(), concluding, concluding))

    def _not_started(self, runs: Sequence[PlannedRun], error: OSError) -> None:
        for run in runs:
            self._fail(run, f"could not be started ({error})")

    def _look(self) -> None:
        """Count the time of what goes on, and see to what has ended or must end."""
        for going in self._going:
            self._count(going)
        for going, code in self._ended_now():
            self._ended(going, code)
        for going in self._going:
            if not going.cutting and any(map(self._time_is_up, going.runs)):
                going.cutting = True
                going.started.ask_to_stop()
        self.watcher.show(self.ledger)

    def _count(self, going: _Going) -> None:
        """A process's time, which its runs share; while it waits for room there is none."""
        now, waits = time.monotonic(), going.started.waits()
        for run in going.runs:
            entry = self.ledger.of(run.name)
            entry.status = "waiting" if waits else "running"
            if not (waits or going.concluding):
                entry.spent_s += (now - going.looked_at) / len(going.runs)
        going.looked_at = now

    def _time_is_up(self, run: PlannedRun) -> bool:
        return self.limits.run_s is not None and self.ledger.of(run.name).spent_s >= self.limits.run_s

    def _ended_now(self) -> Iterator[tuple[_Going, int]]:
        """What has ended, with its exit code, and goes on no more."""
        for going in list(self._going):
            try:
                code = going.started.exit_code()
            except OSError as error:
                self._going.remove(going)
                self._not_started(going.runs, error)
                continue
            if code is not None:
                self._going.remove(going)
                yield going, code

    def _ended(self, going: _Going, code: int) -> None:
        """A process has ended, one way or the other; what it was to train may be done all the same."""
        log = self.places.log(going.runs[0])
        # By whom one was stopped is not known, and it has saved.
        how = "was stopped by a signal" if code == ExitCode.INTERRUPTED else how_it_ended(code)
        for run in going.runs:
            if self._at_its_end(run, going.concluding):
                self._finish(run, cut=going.concluding)
            elif code == ExitCode.INTERRUPTED and going.cutting:
                self._cut(run)
            elif len(going.runs) > 1:
                self._leave_company(run, f"{how}, see {log}")
            else:
                self._try_again(run, f"{how}, see {log}", code)

    def _at_its_end(self, run: PlannedRun, concluding: bool) -> bool:
        """Whether the summary is of the end that is wanted now, not of an earlier one."""
        directory = self.places.directory(run)
        steps = steps_done(directory)
        return ended_at(directory) == steps and (concluding or steps >= run.steps)

    def _cut(self, run: PlannedRun) -> None:
        """Its process was stopped, because its own time is used up or that of another run that it trains."""
        if not self._time_is_up(run):
            self._wait(run)
            return
        steps = steps_done(self.places.directory(run))
        if not steps:
            self._fail(run, "its time was used up before its first update")
            return
        self.watcher.say(f"{run.name}: its time is used up at {steps:,} of {run.steps:,} steps")
        self.ledger.of(run.name).status = "cut off"
        self._cut_off.append(run)

    def _finish(self, run: PlannedRun, cut: bool = False) -> None:
        """Keep what a run came to."""
        try:
            self.keep(run)
        except CheckpointError as error:
            self._fail(run, str(error))
            return
        self.ledger.of(run.name).status = "cut off" if cut else "done"
        self.watcher.say(f"{run.name}: done")
        self.ledger.write()

    def _leave_company(self, run: PlannedRun, told: str) -> None:
        """The process of several runs has failed, which tells nothing of this one: it goes on in one of its own."""
        self._by_itself.add(run.name)
        self.watcher.say(f"{run.name}: {told}; goes on by itself")
        self._wait(run)

    def _try_again(self, run: PlannedRun, told: str, code: int) -> None:
        """A run that failed goes on from its last checkpoint; what nothing can go on from is put aside."""
        entry = self.ledger.of(run.name)
        if code in _TOO_OFTEN or entry.attempts > self.limits.retries:
            self._fail(run, told)
            return
        if code == ExitCode.BROKEN:
            self._put_aside(run)
        self.watcher.say(f"{run.name}: {told}; tried again ({entry.attempts} of {self.limits.retries})")
        self._wait(run)

    def _wait(self, run: PlannedRun) -> None:
        """It is started again."""
        self.ledger.of(run.name).status = "waiting"
        self._waiting.append(run)
        self.ledger.write()

    def _put_aside(self, run: PlannedRun) -> None:
        """A damaged directory, out of the way of a new beginning."""
        self.places.failed.mkdir(parents=True, exist_ok=True)
        number = 1 + sum(1 for _ in self.places.failed.glob(f"{run.name}.*"))
        self.places.directory(run).rename(self.places.failed / f"{run.name}.{number}")

    def _fail(self, run: PlannedRun, error: str) -> None:
        entry = self.ledger.of(run.name)
        entry.status, entry.error = "failed", error
        self.watcher.say(f"{run.name}: failed: {error}")
        self.ledger.write()

    def _remember(self) -> None:
        """Times, now and then: a kill costs no more of them than that."""
        if time.monotonic() - self._written_at > _KEEP_S:
            self._written_at = time.monotonic()
            self.ledger.write()

    # --- after ------------------------------------------------------------------------------------------------------

    def _stop_all(self) -> None:
        """Everything that goes on saves and ends."""
        for going in self._going:
            going.started.ask_to_stop()
        while self._going:
            looked_at = time.monotonic()
            for going, code in self._ended_now():
                self._stopped(going, code)
            self.watcher.show(self.ledger)
            time.sleep(_POLL_S)
            self.ledger.spent_s += time.monotonic() - looked_at

    def _stopped(self, going: _Going, code: int) -> None:
        """A process has ended after everything was asked to."""
        # By the signal itself: it had only just been started, and nothing is lost.
        if code not in (ExitCode.INTERRUPTED, -signal.SIGTERM):  # it had just come to its end
            self._ended(going, code)
            return
        for run in going.runs:
            if self._at_its_end(run, going.concluding):
                self._finish(run, cut=going.concluding)
            else:
                self.ledger.of(run.name).status = "cut off" if going.concluding else "stopped"


def in_use(directory: Path) -> bool:
    """Whether another process owns a run: one that saves after its suite was killed, or a user's own.

    A directory that cannot be locked for another reason is not in use: the run itself says why, and fails.
    """
    if not directory.exists():
        return False
    try:
        RunLock(directory).release()
    except InUseError:
        return True
    except UsageError:
        return False
    return False


def failures(ledger: Ledger, runs: Sequence[PlannedRun]) -> Mapping[str, str]:
    """By name, why runs failed."""
    entries = {run.name: ledger.of(run.name) for run in runs}
    return {name: entry.error for name, entry in entries.items() if entry.status == "failed"}
