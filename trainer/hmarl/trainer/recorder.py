"""What a run writes and shows (metrics.jsonl, TensorBoard, live progress in the terminal), and how it is read again."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from hmarl.runtime.bundle import replace_file
from hmarl.trainer.board import Board
from hmarl.trainer.checkpoint import read_object

Rows = list[dict[str, Any]]


def read_metrics(run: Path) -> Rows:
    """The lines of a run's metrics.jsonl, without one that a kill cut off."""
    path, rows = run / "metrics.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            continue
    return rows


def evaluation_path(run: Path, steps: int) -> Path:
    """Where a run keeps what it found when it evaluated after so many steps."""
    return run / "eval" / f"step-{steps:012d}.json"


def read_evaluation(path: Path) -> dict[str, dict[str, Any]]:
    """By name what each way of playing came to in an evaluation, without the returns of single episodes.

    Raises:
        CheckpointError: damaged.
    """
    return {name: {k: v for k, v in row.items() if k != "returns"} for name, row in read_object(path).items()}


class Recorder:
    """Writes every update's metrics; a resumed run continues the same files.

    Args:
        run: the run directory.
        resumed_update: lines after this update are dropped first: the resumed run writes them again.
        resumed_steps: steps of that update; TensorBoard's figures of later ones are dropped.

    Raises:
        OSError: metrics.jsonl cannot be written.
    """

    def __init__(self, run: Path, resumed_update: int, resumed_steps: int) -> None:
        self._path = run / "metrics.jsonl"
        resuming = self._path.exists()
        if resuming:
            kept = (row for row in read_metrics(run) if row.get("update", math.inf) <= resumed_update)
            content = "".join(f"{json.dumps(row)}\n" for row in kept).encode()
            if content != self._path.read_bytes():
                replace_file(self._path, content)
        self._file = self._path.open("ab", buffering=0)
        self._board = Board(run / "tensorboard", resumed_steps + 1 if resuming else None)

    def write(self, update: int, steps: int, metrics: Mapping[str, float]) -> None:
        """Append one update's metrics; values that are not finite become null.

        Raises:
            OSError: the line could not be written; what was begun of it is left out when the run is resumed.
        """
        finite = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        line = memoryview((json.dumps({"update": update, "steps": steps, **finite}) + "\n").encode())
        with _named(self._path):
            while line:
                line = line[self._file.write(line) :]
        for key, value in metrics.items():
            self._board.add(key if "/" in key else f"train/{key}", value, steps)

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
        self._board.close()

    @property
    def problem(self) -> str | None:
        """What came between, when TensorBoard's files could not be written; None when all is well."""
        return self._board.problem


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of open files, which do not know their name, told with it."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


class LiveProgress:
    """A progress bar with rates, ETA and the figures that tell whether learning goes well.

    On a terminal it is redrawn in place; elsewhere a line is printed every ``line_interval_s`` seconds.
    """

    shown = (
        "return", "teacher_return", "agent_kl", "imitation_kl", "action_agreement", "learnt_goal_error", "conductor_kl",
        "instruction_entropy", "explained_variance",
    )  # fmt: skip

    def __init__(self, title: str, total: int, done: int, line_interval_s: float = 10.0) -> None:
        self._console = Console(stderr=True)
        self._live = self._console.is_terminal
        self._total, self._started_at, self._start = total, done, time.monotonic()
        self._line_interval_s, self._last_line = line_interval_s, self._start
        self._progress = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), TextColumn("{task.percentage:5.1f}%"),
            TimeRemainingColumn(), TextColumn("{task.fields[figures]}"), console=self._console, transient=False,
        )  # fmt: skip
        self._task = self._progress.add_task(title, total=total, completed=done, figures="")

    def __enter__(self) -> LiveProgress:
        if self._live:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._progress.stop()

    def update(self, steps: int, metrics: Mapping[str, Any]) -> None:
        """Show the state after an update."""
        now = time.monotonic()
        rate = (steps - self._started_at) / max(now - self._start, 1e-9)
        figures = [f"{steps:,} steps", f"{rate:,.0f} steps/s"]
        figures += [f"{key.replace('_', ' ')} {metrics[key]:.4g}" for key in self.shown if key in metrics]
        if self._live:
            self._progress.update(self._task, completed=steps, figures=" · ".join(figures))
        elif now - self._last_line >= self._line_interval_s or steps >= self._total:
            self._last_line = now
            eta = (self._total - steps) / max(rate, 1e-9)
            self.say(f"{100 * steps / self._total:5.1f}% · ETA {max(eta, 0):,.0f} s · " + " · ".join(figures))

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, highlight=False, soft_wrap=True)
