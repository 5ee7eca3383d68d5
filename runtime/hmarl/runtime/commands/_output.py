"""Standard output and standard error, written by threads of their own: whoever has something to say never waits.

A reader that has stopped (a full pipe, a terminal on hold) costs lines, which are counted, and nothing else.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable

from hmarl.runtime.output import PLAIN_LETTERS

LINES = 1000  # that wait for a reader at most; further ones are lost


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
    """

    def __init__(self, descriptor: int | None, encoding: str, lost: Callable[[int], str] | None = None) -> None:
        self.lost = lost
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
            elif isinstance(last := self._waiting[-1], _Lost):
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


class _Handler(logging.Handler):
    """Log records as lines on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            ERRORS.put(self.format(record))
        except Exception:
            self.handleError(record)


def start_logging(level: str, name: str) -> None:
    """Log to standard error, every line with the time and ``name``."""
    layout = f"%(asctime)s %(levelname)s {name.replace('%', '%%')}: %(message)s"
    handler = _Handler()
    handler.setFormatter(logging.Formatter(layout))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    ERRORS.lost = lambda lines: f"{name}: {lines} lines are missing here: nothing read them"
    logging.raiseExceptions = False  # what cannot be formatted would be reported straight to standard error
    # gRPC's core writes straight to standard error as well, from the threads that serve.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
