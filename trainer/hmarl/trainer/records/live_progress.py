"""What a run shows while it goes on: a bar, rates, the time to go, and the figures that its algorithm chose."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, Group
from rich.live import Live
from rich.progress import ProgressColumn, Task
from rich.text import Text

from hmarl.sdk.commands._console import make_console, progress_bar


class LiveProgress:
    """A progress bar with rates, ETA and the figures that tell whether learning goes well.

    On a terminal it is redrawn in place: the bar in one line, the figures below in as many as they need; elsewhere a
    line is printed every ``line_interval_s`` seconds.

    Args:
        title: what goes on.
        total: steps of the whole.
        done: steps that are done already.
        shown: the metrics whose figures are shown, in this order, where an update has them.
        line_interval_s: see above.
        among: what tells this from others that are shown along with it: lines begin with it, and nothing is redrawn.
    """

    def __init__(
        self,
        title: str,
        total: int,
        done: int,
        shown: Sequence[str],
        line_interval_s: float = 10.0,
        among: str = "",
    ) -> None:
        self._console, self._among = make_console(stderr=True), f"{among}: " if among else ""
        self._total, self._started_at, self._start = total, done, time.monotonic()
        self._shown, self._line_interval_s, self._last_line = tuple(shown), line_interval_s, self._start
        self._figures: list[str] = []
        self._progress = progress_bar(self._console, _Remaining())
        self._task = self._progress.add_task(title, total=total, completed=done, due=None)
        redrawn = self._console.is_terminal and not among
        self._live = Live(get_renderable=self._display, console=self._console) if redrawn else None

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
        self._figures += [f"{key.replace('_', ' ')} {metrics[key]:.4g}" for key in self._shown if key in metrics]
        self._progress.update(self._task, completed=steps, due=now + eta_s)
        if self._live is None and (now - self._last_line >= self._line_interval_s or steps >= self._total):
            self._last_line = now
            share = min(1.0, steps / self._total)
            self.say(" · ".join([f"{100 * share:5.1f}%", f"ETA {eta_s:,.0f} s", *self._figures]))

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(f"{self._among}{text}")

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
