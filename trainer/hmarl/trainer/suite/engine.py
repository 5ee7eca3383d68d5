"""Trains the runs of a suite: so many at a time, each until it has a record, failures apart, within a budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hmarl.runtime.command_line import ExitCode
from hmarl.sdk.errors import UsageError
from hmarl.trainer.records.problems import CheckpointError
from hmarl.trainer.runs.lock import RunLock
from hmarl.trainer.runs.stopping import StopRequest
from hmarl.trainer.suite.executor import Executor, Started
from hmarl.trainer.suite.ledger import Ledger
from hmarl.trainer.suite.planned import PlannedRun, ended_at, resuming_words, training_words
from hmarl.trainer.suite.progress import progress_of

_POLL_S, _KEEP_S = 0.1, 10.0
_TOO_OFTEN = (ExitCode.USAGE,)  # the same command would be refused again


@dataclass(frozen=True)
class Limits:
    """How much a suite may take.

    Attributes:
        jobs: runs at the same time.
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
        """What a run prints."""
        return self.runs / f"{run.name}.log"


class Watcher(Protocol):
    """Told what goes on."""

    def show(self, ledger: Ledger) -> None:
        """Show how the runs stand; called several times a second."""

    def say(self, text: str) -> None:
        """A line of something that has happened."""


@dataclass
class _Going:
    """A run that goes on.

    Attributes:
        run: which.
        started: its process.
        looked_at: when its time was counted last, on the monotonic clock.
        cutting: its time is used up: it has been asked to stop, or is being concluded.
        concluding: it was cut off, and only evaluates what it has come to.
    """

    run: PlannedRun
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
                while (self._waiting or self._going) and not (stop() or self._used_up()):
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
        for run in list(self._waiting):
            if len(self._going) >= self.limits.jobs:
                return
            directory = self.places.directory(run)
            if in_use(directory):
                continue
            self._waiting.remove(run)
            if (ended_at(directory) or 0) >= run.steps:  # trained, but killed before its record was written
                self._finish(run)
                continue
            self.ledger.of(run.name).attempts += 1
            self._begin(run, training_words(run, directory))

    def _begin(self, run: PlannedRun, words: list[str], concluding: bool = False) -> None:
        self.ledger.of(run.name).status = "running"
        try:
            started = self.executor.start(words, self.places.log(run))
        except OSError as error:
            self._fail(run, f"could not be started ({error})")
            return
        self._going.append(_Going(run, started, time.monotonic(), concluding, concluding))

    def _look(self) -> None:
        """Count the time of what goes on, and see to what has ended or must end."""
        for going in list(self._going):
            now = time.monotonic()
            entry = self.ledger.of(going.run.name)
            if not going.concluding:
                entry.spent_s += now - going.looked_at
            going.looked_at = now
            code = going.started.exit_code()
            if code is not None:
                self._going.remove(going)
                self._ended(going, code)
            elif not going.cutting and self.limits.run_s is not None and entry.spent_s >= self.limits.run_s:
                going.cutting = True
                going.started.ask_to_stop()
        self.watcher.show(self.ledger)

    def _ended(self, going: _Going, code: int) -> None:
        """A run has ended, one way or the other."""
        run = going.run
        # Beside a run that is done something may have failed.
        if code in (ExitCode.DONE, ExitCode.FAILURE) and self._at_its_end(going):
            self._finish(run, cut=going.concluding)
        elif code == ExitCode.INTERRUPTED and going.cutting:
            self._conclude(run)
        elif code == ExitCode.INTERRUPTED:  # by whom it was stopped is not known, and it has saved
            self._try_again(going, "was stopped by a signal")
        else:
            how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
            self._try_again(going, how, code)

    def _at_its_end(self, going: _Going) -> bool:
        """Whether the summary is of the end that is wanted now, not of an earlier one."""
        directory = self.places.directory(going.run)
        steps = progress_of(directory).steps
        return ended_at(directory) == steps and (going.concluding or steps >= going.run.steps)

    def _conclude(self, run: PlannedRun) -> None:
        """Its time is used up: it is evaluated as it stands."""
        directory = self.places.directory(run)
        steps = progress_of(directory).steps
        if not steps:
            self._fail(run, "its time was used up before its first update")
            return
        self.watcher.say(f"{run.name}: its time is used up at {steps:,} of {run.steps:,} steps")
        self._begin(run, resuming_words(directory, steps), concluding=True)

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

    def _try_again(self, going: _Going, how: str, code: int | None = None) -> None:
        """A run that failed goes on from its last checkpoint; what nothing can go on from is put aside."""
        run, entry = going.run, self.ledger.of(going.run.name)
        told = f"{how}, see {self.places.log(run)}"
        if code in _TOO_OFTEN or entry.attempts > self.limits.retries:
            self._fail(run, told)
            return
        if code == ExitCode.BROKEN:
            self._put_aside(run)
        self.watcher.say(f"{run.name}: {told}; tried again ({entry.attempts} of {self.limits.retries})")
        entry.status = "waiting"
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
            for going in list(self._going):
                if (code := going.started.exit_code()) is not None:
                    self._going.remove(going)
                    self._stopped(going, code)
            self.watcher.show(self.ledger)
            time.sleep(_POLL_S)
            self.ledger.spent_s += time.monotonic() - looked_at

    def _stopped(self, going: _Going, code: int) -> None:
        """A run has ended after everything was asked to."""
        if code == ExitCode.INTERRUPTED:
            self.ledger.of(going.run.name).status = "cut off" if going.concluding else "stopped"
        else:  # it had just come to its end
            self._ended(going, code)


def in_use(directory: Path) -> bool:
    """Whether another process owns a run: one that saves after its suite was killed, or a user's own."""
    if not directory.exists():
        return False
    try:
        RunLock(directory).release()
    except UsageError:
        return True
    return False


def failures(ledger: Ledger, runs: Sequence[PlannedRun]) -> Mapping[str, str]:
    """By name, why runs failed."""
    entries = {run.name: ledger.of(run.name) for run in runs}
    return {name: entry.error for name, entry in entries.items() if entry.status == "failed"}
