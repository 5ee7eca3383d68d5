"""The end of what peers leave open: calls and connections that are silent, or idle for too long."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import Protocol

from hmarl.runtime.repeats import RepeatLog

# What has not come within this is waited for no longer; sooner, when many wait.
SILENT_FOR_S = 10.0
CROWDED_SILENT_FOR_S = 0.1
_EVERY_S = 1.0


class Swept(Protocol):
    """What has calls or connections that may have to be ended.

    Attributes:
        name: for the log.
        what: is ended: ``calls`` or ``connections``.
        crowded: set when many wait; then it is looked at again soon.
    """

    name: str
    what: str
    crowded: threading.Event

    def sweep(self) -> int:
        """End those that have been silent or idle for too long; returns how many."""
        ...


class Sweeper:
    """A thread that ends silent and idle calls, and says so now and then.

    Args:
        lines: whose calls and connections.
        log: for what peers can cause.
    """

    def __init__(self, lines: Iterable[Swept], log: RepeatLog) -> None:
        self._lines = list(lines)
        self._log = log
        self._crowded = threading.Event()
        for line in self._lines:
            line.crowded = self._crowded

    def start(self, stopped: threading.Event) -> None:
        """Sweep until ``stopped`` is set."""
        threading.Thread(target=self._run, args=(stopped,), name="hmarl-sweeper", daemon=True).start()

    def _run(self, stopped: threading.Event) -> None:
        while not stopped.is_set():
            if self._crowded.wait(_EVERY_S):
                self._crowded.clear()
                stopped.wait(CROWDED_SILENT_FOR_S / 2)
            for line in self._lines:
                ended = line.sweep()
                if ended:
                    text = f"{line.name}: ended {ended} {line.what} that were silent or idle for too long"
                    self._log.say(f"ended {line.name}", logging.WARNING, text)
            self._log.flush()
