"""Files of results: whether they can be written is asked before the work, and they are written whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hmarl.runtime.bundle import replace_file
from hmarl.sdk.errors import UsageError

# A full disk may still take a name.
_PROBE_BYTES = 1 << 16
_ATTEMPTS = 100


def check_writable(directory: Path, named: str, advice: str = "choose another directory") -> None:
    """Find out at once whether files can be written into a directory, which need not exist; nothing is left behind.

    Args:
        directory: into which results are written after minutes or hours of work.
        named: how the user named it, e.g. ``--out runs/spread``.
        advice: what to do where it cannot be written; where it is full, that comes after freeing some space.

    Raises:
        UsageError: something is in the way, or it cannot be made or written to.
    """
    try:
        _insist(lambda: _try_to_write(directory))
    except OSError as error:
        told = f"free some space, or {advice}" if error.errno in (errno.ENOSPC, errno.EDQUOT) else advice
        raise UsageError(f"{named}: cannot write there ({error.strerror}); {told}") from error


def make_directory(directory: Path) -> None:
    """Make it with its parents, unless it is there; also while others find out whether they can write there.

    Raises:
        OSError: it cannot be made.
    """
    _insist(lambda: directory.mkdir(parents=True, exist_ok=True))


def _insist(make: Callable[[], None]) -> None:
    """Once more where a folder vanishes under it: another process has found out what it wanted to know."""
    for _ in range(_ATTEMPTS - 1):
        with suppress(FileNotFoundError):
            return make()
    return make()


def _try_to_write(directory: Path) -> None:
    missing = [each for each in (directory, *directory.parents) if not os.path.lexists(each)]
    made: list[Path] = []
    try:
        for each in reversed(missing):
            with suppress(FileExistsError):  # another process has just made it; what else it may be shows below
                each.mkdir()
                made.append(each)
        if not directory.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        with tempfile.TemporaryFile(dir=directory, prefix=".") as probe:
            probe.write(bytes(_PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    finally:
        for each in reversed(made):
            with suppress(OSError):  # no longer empty: another process has moved in
                each.rmdir()


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    replace_file(path, text.encode())
