"""Worker processes that run environments; arrays pass through shared memory, signals through pipes.

A worker is a plain Python child process that executes ``_worker_process.py``, so that the caller's main module is not
imported again, and so that it can be another interpreter.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hmarl.sdk.environments import _worker_process
from hmarl.sdk.environments._worker_process import Buffers, EntryError
from hmarl.sdk.errors import EnvironmentFault

if TYPE_CHECKING:
    from hmarl.sdk.environments._worker_process import Layout

_CLOSE_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class CopySource:
    """Where a worker gets its environments from.

    Attributes:
        maker: import path ``package.module:function`` of a function that returns one environment behind flat arrays
            (``reset(buffers, row)``, ``step(buffers, row)``, ``render()``, ``close()``).
        settings: JSON-serialisable keyword arguments for it.
        python: path of the interpreter, None for this one.
        timeout_s: seconds within which a worker has to reply to a command.
    """

    maker: str
    settings: Mapping[str, Any]
    python: str | None = None
    timeout_s: float = 300.0


def describe(source: CopySource) -> dict[str, Any]:
    """What a copy says of itself (``description``), asked in a worker process that ends thereafter.

    Raises:
        EntryError: the environment could not be imported.
        EnvironmentFault: the environment could not be made, or the process died or did not reply in time.
    """
    worker = _Worker([0], source)
    try:
        worker.start(source, memory=None, layout=[])
        description: dict[str, Any] = json.loads(worker.receive(time.monotonic() + source.timeout_s))
        return description
    finally:
        worker.stop()


class WorkerPool:
    """B environments spread over worker processes.

    Args:
        layout: the arrays that are shared.
        batch: B.
        workers: number of processes, at most B.
        source: where the environments come from.

    Attributes:
        buffers: the arrays shared with the workers.

    Raises:
        EnvironmentFault: a worker could not start.
    """

    def __init__(self, layout: Layout, batch: int, workers: int, source: CopySource) -> None:
        memory = SharedMemory(create=True, size=Buffers.size_bytes(layout))
        self.buffers = Buffers(layout, memory.buf)
        self._timeout_s = source.timeout_s
        self._workers: list[_Worker] = []
        # Runs at close(), when the pool is collected, or at the interpreter's exit, whichever comes first.
        self._finalizer = weakref.finalize(self, _shut_down, self._workers, self.buffers, memory)
        self._waiting = False
        try:
            for rows in np.array_split(np.arange(batch), workers):
                self._workers.append(_Worker([int(row) for row in rows], source))
                self._workers[-1].start(source, memory.name, layout)
            self._collect(self._workers)
        except BaseException:
            memory.unlink()
            self.close()
            raise
        # Everyone has the block mapped: without a name it goes with its last user, however that one ends.
        memory.unlink()

    @property
    def closed(self) -> bool:
        """Whether the workers have been stopped, by ``close`` or because one of them failed."""
        return not self._finalizer.alive

    def reset(self) -> None:
        """Reset every environment with its entry of ``buffers.seeds``."""
        self._all(_worker_process.RESET)

    def step(self) -> None:
        """Advance every environment by ``buffers.actions``."""
        self._all(_worker_process.STEP)

    def render(self, row: int) -> npt.NDArray[np.uint8] | None:
        """Picture of one environment."""
        worker = next(worker for worker in self._workers if row in worker.rows)
        worker.send(_worker_process.RENDER, str(row).encode())
        (payload,) = self._collect([worker])
        shape, _, pixels = payload.partition(b"\n")
        return np.frombuffer(pixels, np.uint8).reshape(json.loads(shape)).copy() if pixels else None

    def close(self) -> None:
        """Stop the workers and free the memory; a second call does nothing."""
        self._finalizer()

    def _all(self, command: bytes) -> None:
        for worker in self._workers:
            worker.send(command)
        self._collect(self._workers)

    def _collect(self, workers: list[_Worker]) -> list[bytes]:
        """One reply of each; the first failure closes the pool."""
        if self._waiting:
            self.close()
            raise EnvironmentFault("the environments were interrupted in the middle of a step and cannot go on")
        self._waiting = True
        deadline = time.monotonic() + self._timeout_s
        try:
            replies = [worker.receive(deadline, self.buffers) for worker in workers]
        except (EnvironmentFault, EntryError):
            self.close()
            raise
        self._waiting = False
        return replies


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, rows: list[int], source: CopySource) -> None:
        self.rows = rows
        self._timeout_s = source.timeout_s
        # One thread each: the processes themselves are the parallelism.
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [source.python or sys.executable, _worker_process.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**threads, **os.environ},
            # A group of its own, so that what the environment has started can be stopped with it.
            start_new_session=True,
        )
        self._selector = selectors.DefaultSelector()
        assert self.process.stdout is not None
        self._selector.register(self.process.stdout, selectors.EVENT_READ)

    def start(self, source: CopySource, memory: str | None, layout: Layout) -> None:
        """Tell what to make, and the name of the shared block; without one the reply is a description."""
        start = {
            "path": sys.path if source.python is None else None,
            "maker": source.maker,
            "settings": dict(source.settings),
            "rows": self.rows,
            "memory": memory,
            "layout": list(layout),
        }
        self.send(_worker_process.START, json.dumps(start).encode())

    def send(self, code: bytes, payload: bytes = b"") -> None:
        """Send a command; that a worker is gone shows when its reply is read."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            _worker_process.send(self.process.stdin, code, payload)

    def receive(self, deadline: float, buffers: Buffers | None = None) -> bytes:
        """Payload of the reply.

        Args:
            deadline: time of ``time.monotonic`` until which to wait.
            buffers: tell which environment was at work when the process was lost.

        Raises:
            EntryError: the environment could not be imported.
            EnvironmentFault: the environment raised an error, the process has died or does not reply in time.
        """
        try:
            message = _worker_process.receive(lambda length: self._read(length, deadline))
        except TimeoutError:
            self._kill()
            problem = f"no reply within {self._timeout_s:g} s, so the worker process was stopped"
            raise EnvironmentFault(f"{self._place(buffers)}: {problem}; env.timeout_s sets the limit") from None
        if message is None:
            code = self.process.wait()
            self._kill()
            problem = f"the worker process died (exit code {code}); see its output above"
            raise EnvironmentFault(f"{self._place(buffers)}: {problem}")
        code_, payload = message
        if code_ == _worker_process.NO_ENTRY:
            raise EntryError(payload.decode())
        if code_ == _worker_process.FAILED:
            raise EnvironmentFault(payload.decode())
        return payload

    def stop(self) -> None:
        """Close the pipes, which ends the process; kill it when it does not end by itself."""
        self._selector.close()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        try:
            self.process.wait(_CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._kill()
            self.process.wait()

    def _read(self, length: int, deadline: float) -> bytes:
        assert self.process.stdout is not None
        if not self._selector.select(max(0.0, deadline - time.monotonic())):
            raise TimeoutError
        part: bytes = self.process.stdout.read(length)
        return part

    def _place(self, buffers: Buffers | None) -> str:
        row = None if buffers is None else next((row for row in self.rows if buffers.at_work[row]), None)
        if row is not None or len(self.rows) == 1:
            return f"environment {self.rows[0] if row is None else row}"
        return f"environments {self.rows[0]} to {self.rows[-1]}"

    def _kill(self) -> None:
        """End the process and everything that it has started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)


def _shut_down(workers: list[_Worker], buffers: Buffers, memory: SharedMemory) -> None:
    for worker in workers:
        if worker.process.stdin is not None:
            worker.process.stdin.close()
    for worker in workers:
        worker.stop()
    buffers.release()
    memory.close()
