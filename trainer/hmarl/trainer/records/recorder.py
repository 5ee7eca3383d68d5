"""What a run writes of each update: metrics.jsonl, and whatever else shows its figures."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from hmarl.runtime.bundle import replace_file
from hmarl.trainer.records.loggers import RunFacts, open_loggers
from hmarl.trainer.records.metrics import read_metrics


class Recorder:
    """Writes every update's metrics; a resumed run continues the same files.

    Args:
        run: the run directory.
        resumed_update: lines after this update are dropped first: the resumed run writes them again.
        resumed_steps: steps of that update; TensorBoard's figures of later ones are dropped.
        loggers: names of what else shows the figures.
        facts: what these are told of the run.

    Raises:
        OSError: metrics.jsonl cannot be written.
    """

    def __init__(
        self,
        run: Path,
        resumed_update: int,
        resumed_steps: int,
        loggers: Sequence[str] = ("tensorboard",),
        facts: RunFacts | None = None,
    ) -> None:
        self._path = run / "metrics.jsonl"
        resuming = self._path.exists()
        if resuming:
            kept = (row for row in read_metrics(run) if row.get("update", math.inf) <= resumed_update)
            content = "".join(f"{json.dumps(row)}\n" for row in kept).encode()
            if content != self._path.read_bytes():
                replace_file(self._path, content)
        self._file = self._path.open("ab", buffering=0)
        self._line_begins = 0
        told = facts or RunFacts(run, run.name, "", {})
        self._loggers = open_loggers(loggers, told, resumed_steps + 1 if resuming else None)

    def write(self, update: int, steps: int, metrics: Mapping[str, float]) -> None:
        """Append one update's metrics; values that are not finite become null.

        Raises:
            OSError: the line could not be written; what was begun of it is left out when the run is resumed.
        """
        with _named(self._path):
            self._line_begins = os.fstat(self._file.fileno()).st_size
            self._append({"update": update, "steps": steps, **metrics})
        self._show(metrics, steps)

    def amend(self, update: int, steps: int, metrics: Mapping[str, float], more: Mapping[str, float]) -> None:
        """Write the last line again, with ``more`` figures.

        Raises:
            OSError: the line could not be written.
        """
        with _named(self._path):
            os.ftruncate(self._file.fileno(), self._line_begins)
            self._append({"update": update, "steps": steps, **metrics, **more})
        self._show(more, steps)

    def _append(self, row: Mapping[str, float]) -> None:
        finite = {key: value if math.isfinite(value) else None for key, value in row.items()}
        line = memoryview((json.dumps(finite) + "\n").encode())
        while line:
            line = line[self._file.write(line) :]

    def _show(self, metrics: Mapping[str, float], steps: int) -> None:
        figures = {key if "/" in key else f"train/{key}": value for key, value in metrics.items()}
        for logger in self._loggers:
            logger.log(figures, steps)

    def sync(self) -> None:
        """Wait until all lines are on the disk: a checkpoint must not outlive the lines before it.

        Raises:
            OSError: they could not be written.
        """
        with _named(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        for logger in self._loggers:
            logger.close()

    @property
    def problems(self) -> dict[str, str]:
        """What came between, by the names of what else shows the figures; empty when all is well."""
        return {logger.name: logger.problem for logger in self._loggers if logger.problem is not None}


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of open files, which do not know their name, told with it."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise
