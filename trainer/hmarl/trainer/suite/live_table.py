"""How a suite is watched: a table that is redrawn in place on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from hmarl.sdk.commands._console import make_console
from hmarl.trainer.suite.costs import time_left
from hmarl.trainer.suite.engine import Places
from hmarl.trainer.suite.ledger import Ledger, Status
from hmarl.trainer.suite.planned import PlannedRun
from hmarl.trainer.suite.progress import Progress, progress_of

_REFRESH_S, _LINE_S = 0.5, 30.0
_CELLS = 46  # of the columns beside the name
_LEAST_NAME, _HEADINGS = 20, ("done", "%", "steps/s", "ETA", "return")


@dataclass(frozen=True)
class Row:
    """The runs of one label on one task.

    Attributes:
        name: of both.
        done, planned: how many runs.
        going: whether one goes on.
        share: of the steps that are done.
        steps_per_s: of all that go on.
        left_s: seconds of training that are left, one process after the other; None where no rate is known.
        value: mean of the newest returns.
    """

    name: str
    done: int
    planned: int
    going: bool
    share: float
    steps_per_s: float
    left_s: float | None
    value: float | None


def rows_of(runs: Sequence[PlannedRun], ledger: Ledger, progress: Callable[[PlannedRun], Progress]) -> list[Row]:
    """A row for each label on each task, in order.

    Args:
        runs: all of the suite.
        ledger: how they stand.
        progress: how far a run is.
    """
    groups: dict[tuple[str, str], list[PlannedRun]] = {}
    for run in runs:
        groups.setdefault((run.label, run.task), []).append(run)
    every = {run.name: progress(run) for run in runs}
    rates = [each.steps_per_s for each in every.values() if each.steps_per_s]
    usual = sum(rates) / len(rates) if rates else None
    return [_row(f"{label} · {task}", group, ledger, every, usual) for (label, task), group in groups.items()]


_ENDED: tuple[Status, ...] = ("done", "cut off", "failed")


def _row(name: str, runs: list[PlannedRun], ledger: Ledger, every: dict[str, Progress], usual: float | None) -> Row:
    status = {run.name: ledger.of(run.name).status for run in runs}
    own = [every[run.name].steps_per_s for run in runs]
    rates = [rate for rate in own if rate]
    rate = sum(rates) / len(rates) if rates else usual
    missing = [run for run in runs if status[run.name] not in _ENDED]
    steps = sum(max(0, run.steps - every[run.name].steps) for run in missing)
    going = [run for run in runs if status[run.name] == "running"]
    values = [value for run in runs if (value := every[run.name].value) is not None]
    planned = sum(run.steps for run in runs)
    finished = sum(run.steps if status[run.name] in _ENDED else min(run.steps, every[run.name].steps) for run in runs)
    return Row(
        name=name,
        done=sum(status[run.name] in ("done", "cut off") for run in runs),
        planned=len(runs),
        going=bool(going),
        share=finished / planned,
        steps_per_s=sum(every[run.name].steps_per_s or 0.0 for run in going),
        left_s=time_left(missing, steps, rate),
        value=sum(values) / len(values) if values else None,
    )


def eta_s(rows: Sequence[Row], jobs: int) -> float | None:
    """Seconds until all is done, None where no rate is known."""
    left = [row.left_s for row in rows]
    return None if None in left else sum(each for each in left if each is not None) / jobs


class LiveTable:
    """Shows a suite while it goes on; a ``Watcher``.

    Args:
        title: of the suite.
        runs: all of it.
        places: where they are.
        jobs: how many processes go on at a time.
        console: where to; standard error by default.
    """

    def __init__(
        self, title: str, runs: Sequence[PlannedRun], places: Places, jobs: int, console: Console | None = None
    ) -> None:
        self._console = console or make_console(stderr=True)
        self._title, self._runs, self._places, self._jobs = title, runs, places, jobs
        self._ended: dict[str, Progress] = {}  # of runs that nothing changes any more
        self._shown_at = -_REFRESH_S
        self._said_at = time.monotonic()
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None

    def __enter__(self) -> LiveTable:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """See ``Watcher``."""
        self._console.print(text)

    def show(self, ledger: Ledger) -> None:
        """See ``Watcher``."""
        now = time.monotonic()
        due = _REFRESH_S if self._live is not None else _LINE_S
        since = now - (self._shown_at if self._live is not None else self._said_at)
        if since < due:
            return
        self._shown_at = self._said_at = now
        rows = rows_of(self._runs, ledger, lambda run: self._progress(run, ledger))
        if self._live is None:
            self.say(self._headline(rows, ledger))
        else:
            self._live.update(self.table(rows, ledger), refresh=True)

    def table(self, rows: Sequence[Row], ledger: Ledger) -> Group:
        """The whole table, as wide and as high as the terminal: what goes on, and as much else as there is room for."""
        width = self._console.width
        room = max(1, self._console.height - 5)
        shown = [row for row in rows if row.going][:room]
        shown += [row for row in rows if not row.going][: room - len(shown)]
        names = max(_LEAST_NAME, width - _CELLS)
        lines = [Text(self._headline(rows, ledger), "bold"), Text(_line("", names, _HEADINGS), "dim")]
        lines += [Text(_line(row.name, names, _cells(row)), "" if row.going else "dim") for row in rows if row in shown]
        if len(shown) < len(rows):
            lines.append(Text(f"and {len(rows) - len(shown)} more", "dim"))
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        return Group(*lines)

    def _progress(self, run: PlannedRun, ledger: Ledger) -> Progress:
        if run.name in self._ended:
            return self._ended[run.name]
        found = progress_of(self._places.directory(run))
        if ledger.of(run.name).status in _ENDED:
            self._ended[run.name] = found
        return found

    def _headline(self, rows: Sequence[Row], ledger: Ledger) -> str:
        status = [ledger.of(run.name).status for run in self._runs]
        ended = sum(each in ("done", "cut off") for each in status)
        parts = [self._title, f"{ended}/{len(status)} done"]
        parts += [f"{status.count(name)} {name}" for name in ("running", "waiting", "failed") if name in status]
        left = eta_s(rows, self._jobs)
        return " · ".join([*parts, f"ETA {_time(left)}"])


def _time(seconds: float | None) -> str:
    return "-:--:--" if seconds is None else str(timedelta(seconds=max(0, round(seconds))))


def _cells(row: Row) -> tuple[str, ...]:
    return (
        f"{row.done}/{row.planned}",
        f"{100 * row.share:.0f}%",
        f"{row.steps_per_s:,.0f}" if row.going else "",
        _time(row.left_s) if row.left_s != 0.0 else "",
        "" if row.value is None else f"{row.value:.4g}",
    )


def _line(name: str, width: int, cells: Sequence[str]) -> str:
    """The name to the left, cut to its column; the cells to the right, each in its own."""
    cut = name if len(name) <= width else f"{name[: width - 1]}…"
    columns = zip(cells, (6, 6, 9, 10, 10), strict=True)
    return f"{cut:<{width}}" + "".join(f" {cell:>{size}}" for cell, size in columns)
