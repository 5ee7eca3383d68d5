"""Worker processes that run PettingZoo environments; arrays pass through shared memory, signals through pipes.

A worker is a plain ``python`` child process, so that the caller's main module is not imported again. Its standard
input carries one-byte commands, its standard output the replies (what the environment prints goes to standard error);
nothing is pickled. The end of its input means that the parent has gone, and the worker leaves too.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from hmarl.sdk.environments._worker_copy import Buffers, ParallelCopy
from hmarl.sdk.errors import EnvironmentFault
from hmarl.sdk.spaces import EnvironmentSpec

_HEADER = struct.Struct("<cI")  # code, length of the payload in bytes
_START, _RESET, _STEP, _RENDER, _DONE, _FAILED = b"I", b"R", b"S", b"P", b"D", b"F"
_CLOSE_TIMEOUT_S = 3.0


class WorkerPool:
    """B environments spread over worker processes.

    Args:
        spec: what the environments look like.
        batch: B.
        workers: number of processes, at most B.
        maker: import path ``package.module:function`` of ``function(**settings) -> ParallelCopy``.
        settings: JSON-serialisable keyword arguments for it.

    Attributes:
        buffers: the arrays shared with the workers.

    Raises:
        EnvironmentFault: a worker could not start.
    """

    def __init__(
        self, spec: EnvironmentSpec, batch: int, workers: int, maker: str, settings: Mapping[str, Any]
    ) -> None:
        memory = SharedMemory(create=True, size=Buffers.size_bytes(spec, batch))
        self.buffers = Buffers(spec, batch, memory.buf)
        self._workers: list[_Worker] = []
        # Runs at close(), when the pool is collected, or at the interpreter's exit, whichever comes first.
        self._finalizer = weakref.finalize(self, _shut_down, self._workers, self.buffers, memory)
        self._waiting = False
        start = {"maker": maker, "settings": dict(settings), "batch": batch, "memory": memory.name}
        try:
            for rows in np.array_split(np.arange(batch), workers):
                worker = _Worker([int(row) for row in rows])
                self._workers.append(worker)
                worker.send(_START, json.dumps({**start, "rows": worker.rows}).encode())
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
        self._all(_RESET)

    def step(self) -> None:
        """Advance every environment by ``buffers.actions``."""
        self._all(_STEP)

    def render(self, row: int) -> npt.NDArray[np.uint8] | None:
        """Picture of one environment."""
        worker = next(worker for worker in self._workers if row in worker.rows)
        worker.send(_RENDER, str(row).encode())
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
        try:
            replies = [worker.receive(self.buffers) for worker in workers]
        except EnvironmentFault:
            self.close()
            raise
        self._waiting = False
        return replies


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, rows: list[int]) -> None:
        self.rows = rows
        program = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main()"
        # One thread each: the processes themselves are the parallelism.
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**threads, **os.environ},
        )

    def send(self, code: bytes, payload: bytes = b"") -> None:
        """Send a command; that a worker is gone shows when its reply is read."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            _send(self.process.stdin, code, payload)

    def receive(self, buffers: Buffers) -> bytes:
        """Payload of the reply.

        Raises:
            EnvironmentFault: the environment raised an error, or the process has died.
        """
        assert self.process.stdout is not None
        message = _receive(self.process.stdout)
        if message is None:
            code = self.process.wait()
            row = next((row for row in self.rows if buffers.at_work[row]), None)
            where = f"environment {row}" if row is not None else f"environments {self.rows[0]} to {self.rows[-1]}"
            raise EnvironmentFault(f"{where}: the worker process died (exit code {code}); see its output above")
        code_, payload = message
        if code_ == _FAILED:
            raise EnvironmentFault(payload.decode())
        return payload

    def stop(self) -> None:
        """Close the pipes, which ends the process; kill it when it does not end by itself."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        try:
            self.process.wait(_CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _shut_down(workers: list[_Worker], buffers: Buffers, memory: SharedMemory) -> None:
    for worker in workers:
        if worker.process.stdin is not None:
            worker.process.stdin.close()
    for worker in workers:
        worker.stop()
    buffers.release()
    memory.close()


def _send(stream: IO[bytes], code: bytes, payload: bytes = b"") -> None:
    message = memoryview(_HEADER.pack(code, len(payload)) + payload)
    while message:
        message = message[stream.write(message) :]


def _receive(stream: IO[bytes]) -> tuple[bytes, bytes] | None:
    """Code and payload of the next message; None at the end of the stream."""
    header = _read(stream, _HEADER.size)
    if header is None:
        return None
    code, length = _HEADER.unpack(header)
    payload = _read(stream, length)
    return None if payload is None else (code, payload)


def _read(stream: IO[bytes], length: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < length:
        part = stream.read(length - len(parts))
        if not part:
            return None
        parts += part
    return bytes(parts)


def failure_message(row: int, error: Exception) -> str:
    """How an error of environment ``row`` is told: with the index, the kind of the error and its own words."""
    kind = "" if isinstance(error, EnvironmentFault) else f"{type(error).__name__}: "
    return f"environment {row}: {kind}{error}"


def import_object(path: str) -> Callable[..., Any]:
    """The object at ``package.module:name``."""
    module, _, name = path.partition(":")
    # Imported by name, as the maker is known to the worker only by its path.
    found: Callable[..., Any] = getattr(__import__(module, fromlist=[name]), name)
    return found


def main() -> None:
    """The worker process: obey the commands on standard input until it ends."""
    # Ctrl-C reaches the whole process group; the parent decides what comes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    commands = os.fdopen(os.dup(0), "rb", buffering=0)
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    with suppress(BrokenPipeError):
        _serve(commands, replies)


def _serve(commands: IO[bytes], replies: IO[bytes]) -> None:
    message = _receive(commands)
    if message is None:
        return
    start = json.loads(message[1])
    rows: list[int] = start["rows"]
    make_copy = import_object(start["maker"])
    copies: dict[int, ParallelCopy] = {}
    memory = _attach(start["memory"])
    buffers: Buffers | None = None
    row = rows[0]
    try:
        for row in rows:
            copies[row] = make_copy(**start["settings"])
        buffers = Buffers(copies[row].spec, start["batch"], memory.buf)
        _send(replies, _DONE)
        while (message := _receive(commands)) is not None:
            command, payload = message
            if command == _RENDER:
                row = int(payload)
                _send(replies, _DONE, _picture(copies[row].render()))
                continue
            for row in rows:
                buffers.at_work[row] = True
                if command == _RESET:
                    copies[row].reset(buffers, row)
                else:
                    copies[row].step(buffers, row)
                buffers.at_work[row] = False
            _send(replies, _DONE)
    except BrokenPipeError:
        raise
    except Exception as error:
        _send(replies, _FAILED, failure_message(row, error).encode())
    finally:
        for copy in copies.values():
            copy.close()
        if buffers is not None:
            buffers.release()
        memory.close()


def _picture(picture: npt.NDArray[np.uint8] | None) -> bytes:
    return b"" if picture is None else json.dumps(picture.shape).encode() + b"\n" + picture.tobytes()


def _attach(name: str) -> SharedMemory:
    """Map the parent's block without becoming its owner."""
    if sys.version_info >= (3, 13):
        return SharedMemory(name=name, track=False)
    # Before Python 3.13 attaching registers the block for removal at this process's exit (python/cpython#82300).
    register = resource_tracker.register
    resource_tracker.register = lambda *_: None
    try:
        return SharedMemory(name=name)
    finally:
        resource_tracker.register = register
