"""How a run is asked to stop: the first Ctrl-C or SIGTERM is answered at once and obeyed as soon as that costs nothing.

Outside of ``postponed`` that is at once: nothing is lost, for what is on the disk can be gone on from at any moment. A
second signal leaves whatever is going on, by force if need be.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last one: the terminal is closed
# From the second signal to the end by force: time for closing what closes in time.
_GRACE_S = 1.0
_ANSWER_S = 0.5  # at the end, for an answer that standard error does not take at once
_INTERRUPTED = 130

P = ParamSpec("P")
T = TypeVar("T")
_active: StopRequest | None = None


class Interrupted(KeyboardInterrupt):
    """The user asked to stop; everything up to the last update has been saved."""


class StopRequest:
    """Whether a run has been asked to stop.

    Attributes:
        postponing: what is said to whoever asks while something is worth ending first.
    """

    def __init__(self) -> None:
        self.postponing = "stopping after this update, which is saved"
        self._asked = 0
        self._postponed = False
        self._answered = threading.Event()

    def __call__(self) -> bool:
        """True once it has been asked for."""
        return self._asked > 0

    def ask(self) -> None:
        """Ask to stop.

        Raises:
            KeyboardInterrupt: nothing is going on that is worth ending first, or this was asked for before.
        """
        self._asked += 1
        if self.insisted or not self._postponed:
            raise KeyboardInterrupt

    @contextmanager
    def postponed(self) -> Iterator[None]:
        """What is done in here is ended before a first request is obeyed; ask for it in between, or thereafter."""
        with self._postponing(True):
            yield

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within what is postponed, something that is not worth ending first.

        Raises:
            KeyboardInterrupt: asked to stop, before or meanwhile.
        """
        with self._postponing(False):
            if self():
                raise KeyboardInterrupt
            yield

    @contextmanager
    def _postponing(self, postponed: bool) -> Iterator[None]:
        before, self._postponed = self._postponed, postponed
        try:
            yield
        finally:
            self._postponed = before

    @property
    def insisted(self) -> bool:
        """True once it has been asked for again."""
        return self._asked > 1

    def say(self, number: int) -> None:
        """Tell whoever asks, by that signal, what happens now."""
        what = self.postponing if self._postponed else "stopping"
        again = "Ctrl-C again" if number == signal.SIGINT else "a second signal"
        print(f"\n{what}; {again} leaves at once", file=sys.stderr, flush=True)
        self._answered.set()

    def wait_until_said(self) -> None:
        """Before anything is said that follows: the thread that answers may come later. Not for long."""
        if self():
            self._answered.wait(_ANSWER_S)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """A request that SIGINT and SIGTERM make while the block runs; within another such block it is that one's.

    A thread answers, woken by the signal itself: the main thread may be deep in a computation for a long time before it
    gets to see it.
    """
    global _active  # noqa: PLW0603 - signals belong to the process
    if _active is not None:
        yield _active
        return
    stop = _active = StopRequest()
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    answering = threading.Thread(target=_answer, args=(reader, stop), name="signals", daemon=True)
    answering.start()

    def ask(number: int, frame: Any) -> None:
        stop.ask()

    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    # nohup(1) has SIGHUP ignored, and that is to stay so.
    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, ask) for number in heeded}
    try:
        yield stop
    finally:
        _active = None
        for number, handler in previous.items():
            # Whoever asks again while the interpreter ends need not see where it was.
            signal.signal(number, _end if stop() else handler)
        signal.set_wakeup_fd(before)
        writer.close()
        answering.join(_ANSWER_S)  # the main thread may get here before the answer is out


def answering_signals(command: Callable[P, T]) -> Callable[P, T]:
    """The same command with signals answered from its first moment on."""

    @functools.wraps(command)
    def run(*positional: P.args, **named: P.kwargs) -> T:
        with stop_on_signals() as stop:
            try:
                return command(*positional, **named)
            finally:
                if stop.insisted:  # the interpreter's own end may wait for what hangs
                    sys.stderr.flush()
                    _leave(0.0)

    return run


def _answer(reader: socket.socket, stop: StopRequest) -> None:
    """Say so at the first signal; see to it at the second that the process ends; end it at the third."""
    # In a thread of its own: a standard error that is not read must not keep the next signal from being seen.
    asked, saying = 0, threading.Thread()
    with reader:
        while received := reader.recv(64):
            for number in filter(SIGNALS.__contains__, received):
                asked += 1
                if asked == 1:
                    saying = threading.Thread(target=stop.say, args=(number,), daemon=True)
                    saying.start()
                elif asked == 2:
                    threading.Thread(target=_leave, args=(_GRACE_S,), daemon=True).start()
                else:
                    _leave(0.0)
    if asked:
        saying.join(_ANSWER_S)


def _end(number: int, frame: Any) -> None:
    _leave(0.0)


def _leave(grace_s: float) -> None:
    time.sleep(grace_s)
    if os.isatty(2):
        os.write(2, b"\x1b[?25h")  # the live display hides the cursor
    os._exit(_INTERRUPTED)
