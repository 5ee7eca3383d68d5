"""systemd's notification protocol, as far as a service of type ``notify`` needs it. Does nothing elsewhere."""

from __future__ import annotations

import contextlib
import os
import socket

_LIMIT_S = 1.0


def notify(message: str) -> None:
    """Send ``READY=1``, ``STOPPING=1`` or ``WATCHDOG=1`` to the service manager that started this process."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # Linux's abstract namespace
        address = "\0" + address[1:]
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
    # A manager that is gone, or does not listen, is no reason to stop serving.
    with socket.socket(socket.AF_UNIX, kind) as channel, contextlib.suppress(OSError):
        channel.settimeout(_LIMIT_S)
        channel.sendto(message.encode(), address)


def watchdog_interval_s() -> float | None:
    """Seconds between two ``WATCHDOG=1`` messages: half of what systemd allows, None when it asks for none."""
    allowed = os.environ.get("WATCHDOG_USEC", "")
    for_us = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(allowed) / 2e6 if allowed.isdecimal() and int(allowed) > 0 and for_us else None
