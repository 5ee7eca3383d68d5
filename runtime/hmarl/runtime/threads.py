"""Threads for gRPC's calls, with little around each call."""

from __future__ import annotations

import logging
import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

LOGGER = logging.getLogger("hmarl.agent")
Ended: TypeAlias = Callable[[Any], object]


class _Task:
    """A call to be made, and, as gRPC wants it, something that can be told whom to tell of its end."""

    __slots__ = ("_arguments", "_ended", "_listeners", "_work")

    def __init__(self, work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self._work = work
        self._arguments = arguments
        self._listeners: list[Ended] = []
        self._ended = False

    def add_done_callback(self, listener: Ended) -> None:
        """Call a listener when it has ended, once."""
        self._listeners.append(listener)
        if self._ended:
            self._tell()

    def run(self) -> None:
        try:
            self._work(*self._arguments)
        except Exception:
            LOGGER.exception("in a call")
        finally:
            self._ended = True
            self._tell()

    def _tell(self) -> None:
        """Whoever takes a listener off the list tells it: of two threads that are here at once, one does."""
        while self._listeners:
            try:
                listener = self._listeners.pop()
            except IndexError:
                return
            listener(self)


class Threads(ThreadPoolExecutor):
    """Threads that are started as they are needed, and stay.

    gRPC takes executors of this class only, and uses nothing of them but ``submit``, whose result it tells whom to tell
    of the end. What futures can do besides, be waited for and cancelled, costs as much as the rest of our part in a
    call.

    Args:
        limit: how many threads at most; further calls wait.
        name: of the threads.
    """

    def __init__(self, limit: int, name: str) -> None:
        super().__init__(limit, thread_name_prefix=name)  # starts no thread before its own submit is called
        self._limit = limit
        self._name = name
        self._started = 0
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        # One entry for each thread that waits. Taking one and adding one are one step each: no lock is needed.
        self._waiting: list[None] = []
        weakref.finalize(self, self._tasks.put, None).atexit = False

    def submit(self, work: Callable[..., Any], /, *arguments: Any) -> Any:  # type: ignore[override]
        """Have a call made; never from two threads at once."""
        task = _Task(work, arguments)
        self._tasks.put(task)
        try:
            self._waiting.pop()
        except IndexError:
            if self._started < self._limit:
                self._start()
        return task

    def _start(self) -> None:
        number = self._started
        thread = threading.Thread(
            target=_work, args=(self._tasks, self._waiting), name=f"{self._name}_{number}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # the system has no more; those that are there get round to it
            if not number:
                raise
            return
        self._started = number + 1


def _work(tasks: queue.SimpleQueue[_Task | None], waiting: list[None]) -> None:
    """One thread, until the pool is gone."""
    while (task := tasks.get()) is not None:
        task.run()
        del task  # what it refers to must not wait for the next one
        waiting.append(None)
    tasks.put(None)  # for the others
