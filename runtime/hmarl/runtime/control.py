"""Messages between processes of one user: JSON objects, one a line, over a socket that no peer can reach."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

CONTROL_VARIABLE = "HMARL_CONTROL_FD"  # set by hmarl-fleet: the descriptor over which it speaks to a member
_LARGEST_BYTES = 2**20
_PART_BYTES = 2**16


class Channel:
    """One end of a connection.

    Args:
        connection: a connected stream socket, which the channel owns from now on.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._rest = b""

    def send(self, message: dict[str, Any]) -> None:
        """Send a message.

        Raises:
            OSError: the other end is gone, or takes nothing.
        """
        self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """The next message; None once the other end is gone, or has sent something that is no message.

        Raises:
            BlockingIOError: none has come whole, and the socket does not wait.
            TimeoutError: none has come within the socket's time.
        """
        while b"\n" not in self._rest:
            try:
                part = self._connection.recv(_PART_BYTES)
            except ConnectionError:
                return None
            if not part or len(self._rest) > _LARGEST_BYTES:
                return None
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        with contextlib.suppress(ValueError, RecursionError):
            message = json.loads(line)
            if isinstance(message, dict):
                return message
        return None

    def close(self) -> None:
        """Close this end."""
        self._connection.close()
