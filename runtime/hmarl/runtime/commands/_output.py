"""Standard output and standard error, written by threads of their own: whoever has something to say never waits.

A reader that has stopped (a full pipe, a terminal on hold) costs lines, which are counted, and nothing else.
"""

from __future__ import annotations

import functools
import logging
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable

from hmarl.runtime.errors import printable
from hmarl.runtime.output import PLAIN_LETTERS

LINES = 1000  # that wait for a reader at most; further ones are lost
TEXT, JSON = LOG_FORMATS = ("text", "json")
_spoken: Callable[[str], str] = str  # a line as the log has it


class _Lost:
    """Stands in the queue where lines are missing."""

    def __init__(self) -> None:
        self.lines = 1


class Writer:
    """Lines for a file descriptor, in order.

    Args:
        descriptor: where to; None discards everything.
        encoding: of the text; what it lacks is written in plain letters.
        lost: the line that says how many are missing; None says nothing.

    Attributes:
        dropped: how many lines were lost so far.
    """

    def __init__(self, descriptor: int | None, encoding: str, lost: Callable[[int], str] | None = None) -> None:
        self.lost = lost
        self.dropped = 0
        self._descriptor = descriptor
        self._encoding = encoding
        self._waiting: deque[str | _Lost] = deque()
        self._changed = threading.Condition()
        self._writing = False
        self._thread: threading.Thread | None = None

    def put(self, line: str) -> None:
        """Have a line written, or lose it when too many are waiting."""
        if self._descriptor is None:
            return
        with self._changed:
            if self._thread is None:  # not before it is needed: a process may want to choose its processor core first
                self._thread = threading.Thread(target=self._write_all, name="output", daemon=True)
                self._thread.start()
            if len(self._waiting) < LINES:
                self._waiting.append(line)
            else:
                self.dropped += 1
                if isinstance(last := self._waiting[-1], _Lost):
                    last.lines += 1
                else:
                    self._waiting.append(_Lost())
            self._changed.notify_all()

    def flush(self, limit_s: float) -> bool:
        """Wait until everything is written, but not for longer than ``limit_s``; says whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._writing, limit_s)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting)
                line = self._waiting.popleft()
                self._writing = True
            if isinstance(line, str):
                self._write(line)
            elif self.lost is not None:
                self._write(self.lost(line.lines))

    def _write(self, line: str) -> None:
        assert self._descriptor is not None
        rest = (line + "\n").encode(self._encoding, PLAIN_LETTERS)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # another process that shares the pipe wanted it so
                select.select([], [self._descriptor], [])
            except OSError:
                return  # the reader is gone


def _writer(stream: object) -> Writer:
    # A stream that was closed before the program began is None, and its number may be that of another file by now.
    descriptor = None if stream is None else stream.fileno()  # type: ignore[attr-defined]
    return Writer(descriptor, getattr(stream, "encoding", None) or "utf-8")


OUTPUT = _writer(sys.__stdout__)
ERRORS = _writer(sys.__stderr__)


def flush(limit_s: float) -> None:
    """Give what was said a moment to get out."""
    for writer in (OUTPUT, ERRORS):
        writer.flush(limit_s)


class _TextLines(logging.Formatter):
    """A message is one line, whosever words a library repeats in it; tracebacks follow as they are."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


class _Handler(logging.Handler):
    """Log records as lines on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            ERRORS.put(self.format(record))
        except Exception:
            self.handleError(record)


def lines_dropped() -> int:
    """How many lines this process could not get rid of."""
    return OUTPUT.dropped + ERRORS.dropped


def start_logging(level: str, name: str, form: str = TEXT, agent: str | None = None) -> None:
    """Log to standard error.

    Args:
        level: the least that is logged.
        name: of the program, in every line.
        form: ``text``: lines with the time and ``name``; ``json``: an object a line, see ``json_lines``.
        agent: in every object.
    """
    global _spoken  # noqa: PLW0603 - as long as the process has one standard error, it has one form
    formatter: logging.Formatter
    if form == JSON:
        from hmarl.runtime.json_lines import JsonLines  # noqa: PLC0415 - not always needed

        formatter = lines = JsonLines(agent)
        _spoken = functools.partial(lines.line, "error", name.partition(" ")[0])
        ERRORS.lost = lambda count: lines.line("warning", name.partition(" ")[0], _missing(count))
    else:
        formatter = _TextLines(f"%(asctime)s %(levelname)s {name.replace('%', '%%')}: %(message)s")
        ERRORS.lost = lambda count: f"{name}: {_missing(count)}"
    handler = _Handler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler])
    threading.excepthook = _log_thread
    logging.raiseExceptions = False  # what cannot be formatted would be reported straight to standard error


def say_error(line: str) -> None:
    """What ends the program, in the form of its log."""
    ERRORS.put(_spoken(line))


def _missing(lines: int) -> str:
    return f"{lines} lines are missing here: nothing read them"


def _log_thread(end: threading.ExceptHookArgs) -> None:
    """What ended a thread; Python itself would write it straight to standard error."""
    if end.exc_value is not None and not isinstance(end.exc_value, SystemExit):
        name = "" if end.thread is None else end.thread.name
        logging.getLogger("hmarl").error("thread %s ended", name, exc_info=end.exc_value)
