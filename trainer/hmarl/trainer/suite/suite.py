"""A suite in its directory: what is planned, trained, kept and written there, by one process at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hmarl.trainer.records.problems import IncompleteError, storing
from hmarl.trainer.runs.lock import RunLock
from hmarl.trainer.runs.stopping import StopRequest
from hmarl.trainer.suite.definition import Definition
from hmarl.trainer.suite.engine import Engine, Limits, Places, failures
from hmarl.trainer.suite.executor import Executor
from hmarl.trainer.suite.ledger import Ledger
from hmarl.trainer.suite.live_table import LiveTable
from hmarl.trainer.suite.planned import PlannedRun
from hmarl.trainer.suite.records import record_of, write_record
from hmarl.trainer.suite.results import Written, read_others, record_path, write_results

STOPPING = "stopping: every run ends its update and saves"


@dataclass(frozen=True)
class Standing:
    """How a suite stands.

    Attributes:
        planned, done: how many runs.
        failed: by name, why.
    """

    planned: int
    done: int
    failed: Mapping[str, str]


@dataclass
class Suite:
    """One suite in one directory; ``opened`` makes one.

    Attributes:
        definition: of the suite.
        folder: its directory.
        ledger: what became of its runs.
    """

    definition: Definition
    folder: Path
    ledger: Ledger

    @classmethod
    @contextmanager
    def opened(cls, definition: Definition, folder: Path) -> Iterator[Suite]:
        """A suite for as long as its directory is this process's.

        Raises:
            UsageError: another process owns it.
            CheckpointError: what it remembers is damaged.
        """
        with RunLock(folder, "suite directory"):
            yield cls(definition, folder, Ledger.read(folder / "suite.json"))

    @property
    def marl_eval(self) -> Path:
        """Where results go for other tools."""
        return self.folder / "marl-eval.json"

    @property
    def _kept(self) -> Path:
        return self.folder / "records"

    def check(self, beside: Sequence[Path]) -> None:
        """Refuse before hours of training what would be refused after them.

        Raises:
            UsageError: see ``read_others``.
        """
        read_others(beside)

    def train(self, executor: Executor, stop: StopRequest, jobs: int, retries: int) -> bool:
        """Train what is missing.

        Args:
            executor: starts runs.
            stop: once asked, all of them save and end.
            jobs: processes at the same time.
            retries: how often a run that failed is started again.

        Returns:
            Whether it was stopped.

        Raises:
            StorageError: what is to be kept could not be written.
        """
        stop.postponing = STOPPING
        budget = self.definition.budget
        limits = Limits(
            jobs, retries, *(None if m is None else 60 * m for m in (budget.minutes_per_run, budget.minutes))
        )
        places = Places(self.folder / "runs", self.folder / "failed")
        runs = self.definition.runs
        with LiveTable(self.definition.name, runs, places, jobs) as table:
            engine = Engine(
                runs,
                places,
                lambda run: self._keep(run, places),
                self._is_kept,
                executor,
                limits,
                self.ledger,
                table,
            )
            engine.train(stop)
        return stop()

    def _is_kept(self, run: PlannedRun) -> bool:
        return record_path(self._kept, run.name).exists()

    def _keep(self, run: PlannedRun, places: Places) -> None:
        record = record_of(places.directory(run))
        with storing("then type the same command again"):
            self._kept.mkdir(parents=True, exist_ok=True)
            write_record(record, record_path(self._kept, run.name))

    def write_results(self, beside: Sequence[Path]) -> Written:
        """See ``results.write_results``; what is not planned any more is not shown."""
        return write_results(self.definition, self.folder, self._kept, self.ledger, beside)

    def standing(self) -> Standing:
        """How it stands."""
        runs = self.definition.runs
        return Standing(len(runs), sum(map(self._is_kept, runs)), failures(self.ledger, runs))

    def refuse_incomplete(self) -> None:
        """Not every run has its record.

        Raises:
            IncompleteError: so it is; with the runs that failed, or that the budget left.
        """
        standing = self.standing()
        if standing.failed:
            told = ", ".join(f"{name} ({error})" for name, error in standing.failed.items())
            raise IncompleteError(f"runs failed: {told}; the same command tries them again")
        if standing.done < standing.planned:
            minutes = self.definition.budget.minutes
            raise IncompleteError(
                f"budget.minutes: {minutes:g} are used up with {standing.done} of {standing.planned} runs done; raise "
                "it, and the same command goes on"
            )
