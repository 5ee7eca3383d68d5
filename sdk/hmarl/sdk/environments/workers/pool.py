"""Worker processes that run environments; arrays pass through shared memory, signals through pipes.

A worker is a plain Python child process that executes ``process.py``, so that the caller's main module is not
imported again, and so that it can be another interpreter.
"""

from __future__ import annotations

import errno
import json
import os
import selectors
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hmarl.runtime.children import python, safe_path
from hmarl.sdk.environments.workers import process
from hmarl.sdk.environments.workers.process import Buffers, EntryError
from hmarl.sdk.errors import EnvironmentFault

if TYPE_CHECKING:
    from hmarl.sdk.environments.workers.process import Layout

REPLY_TIMEOUT_S = 300.0  # within which a worker process has to reply, unless its environment is told otherwise
_CLOSE_TIMEOUT_S = 3.0
_SHARED_MEMORY = Path("/dev/shm")
# What a file system says that knows no reservation.
_CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
# What usually is behind the signals that end a worker.
_CAUSES = {
    signal.SIGBUS: "memory that it had mapped went away: is a disk or /dev/shm full?",
    signal.SIGKILL: "probably by the kernel's out-of-memory killer: fewer environments need less",
    signal.SIGSEGV: "a crash in native code; its output above shows where",
    signal.SIGABRT: "native code gave up; its output above shows where",
}


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
    timeout_s: float = REPLY_TIMEOUT_S


def describe(source: CopySource, number: int) -> dict[str, Any]:
    """What a copy says of itself (``description``), asked in a worker process that ends thereafter.

    Args:
        source: where the copy comes from.
        number: the copy's.

    Raises:
        EntryError: the environment could not be imported.
        EnvironmentFault: the environment could not be made, or the process died or did not reply in time.
    """
    worker = _Worker([0], source)
    try:
        worker.start(source, [number], memory=None, layout=[])
        description: dict[str, Any] = json.loads(worker.receive(time.monotonic() + source.timeout_s))
        return description
    finally:
        worker.stop(time.monotonic() + _CLOSE_TIMEOUT_S)


class WorkerPool:
    """B environments spread over worker processes.

    Args:
        layout: the arrays that are shared.
        batch: B.
        workers: number of processes, at most B.
        source: where the environments come from.
        numbers: [B] by which the copies know themselves.

    Attributes:
        buffers: the arrays shared with the workers.

    Raises:
        EnvironmentFault: there is not enough shared memory, or a worker could not start.
    """

    def __init__(self, layout: Layout, batch: int, workers: int, source: CopySource, numbers: Sequence[int]) -> None:
        memory = _reserved(Buffers.size_bytes(layout), batch)
        self.buffers = Buffers(layout, memory.buf)
        self._timeout_s = source.timeout_s
        self._workers: list[_Worker] = []
        # Runs at close(), when the pool is collected, or at the interpreter's exit, whichever comes first.
        self._finalizer = weakref.finalize(self, _shut_down, self._workers, self.buffers, memory)
        self._waiting = False
        try:
            for rows in np.array_split(np.arange(batch), workers):
                self._workers.append(_Worker([int(row) for row in rows], source))
                self._workers[-1].start(source, [numbers[row] for row in rows], memory.name, layout)
            self._collect(self._workers)
        except BaseException:
            memory.unlink()
            self.close()
            raise
        # All processes have the block mapped: without a name it goes with its last user, however that one ends.
        memory.unlink()

    @property
    def closed(self) -> bool:
        """Whether the workers have been stopped, by ``close`` or because one of them failed."""
        return not self._finalizer.alive

    def reset(self) -> None:
        """Reset every environment with its entry of ``buffers.seeds``."""
        self._all(process.RESET)

    def step(self) -> None:
        """Advance every environment by ``buffers.actions``."""
        self._all(process.STEP)

    def render(self, row: int) -> npt.NDArray[Any] | None:
        """What the renderer of one environment makes.

        Raises:
            EnvironmentFault: the renderer failed; the environments go on unless ``closed`` says otherwise.
        """
        worker = next(worker for worker in self._workers if row in worker.rows)
        worker.send(process.RENDER, str(row).encode())
        (payload,) = self._collect([worker])
        text, _, pixels = payload.partition(b"\n")
        header = json.loads(text)
        if "error" in header:
            raise EnvironmentFault(f"environment {row}: render: {header['error']}")
        if not header:
            return None
        return np.frombuffer(pixels, header["dtype"]).reshape(header["shape"]).copy()

    def findings(self) -> list[dict[str, Any]]:
        """What all copies have found so far, see ``FindsFaults``."""
        return [finding for reply in self._all(process.FINDINGS) for finding in json.loads(reply)]

    def close(self) -> None:
        """Stop the workers and free the memory; a second call does nothing."""
        self._finalizer()

    def _all(self, command: bytes) -> list[bytes]:
        for worker in self._workers:
            worker.send(command)
        return self._collect(self._workers)

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
            python(process.__file__) if source.python is None else [source.python, process.__file__],
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

    def start(self, source: CopySource, numbers: Sequence[int], memory: str | None, layout: Layout) -> None:
        """Tell what to make, and the name of the shared block; without one the reply is a description."""
        start = {
            "path": sys.path if source.python is None else None,
            "maker": source.maker,
            "settings": dict(source.settings),
            "rows": self.rows,
            "numbers": [str(number) for number in numbers],
            "memory": memory,
            "layout": list(layout),
        }
        self.send(process.START, json.dumps(start).encode())

    def send(self, code: bytes, payload: bytes = b"") -> None:
        """Send a command; that a worker is gone shows when its reply is read."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            process.send(self.process.stdin, code, payload)

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
            message = process.receive(lambda length: self._read(length, deadline))
        except TimeoutError:
            self._kill()
            problem = f"no reply within {self._timeout_s:g} s, so the worker process was stopped"
            raise EnvironmentFault(f"{self._place(buffers)}: {problem}; env.timeout_s sets the limit") from None
        if message is None:
            code = self.process.wait()
            self._kill()
            raise EnvironmentFault(f"{self._place(buffers)}: the worker process died {_reason(code)}")
        code_, payload = message
        if code_ == process.NO_ENTRY:
            raise EntryError(payload.decode())
        if code_ == process.FAILED:
            raise EnvironmentFault(payload.decode())
        return payload

    def stop(self, deadline: float) -> None:
        """Close the pipes, which ends the process; kill it when it has not ended by itself at ``deadline``."""
        self._selector.close()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._kill()
            # Even SIGKILL does not end a process at once that waits for a device.
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_CLOSE_TIMEOUT_S)

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
    # One deadline for all: many that hang take no longer than one.
    deadline = time.monotonic() + _CLOSE_TIMEOUT_S
    for worker in workers:
        worker.stop(deadline)
    buffers.release()
    memory.close()


def _reserved(size_bytes: int, batch: int) -> SharedMemory:
    """A shared block that has its memory already: one promised only would kill whoever first writes to it.

    Raises:
        EnvironmentFault: there is not so much.
    """
    memory = None
    try:
        with safe_path():  # the first one starts a process that removes what is left behind
            memory = SharedMemory(create=True, size=size_bytes)
        file = _SHARED_MEMORY / memory.name
        if file.exists():  # elsewhere than on Linux it lies in no file system
            descriptor = os.open(file, os.O_RDWR)
            try:
                os.posix_fallocate(descriptor, 0, size_bytes)
            except OSError as error:
                if error.errno not in _CANNOT_RESERVE:
                    raise
            finally:
                os.close(descriptor)
    except OSError as error:
        if memory is not None:
            memory.close()
            memory.unlink()
        raise EnvironmentFault(
            f"shared memory: {batch} environments in worker processes need {size_bytes / 2**20:.1f} MiB, and "
            f"{_free_space()} ({error.strerror}); enlarge it (docker run --shm-size=1g, or mount -o remount,size=1g "
            f"{_SHARED_MEMORY}), take fewer environments, or run them in this process (env.workers=0)"
        ) from error
    return memory


def _free_space() -> str:
    try:
        found = os.statvfs(_SHARED_MEMORY)
    except OSError as error:
        return f"{_SHARED_MEMORY}: {error.strerror}"
    return f"{_SHARED_MEMORY} has {found.f_bavail * found.f_frsize / 2**20:.1f} MiB free"


def _reason(code: int) -> str:
    """How a process ended, from its exit code, and what is usually behind it."""
    if code >= 0:
        return f"(exit code {code}); see its output above"
    try:
        number = signal.Signals(-code)
    except ValueError:
        return f"(killed by signal {-code})"
    cause = f": {_CAUSES[number]}" if number in _CAUSES else ""
    return f"(killed by {number.name}){cause}"
