"""Unix sockets' names in the file system: nothing that is not ours is taken away."""

from __future__ import annotations

import contextlib
import os
import socket
import stat

from hmarl.runtime.errors import HmarlError, UsageError

LONGEST_PATH = 100


def claim(path: str, option: str = "--listen", scheme: str = "unix:") -> None:
    """Make sure that a socket can be bound at a path; one that a process left behind when it was killed is removed.

    gRPC itself would take a socket in use away from its owner.

    Args:
        path: of the socket.
        option: by which it is chosen.
        scheme: of its address.

    Raises:
        UsageError: the path is too long, has no directory, or is that of something else than a socket.
        HmarlError: the socket is in use.
    """
    name = option.removeprefix("--")
    if not path or len(os.fsencode(path)) > LONGEST_PATH:
        raise UsageError(f"{name}: got a socket path of {len(path)} characters, expected 1 to {LONGEST_PATH}: '{path}'")
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise UsageError(f"{name}: there is no directory '{os.path.dirname(path)}' for the socket '{path}'")
    if os.path.lexists(path) and not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise UsageError(f"{name}: '{path}' is there already and is no socket; choose another path, or remove it")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # its owner may be frozen, and its queue full
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return
        except BlockingIOError:
            pass
        except OSError as error:
            raise HmarlError(f"cannot listen on {scheme}{path}: {error.strerror}") from error
    raise HmarlError(f"cannot listen on {scheme}{path}: the address is in use; choose another with {option}")


class BoundPath:
    """The name of a socket that this process has just bound."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._identity = _identity(path)

    def remove(self) -> None:
        """Remove it, unless something else has that name by now."""
        if self._identity is not None and _identity(self._path) == self._identity:
            with contextlib.suppress(OSError):
                os.unlink(self._path)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino)
