"""systemd's notification protocol, as far as a service of type ``notify`` needs it. Does nothing elsewhere."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator

_LIMIT_S = 1.0


def notify(message: str) -> None:
    """Send ``READY=1``, ``STOPPING=1`` and the like to the service manager that started this process."""
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


@contextlib.contextmanager
def reloading() -> Iterator[None]:
    """Let the service manager wait until a reload has ended, well or not (``Type=notify-reload``)."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
    try:
        yield
    finally:
        notify("READY=1")


def watchdog_interval_s() -> float | None:
    """Seconds between two ``WATCHDOG=1`` messages: half of what systemd allows, None when it asks for none."""
    allowed = os.environ.get("WATCHDOG_USEC", "")
    for_us = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(allowed) / 2e6 if allowed.isdecimal() and int(allowed) > 0 and for_us else None
