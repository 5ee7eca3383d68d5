"""How a serving process ends: on a signal, within bounds, with nothing left behind that it can take away.

SIGHUP means two things: the end of the terminal that a process was started in, which ends it, and from anywhere else
the wish that it loads its bundle again. They are told apart by whether the terminal is still there.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from hmarl.runtime.commands import _output
from hmarl.runtime.shutdown import within

STOPPING = (signal.SIGTERM, signal.SIGINT)
HANDLED = (*STOPPING, signal.SIGHUP)
_CLEANUP_S = 2.0
_LAST_WORDS_S = 1.0
_cleanups: list[Callable[[], None]] = []
_ends = threading.Lock()


def at_end(cleanup: Callable[[], None]) -> None:
    """Have something done before the process ends, if it can be done in two seconds; the last one first."""
    _cleanups.append(cleanup)


def leave(code: int) -> NoReturn:
    """End the process, from any thread.

    Not by way of the interpreter's own end, which waits for threads of gRPC that may never come back.
    """
    if not _ends.acquire(blocking=False):
        threading.Event().wait()  # another thread is at it
    for cleanup in reversed(_cleanups):
        within(_CLEANUP_S, cleanup)
    _output.flush(_LAST_WORDS_S)
    os._exit(code)


class StopSignals:
    """SIGTERM, SIGINT and SIGHUP; made in the main thread.

    SIGHUP sets ``reload``; once the terminal that the process was started in is gone, it asks to stop as the others do.
    Until ``patience`` is called, that is while the process is still starting, a signal ends it at once. Then the first
    one sets ``stop``, and the process has some time to end by itself; the second one ends it at once. A thread of its
    own sees to this, so that it does not matter what the main thread is doing or waiting for.

    Attributes:
        stop: set when the process shall stop.
        reload: set when it shall load its bundle again; who does so clears it first.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.reload = threading.Event()
        self._had_terminal = _has_terminal()
        self._patience_s = 0.0
        self._wakeup, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        for number in HANDLED:
            # nohup(1) has SIGHUP ignored, and that is to stay so.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="signals", daemon=True).start()

    def patience(self, limit_s: float) -> None:
        """From now on the first signal asks; what is still here ``limit_s`` seconds later is ended."""
        self._patience_s = limit_s

    def _watch(self) -> None:
        self._next_signal(None)
        self.stop.set()
        if self._patience_s > 0:
            self._next_signal(time.monotonic() + self._patience_s)
        leave(0)

    def _next_signal(self, deadline: float | None) -> None:
        """Wait for a signal that asks to stop, or for the deadline."""
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._wakeup], [], [], left)[0]:
                return
            number = os.read(self._wakeup, 1)[0]
            if number in STOPPING or (number == signal.SIGHUP and self._had_terminal and not _has_terminal()):
                return
            if number == signal.SIGHUP:
                self.reload.set()


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal; the kernel takes it away before it says so by SIGHUP."""
    try:
        os.close(os.open(os.ctermid(), os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True
