"""Processes that do not outlive the one that started them (Linux)."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Signal this process once when its parent is gone, even if that was killed.

    A thread waits for the parent's end. The kernel's own signal would come once for every thread of the parent that
    this process is handed on to while they end, dozens of times, and a second SIGTERM means to end at once. SIGKILL is
    the kernel's to send: it comes whatever this process is doing.

    Args:
        parent: process id of the parent; for SIGKILL, the thread of it that started this process lives as long as it.
        number: the signal.

    Raises:
        SystemExit: the parent is gone already.
    """
    if not sys.platform.startswith("linux"):
        return
    if number == signal.SIGKILL or not _watched(parent, number):
        import ctypes  # noqa: PLC0415 - few processes need it

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it died before the lines above
        raise SystemExit(0)


def _watched(parent: int, number: signal.Signals) -> bool:
    """Whether a thread could be started that waits for the parent's end."""
    try:
        descriptor = os.pidfd_open(parent)
    except OSError:  # it is gone, or the kernel is older than 5.3
        return False

    def wait() -> None:
        select.select([descriptor], [], [])
        os.kill(os.getpid(), number)

    try:
        threading.Thread(target=wait, name="parent", daemon=True).start()
    except RuntimeError:  # the system has no more threads
        os.close(descriptor)
        return False
    return True
