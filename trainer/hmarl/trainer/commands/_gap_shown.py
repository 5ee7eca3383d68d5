"""What hmarl-gap shows while it plays, and when it has."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console

from hmarl.sdk.commands._console import print_table, progress_bar
from hmarl.sdk.gap.card import difference_of, told
from hmarl.sdk.gap.document import Gap, RungResult
from hmarl.sdk.gap.ladder import Rung

_LINE_INTERVAL_S = 10.0


class Progress:
    """Which rung is played, how far all of them are, and the time to go: a bar, or lines where there is no terminal."""

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total, self._bar = console, total, progress_bar(console)
        self._task = self._bar.add_task("playing", total=total)
        self._title, self._done = "", 0
        self._begin = self._last_line = time.monotonic()
        self._begun_with: int | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begins(self, rung: Rung) -> None:
        """A rung is about to be played."""
        self._title = rung.title
        self._bar.update(self._task, description=rung.title)
        if not self._console.is_terminal:
            self._line()

    def played(self, episodes: int) -> None:
        """So many episodes are done in all."""
        self._done = episodes
        self._bar.update(self._task, completed=episodes)
        if not self._console.is_terminal and time.monotonic() - self._last_line >= _LINE_INTERVAL_S:
            self._line()

    def _line(self) -> None:
        self._last_line = now = time.monotonic()
        if self._begun_with is None:
            self._begin, self._begun_with = now, self._done
        rate = (self._done - self._begun_with) / max(now - self._begin, 1e-9)
        eta = f"{(self._total - self._done) / rate:,.0f} s" if rate > 0 else "-"
        share, done = f"{100 * self._done / self._total:5.1f}%", f"{self._done:,} of {self._total:,} episodes"
        self._console.print(f"{share} · ETA {eta} · {done} · {self._title}")


def show(console: Console, result: Gap) -> None:
    """A table of the rungs, and a line for each step."""
    title = f"{result.name} on {result.environment}, {result.episodes} episodes, {result.actions} actions"
    rows = [(each.name, _span(each), difference_of(result, each.name)) for each in result.rungs]
    print_table(console, title, ("rung", "return, mean [95 %]", "difference [95 %]"), rows)
    for line in told(result):
        console.print(line)


def _span(rung: RungResult) -> str:
    low, high = rung.mean_ci95
    return f"{rung.mean:.2f} [{low:.2f}, {high:.2f}]"
