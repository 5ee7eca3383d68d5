"""A real agent process for tests, which can be frozen, killed and restarted."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

# `make coverage`: a process that is killed leaves nothing of what it has reached.
DOORS = ("unary", "stream", "frames")  # how a client may reach an agent
MEASURED = "COVERAGE_PROCESS_CONFIG" in os.environ


class AgentProcess:
    """One agent of a bundle, served at ``address``, which stays the same over restarts.

    Args:
        bundle: whose agent.
        agent_id: which agent of it.
        listen: where it listens first.
        before: words that the command is put behind, of a program that becomes it.
        options: more of hmarl-agent's.
        log: a file for what it says on standard error; None lets it through, from warnings on.
        door: ``frames`` for an agent that speaks no gRPC, at a socket in a folder of its own; ``both`` for one that
            speaks it as well; otherwise gRPC alone.
    """

    def __init__(
        self,
        bundle: Path,
        agent_id: str,
        listen: str = "127.0.0.1:0",
        before: Sequence[str] = (),
        options: Sequence[str] = (),
        log: Path | None = None,
        door: str | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory() if door in ("frames", "both") else None
        if self._folder is not None:
            options = [*options, f"--frames={self._folder.name}/frames"]
        if door == "frames":
            options = [*options, "--no-grpc"]
        self._before, self._log = before, log
        self._options = [*([] if log else ["--log-level", "warning"]), *options]
        self._bundle = bundle
        self._agent_id = agent_id
        self.address = listen
        self.start()

    def start(self) -> None:
        command = [*self._before, sys.executable, "-m", "hmarl.runtime.commands.agent", str(self._bundle)]
        command += ["--agent", self._agent_id, "--listen", self.address, "--json", *self._options]
        errors = None if self._log is None else self._log.open("ab")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        if errors is not None:
            errors.close()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "it did not start" if self._log is None else self.log
        self.ready = json.loads(line)
        self.address = self.ready["address"]

    def at(self, door: str) -> str:
        """Where it is reached by one of its doors."""
        return str(self.ready["frames"]) if door == "frames" else self.address

    @property
    def log(self) -> str:
        """What it has said so far."""
        assert self._log is not None
        return self._log.read_text()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)  # returns once it has really stopped

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if MEASURED and self.process.poll() is None:
            self.thaw()
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        self.kill()
        if self._folder is not None:
            self._folder.cleanup()
