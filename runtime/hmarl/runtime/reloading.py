"""Values that are read from files, and read again when the files change; the last good one stays."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from hmarl.runtime.errors import one_line

Value = TypeVar("Value")
# Files that belong together are replaced one after the other; what does not fit is complained of only when it stays so.
SETTLING_S = 1.0
_Signature = tuple[tuple[int, ...] | None, ...]


class Reloaded(Generic[Value]):
    """A value read from files; safe to use from several threads.

    Args:
        what: it is, for the log: ``the certificate``.
        paths: of the files.
        read: the value; raises UsageError where the files do not hold one.
        logger: told of each change, and of what is wrong.
        clock: monotonic seconds.

    Attributes:
        value: as it was read last without an error.
        reloads: how often another value was read.
        failures: how often the files changed into something that cannot be used.

    Raises:
        UsageError: the files hold none now.
    """

    def __init__(
        self,
        what: str,
        paths: Sequence[Path],
        read: Callable[[], Value],
        logger: logging.Logger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._paths = tuple(paths)
        self._read = read
        self._logger = logger
        self._clock = clock
        self._lock = threading.Lock()
        self.reloads = self.failures = 0
        self._refused: tuple[_Signature, float, bool] | None = None  # since when, and whether it has been told
        self._signature = self._now()
        self.value = read()

    def look(self) -> bool:
        """Read again if the files have changed; returns whether there is another value."""
        signature = self._now()
        if signature == self._signature or not self._lock.acquire(blocking=False):
            return False  # as it was, or another thread is looking
        try:
            return self._take(signature)
        finally:
            self._lock.release()

    def _take(self, signature: _Signature) -> bool:
        if self._refused is not None and self._refused[0] == signature and self._refused[2]:
            return False
        try:
            value = self._read()
        except Exception as error:  # whatever a file holds: those who look go on
            self._refuse(signature, error)
            return False
        if self._now() != signature:  # changed while it was read
            return False
        self._signature, self._refused, self.value = signature, None, value
        self.reloads += 1
        self._logger.info("read %s again: %s", self._what, ", ".join(map(str, self._paths)))
        return True

    def _refuse(self, signature: _Signature, error: Exception) -> None:
        """Note files that cannot be used; say so once, when they stay as they are."""
        now = self._clock()
        if self._refused is None or self._refused[0] != signature:
            self._refused = (signature, now, False)
        elif now - self._refused[1] >= SETTLING_S:
            self._refused = (signature, now, True)
            self.failures += 1
            self._logger.error("%s cannot be used, the last good one stays: %s", self._what, one_line(error))

    def _now(self) -> _Signature:
        return tuple(map(_signature, self._paths))


def _signature(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class Watch:
    """A thread that looks at the files of several values, once a second.

    Args:
        values: that may change.
        also: done after each look.
    """

    EVERY_S = 1.0

    def __init__(self, values: Sequence[Reloaded[Any]], also: Callable[[], None] = lambda: None) -> None:
        self._values = tuple(values)
        self._also = also

    def start(self, stopped: threading.Event) -> None:
        """Look until ``stopped`` is set."""
        threading.Thread(target=self._run, args=(stopped,), name="hmarl-files", daemon=True).start()

    def _run(self, stopped: threading.Event) -> None:
        while not stopped.wait(self.EVERY_S):
            for value in self._values:
                value.look()
            self._also()
