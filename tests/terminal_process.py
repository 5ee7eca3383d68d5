"""Real processes with a terminal of their own, which can be taken away from them."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

_TAKE_THE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@contextmanager
def terminal_process(*words: str) -> Iterator[tuple[subprocess.Popen[str], Callable[[], None]]]:
    """A Python program whose controlling terminal is a new one, and what ends that terminal.

    Args:
        words: Python's arguments.
    """
    ours, theirs = pty.openpty()
    ends: Sequence[int] = [ours]

    def hang_up() -> None:
        nonlocal ends
        for end in ends:
            os.close(end)
        ends = []

    with subprocess.Popen(
        [sys.executable, "-c", _TAKE_THE_TERMINAL, *words],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        try:
            yield process, hang_up
        finally:
            process.kill()
            hang_up()
