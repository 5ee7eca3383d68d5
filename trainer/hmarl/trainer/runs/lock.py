"""One owner of a run directory at a time: an advisory lock of the operating system on ``RUN/.lock``.

The kernel frees it when its process ends, however that one ends. Children do not inherit it: programs that are started
find it closed (close-on-exec), and what is merely forked closes it at once, so that a hung worker holds nothing.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from hmarl.sdk.errors import UsageError
from hmarl.sdk.files import make_directory

NAME = ".lock"
# File systems that know no locks: some mounts over a network, some in user space.
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_log = logging.getLogger(__name__)
_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


class InUseError(UsageError):
    """Another process, or another run in this one, owns the directory."""


class RunLock:
    """Ownership of a run directory, from its making to ``release``.

    Args:
        directory: the run's; made where it is not there.
        called: what it is, for messages.

    Raises:
        InUseError: another process, or another run in this one, owns it.
        UsageError: it cannot be written.
    """

    def __init__(self, directory: Path, called: str = "run directory") -> None:
        self._directory = directory
        self._descriptor: int | None = None
        self._made = [path for path in (directory, *directory.parents) if not path.exists()]
        try:
            make_directory(directory)
            self._descriptor = _locked(directory / NAME, called)
        except OSError as error:
            self._remove_made()
            raise UsageError(
                f"{called} {directory}: cannot be written ({error.strerror}); make it writable, or choose another"
            ) from error
        except KeyboardInterrupt:
            # The file may be there and not be locked yet, or be locked by whoever was quicker.
            if self._made:
                with suppress(OSError, UsageError):
                    self._descriptor = _locked(directory / NAME, called)
                    self.discard()
            self._remove_made()
            raise
        _held.add(self)

    def release(self) -> None:
        """Give the directory up; a second call does nothing."""
        if self._descriptor is not None:
            with suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            self.forget()

    def discard(self) -> None:
        """Give it up and remove what was made for the lock alone: nothing has been written into the directory."""
        if self._made:
            with suppress(OSError):
                (self._directory / NAME).unlink()
        self.release()
        self._remove_made()

    def forget(self) -> None:
        """Close the file without freeing the lock in the processes that have it open too."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _remove_made(self) -> None:
        for path in self._made:
            with suppress(OSError):
                path.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _locked(path: Path, called: str) -> int:
    """Descriptor of the file at ``path``, locked, with this process named in it.

    Raises:
        InUseError: another process, or another run in this one, has locked it.
        OSError: it cannot be opened or written.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(descriptor, path, called)
            if _is_at(descriptor, path):
                owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n"
                with suppress(OSError):  # a full disk; the lock itself needs no space
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, owner.encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # The owner before removed the file between our opening and locking it.
        os.close(descriptor)


def _lock(descriptor: int, path: Path, called: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InUseError(
            f"{called} {path.parent}: in use by {_owner(descriptor)}; wait until it has ended, stop it, or choose "
            "another directory"
        ) from error
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _log.warning(
            "%s: this file system has no locks (%s); take care that no second process uses the run",
            path,
            error.strerror,
        )


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _owner(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        pid, host = int(owner["pid"]), str(owner["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
    return f"process {pid}" if host == socket.gethostname() else f"process {pid} on {host}"


def _forget_in_child() -> None:
    for lock in list(_held):
        lock.forget()


os.register_at_fork(after_in_child=_forget_in_child)
