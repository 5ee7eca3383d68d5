"""The file in which a fleet tells its addresses: there while it serves, and never in the place of another's file."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import stat
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hmarl.runtime._files import sync_directory
from hmarl.runtime.errors import HmarlError, UsageError
from hmarl.runtime.plain_json import read_json

FORMAT = "hmarl-fleet endpoints"  # how a file of ours is known
_LARGEST_BYTES = 2**24
_PROBE_BYTES = 2**16  # a full disk may still take a name


class EndpointsFile:
    """A path that a fleet has claimed. The file's owner holds a lock on it, which the kernel frees when it dies.

    Args:
        path: what a fleet that has died left there is removed at once, so that its addresses are not taken for ours.

    Raises:
        UsageError: the path is in use: by a file that no fleet wrote, by a fleet that runs, or by something that is no
            file; or nothing can be written there. Nothing has been changed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._descriptor: int | None = None
        self._removed = False
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--out: cannot make the folder '{self.path.parent}': {error.strerror}") from error
        self._remove_stale()
        self._try_to_write()

    def write(self, description: Mapping[str, Any]) -> None:
        """Let the file appear, whole, or change it: who reads it gets one or the other, and it is locked all the while.

        After ``remove`` it does nothing.

        Raises:
            UsageError: something has taken the path in the meantime.
            HmarlError: it cannot be written, for example because the disk is full.
        """
        with self._lock:
            if self._removed:
                return
            try:
                self._write(description)
            except OSError as error:
                raise HmarlError(
                    f"--out: cannot write '{self.path}': {error.strerror}; free some space, or choose another path"
                ) from error

    def _write(self, description: Mapping[str, Any]) -> None:
        name = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.tmp")
        descriptor = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with open(descriptor, "wb", closefd=False) as stream:
                stream.write((json.dumps(marked(description), indent=2) + "\n").encode())
            os.fsync(descriptor)
            if self._is_ours():
                os.replace(name, self.path)
            else:
                self._remove_stale()
                os.link(name, self.path)  # unlike a rename, this replaces nothing
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, FileExistsError):
                raise UsageError(f"--out: '{self.path}' has been taken in the meantime; choose another path") from error
            raise
        finally:
            name.unlink(missing_ok=True)
        before, self._descriptor = self._descriptor, descriptor
        if before is not None:
            os.close(before)
        sync_directory(self.path.parent)

    def remove(self) -> None:
        """Remove the file, if it is still ours; a second call does nothing."""
        with self._lock:
            self._removed = True
            if self._descriptor is None:
                return
            with contextlib.suppress(OSError):
                if self._is_ours():
                    self.path.unlink()
            os.close(self._descriptor)
            self._descriptor = None

    def _is_ours(self) -> bool:
        """Whether the path is that of the file that was written last."""
        try:
            return self._descriptor is not None and os.path.samestat(os.lstat(self.path), os.fstat(self._descriptor))
        except OSError:
            return False

    def _try_to_write(self) -> None:
        """Find out by doing it: what the permissions promise, a file system may still refuse."""
        try:
            with tempfile.TemporaryFile(dir=self.path.parent, prefix=".") as probe:
                probe.write(bytes(_PROBE_BYTES))
                probe.flush()
        except OSError as error:
            raise UsageError(
                f"--out: got '{self.path}', but nothing can be written in that folder: {error.strerror}; choose another"
            ) from error

    def _remove_stale(self) -> None:
        """Remove what a fleet that has died left at the path; refuse everything else."""
        refusal = f"--out: '{self.path}'"
        advice = "choose another path, or remove it"
        try:
            if not stat.S_ISREG(os.lstat(self.path).st_mode):
                raise UsageError(f"{refusal} is no regular file; {advice}")
            # Not followed and not waited for, should it have become something else since.
            descriptor = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        except OSError as error:
            raise UsageError(f"{refusal} is there already and cannot be opened: {error.strerror}; {advice}") from error
        with open(descriptor, "rb") as stream:
            owner = _owner(stream.read(_LARGEST_BYTES))
            if owner is None:
                raise UsageError(f"{refusal} is there already, and no fleet wrote it; {advice}")
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UsageError(
                    f"{refusal} belongs to a fleet that is running, process {owner}; choose another path, or stop it"
                ) from None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.lstat(self.path), os.fstat(descriptor)):
                    self.path.unlink()


def read_endpoints(path: Path) -> dict[str, Any]:
    """The content of the endpoints file of a fleet.

    Raises:
        UsageError: it cannot be read, or no fleet wrote it.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(_LARGEST_BYTES)
    except OSError as error:
        raise UsageError(
            f"endpoints: '{path}': {error.strerror}; take the file that hmarl-fleet --out wrote"
        ) from error
    if _owner(content) is None:
        raise UsageError(f"endpoints: got '{path}', which no fleet wrote; take the file that hmarl-fleet --out wrote")
    return dict(json.loads(content))


def marked(description: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be told, with what makes it recognisable as this fleet's."""
    return {"format": FORMAT, "pid": os.getpid(), **description}


def _owner(content: bytes) -> int | None:
    """The process that wrote an endpoints file; None for the content of any other file."""
    try:
        document = read_json(content)
    except ValueError:
        return None
    if not isinstance(document, dict) or document.get("format") != FORMAT or not isinstance(document.get("pid"), int):
        return None
    return int(document["pid"])
