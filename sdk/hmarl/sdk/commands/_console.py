"""What commands show: laid out for the terminal's width, in full in a pipe, and what users name is never markup."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

# A pipe has no width. (Rich would take 80 columns for it, and cut.)
_UNLIMITED = 100_000
_LEAST_PROSE = 30
_INDENT = 4
_GAP = 2


class _Console(Console):
    """A console that goes silent when its reader has gone: work that goes on is worth more than what is said of it."""

    quiet: bool  # made by Rich

    def on_broken_pipe(self) -> None:
        """Rich's own ends the program."""
        self.quiet = True
        with suppress(OSError, ValueError):
            # What still lies in the stream's buffer is an error at the program's end otherwise.
            descriptor = os.open(os.devnull, os.O_WRONLY)
            os.dup2(descriptor, self.file.fileno())
            os.close(descriptor)


def make_console(*, stderr: bool = False) -> Console:
    """A console whose messages are neither wrapped nor cut, nor searched for markup."""
    stream = sys.stderr if stderr else sys.stdout
    terminal = stream is not None and stream.isatty()
    return _Console(
        stderr=stderr,
        markup=False,
        emoji=False,
        highlight=False,
        soft_wrap=True,  # a terminal wraps by itself, so that what is copied from it is one line
        width=None if terminal else _UNLIMITED,
    )


def print_listing(
    console: Console, columns: Sequence[str], rows: Sequence[Sequence[str | Text]], title: str | None = None
) -> None:
    """Print rows whose last column is prose; the others hold names to be typed, and are never cut or folded.

    Where the names leave too little room for the prose, it stands below them.

    Args:
        console: see ``make_console``.
        columns: their headings.
        rows: one cell per column each.
        title: stands above.
    """
    if title is not None:
        console.print(title, style="italic")
    texts = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    names = [max([cell_len(heading), *(row[i].cell_len for row in texts)]) for i, heading in enumerate(columns[:-1])]
    if console.width - sum(names) - _borders(columns) >= _LEAST_PROSE:
        typed = (Column(heading, no_wrap=True) for heading in columns[:-1])
        table = Table(*typed, Column(columns[-1], overflow="fold"))
        for row in texts:
            table.add_row(*row)
        console.print(table, soft_wrap=False)
        return
    for row in [[Text(heading, "bold") for heading in columns], *texts]:
        _print_cells(console, row[:-1], names)
        console.print(Padding(row[-1], (0, 0, 0, _INDENT), expand=False), soft_wrap=False)


def _borders(columns: Sequence[str]) -> int:
    """How many characters of a line a table's borders take."""
    return 3 * len(columns) + 1


def _print_cells(console: Console, cells: Sequence[Text], widths: Sequence[int], figures: bool = False) -> None:
    """Print a row's cells side by side, those that the terminal has no room for on further lines, each whole.

    Args:
        console: see ``make_console``.
        cells: one per column.
        widths: of the columns, so that all rows are divided alike.
        figures: all cells but the first stand to the right of their columns.
    """
    lines, used = [Text()], 0
    for i, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        gap = _GAP if used else 0
        if used and used + gap + width > console.width:
            lines.append(Text(" " * _INDENT))
            used, gap = _INDENT, 0
        room = " " * (width - cell.cell_len)
        lines[-1].append_text(Text(" " * gap) + (Text(room) + cell if figures and i else cell + Text(room)))
        used += gap + width
    for line in lines:
        line.rstrip()
        console.print(line)


def print_table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print figures: names to the left, everything else to the right.

    No figure is folded: of columns with headings, those that the terminal has no room for stand below the others.

    Args:
        console: see ``make_console``.
        title: stands above.
        columns: their headings; all empty for names and what is said of them, which is folded as prose is.
        rows: one cell per column each.
    """
    console.print(title, style="italic")
    headed = any(columns)
    widths = [max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)]
    if headed and sum(widths) + _borders(columns) > console.width:
        for i, row in enumerate([columns, *rows]):
            _print_cells(console, [Text(cell, "" if i else "bold") for cell in row], widths, figures=True)
        return
    table = Table(show_header=headed)
    for i, heading in enumerate(columns):
        table.add_column(heading, justify="right" if i and headed else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table, soft_wrap=False)


def progress_bar(console: Console, remaining: ProgressColumn | None = None) -> Progress:
    """A bar that fills what its title, the share and the time that remains leave of a line; gone once it is stopped.

    Args:
        console: see ``make_console``; nothing is shown where it is no terminal.
        remaining: shows the time that remains; rich's own where None.
    """
    return Progress(
        TextColumn(
            "{task.description}",
            style="bold",
            markup=False,
            table_column=Column(no_wrap=True, overflow="ellipsis", max_width=32),
        ),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=10)),
        TextColumn("{task.percentage:5.1f}%", table_column=Column(no_wrap=True)),
        TextColumn("ETA"),
        remaining or TimeRemainingColumn(table_column=Column(no_wrap=True)),
        console=console,
        expand=True,
        transient=True,
        disable=not console.is_terminal,
    )
