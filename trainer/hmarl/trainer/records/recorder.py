"""What a run writes and shows (metrics.jsonl, TensorBoard, live progress in the terminal), and how it is read again."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, Group
from rich.live import Live
from rich.progress import ProgressColumn, Task
from rich.text import Text

from hmarl.runtime.bundle import replace_file
from hmarl.sdk.commands._console import make_console, progress_bar
from hmarl.trainer.records.board import Board
from hmarl.trainer.records.checkpoint import read_object

Rows = list[dict[str, Any]]


def read_metrics(run: Path) -> Rows:
    """The lines of a run's metrics.jsonl, without one that a kill cut off."""
    path, rows = run / "metrics.jsonl", []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
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
        self._line_begins = 0
        self._board = Board(run / "tensorboard", resumed_steps + 1 if resuming else None)

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

    On a terminal it is redrawn in place: the bar in one line, the figures below in as many as they need; elsewhere a
    line is printed every ``line_interval_s`` seconds.
    """

    shown = (
        "return", "teacher_return", "agent_kl", "imitation_kl", "action_agreement", "learnt_goal_error", "conductor_kl",
        "instruction_entropy", "explained_variance",
    )  # fmt: skip

    def __init__(self, title: str, total: int, done: int, line_interval_s: float = 10.0) -> None:
        self._console = make_console(stderr=True)
        self._total, self._started_at, self._start = total, done, time.monotonic()
        self._line_interval_s, self._last_line = line_interval_s, self._start
        self._figures: list[str] = []
        self._progress = progress_bar(self._console, _Remaining())
        self._task = self._progress.add_task(title, total=total, completed=done, due=None)
        self._live = Live(get_renderable=self._display, console=self._console) if self._console.is_terminal else None

    def __enter__(self) -> LiveProgress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, steps: int, metrics: Mapping[str, Any]) -> None:
        """Show the state after an update."""
        now = time.monotonic()
        rate = (steps - self._started_at) / max(now - self._start, 1e-9)
        eta_s = max(self._total - steps, 0) / max(rate, 1e-9)
        self._figures = [f"{steps:,} steps", f"{rate:,.0f} steps/s"]
        self._figures += [f"{key.replace('_', ' ')} {metrics[key]:.4g}" for key in self.shown if key in metrics]
        self._progress.update(self._task, completed=steps, due=now + eta_s)
        if self._live is None and (now - self._last_line >= self._line_interval_s or steps >= self._total):
            self._last_line = now
            share = min(1.0, steps / self._total)
            self.say(" · ".join([f"{100 * share:5.1f}%", f"ETA {eta_s:,.0f} s", *self._figures]))

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text)

    def _display(self) -> Group:
        return Group(self._progress.get_renderable(), _Figures(self._figures))


class _Remaining(ProgressColumn):
    """Time until the end: the field ``due`` of the task is when that is."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """The time that is left, - while nothing is known."""
        due = task.fields["due"]
        left = "-:--:--" if due is None else str(timedelta(seconds=max(0, round(due - time.monotonic()))))
        return Text(left, no_wrap=True)


class _Figures:
    """Figures side by side, in lines that end between two of them."""

    def __init__(self, figures: list[str]) -> None:
        self._figures = figures

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        line = ""
        for figure in self._figures:
            longer = f"{line} · {figure}" if line else figure
            if line and len(longer) > options.max_width:
                yield Text(line)
                longer = figure
            line = longer
        yield Text(line)
