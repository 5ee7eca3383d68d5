"""What goes wrong in training and beside it: what ends it, and what is only reported."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from hmarl.runtime.bundle import BundleError
from hmarl.sdk.errors import HmarlError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_log = logging.getLogger(__name__)


class StorageError(HmarlError):
    """What was to be kept could not be written; what was there before is whole."""


class DivergedError(HmarlError):
    """Updates diverged too often in a row; the last good checkpoint is untouched."""


class CheckpointError(BundleError):
    """A checkpoint, or a run, is missing, damaged or does not fit; exit code 3."""


class IncompleteError(HmarlError):
    """Training is done and saved, but something beside it has failed."""


@contextmanager
def storing(then: str = "") -> Iterator[None]:
    """Errors of writing told with the file, and with what to do.

    Args:
        then: what to do when there is space again.

    Raises:
        StorageError: a file could not be written.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in _FULL
        advice = "free some space" if full else "see to it that it can be written"
        reason = error.strerror or str(error)
        raise StorageError(f"{error.filename}: {reason}; {', '.join(filter(None, (advice, then)))}") from error


class Problems:
    """What has failed beside training; each kind is told once at the end, however often it happened."""

    def __init__(self) -> None:
        self._times: dict[str, int] = {}
        self._last: dict[str, str] = {}

    def add(self, kind: str, text: str, advice: str = "") -> None:
        """Report a failure of some kind, and what to do about it, in the log."""
        self._times[kind] = self._times.get(kind, 0) + 1
        self._last[kind] = " ".join(text.split())
        if advice:
            _log.warning("%s; %s", self._last[kind], advice)

    def told(self) -> list[str]:
        """One line for each kind."""
        return [
            text if self._times[kind] == 1 else f"{text} ({kind}: failed {self._times[kind]} times)"
            for kind, text in self._last.items()
        ]
