"""Processes that do not outlive the one that started them (Linux)."""

from __future__ import annotations

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Let the kernel signal this process when its parent is gone, even if that was killed.

    Args:
        parent: process id of the parent, whose thread that started this process lives as long as it does.
        number: the signal.

    Raises:
        SystemExit: the parent is gone already.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes  # noqa: PLC0415 - few processes need it

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it died before the line above
        raise SystemExit(0)
