"""How ``hmarl-fleet reload`` reaches a running fleet: a Unix socket that only the fleet's own user can open.

It lies in a folder of its own that no other user can enter, and every caller's user is checked besides.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hmarl.runtime.control import Channel
from hmarl.runtime.errors import HmarlError, UsageError

LOGGER = logging.getLogger("hmarl.fleet")
_PATIENCE_S = 5.0  # for a caller that says nothing
_CALLERS = 4
_AGAIN_AFTER_S = 0.2
_ANSWER_LIMIT_S = 240.0  # between two messages of a fleet: loading on a busy machine, and a member's restart
Reload = Callable[[Path, Callable[[str], None]], dict[str, Any]]


class ReloadDoor:
    """Takes orders to reload; open from construction on.

    Args:
        reload: does it, is told how to say how it goes, and returns what is served in the end.

    Attributes:
        path: of the socket.

    Raises:
        OSError: there is no place for a socket.
    """

    def __init__(self, reload: Reload) -> None:
        self._reload = reload
        folder = tempfile.mkdtemp(prefix="hmarl-fleet-")  # mode 0700
        self.path = Path(folder) / "control"
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            self._listener.bind(str(self.path))
            self.path.chmod(0o600)
            self._listener.listen(_CALLERS)
        except OSError:
            self.close()
            raise
        threading.Thread(target=self._listen, name="fleet-control", daemon=True).start()

    def close(self) -> None:
        """Take no more orders, and remove the socket; a second call does nothing."""
        shutil.rmtree(self.path.parent, ignore_errors=True)
        self._listener.close()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._listener.fileno() < 0:
                    return  # closed
                time.sleep(_AGAIN_AFTER_S)  # no descriptors are left: a caller waits until there are some
                continue
            if _user_of(connection) not in (os.geteuid(), 0, None):
                connection.close()
                continue
            answering = threading.Thread(target=self._answer, args=(connection,), name="fleet-control", daemon=True)
            try:
                answering.start()
            except RuntimeError:  # no thread is left: the caller is told so by the end
                connection.close()

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(_PATIENCE_S)
        channel = Channel(connection)

        def send(message: dict[str, Any]) -> None:
            with contextlib.suppress(OSError):  # a caller that has left changes nothing
                channel.send(message)

        with contextlib.closing(channel):
            try:
                order = channel.receive()
            except OSError:
                return
            path = None if order is None else order.get("reload")
            if not isinstance(path, str):
                return
            try:
                send({"done": self._reload(Path(path), lambda text: send({"say": text}))})
            except HmarlError as error:
                send({"problem": str(error), "exit_code": error.exit_code})
            except Exception as error:
                LOGGER.exception("reload: nothing has changed")
                send({"problem": f"{type(error).__name__}: {error}", "exit_code": HmarlError.exit_code})


def _user_of(connection: socket.socket) -> int | None:
    """The user at the other end; None where the system does not tell."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    return int(struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i")))[1])


def ask_for_reload(door: Path, bundle: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Have a running fleet reload.

    Args:
        door: the socket.
        bundle: what it shall serve.
        say: told how it goes.

    Returns:
        What the fleet serves now.

    Raises:
        RefusedReloadError: the fleet goes on as before; with the exit code of its reason.
        HmarlError: no fleet answers.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_ANSWER_LIMIT_S)
        try:
            connection.connect(str(door))
        except OSError as error:
            raise HmarlError(f"no fleet answers at {door}: {error.strerror}; has it ended?") from error
        channel = Channel(connection)
        with contextlib.suppress(OSError):
            channel.send({"reload": str(bundle.absolute())})
            while (message := channel.receive()) is not None:
                if "done" in message:
                    return dict(message["done"])
                if "problem" in message:
                    raise RefusedReloadError(f"nothing has changed: {message['problem']}", int(message["exit_code"]))
                say(str(message.get("say", "")))
    raise HmarlError(f"the fleet at {door} has not answered to the end: has it ended, or does another user run it?")


class RefusedReloadError(HmarlError):
    """A fleet goes on as before.

    Args:
        text: why.
        exit_code: of the reason.
    """

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code if exit_code != UsageError.exit_code else HmarlError.exit_code
