"""A real agent process for tests, which can be frozen, killed and restarted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self


class AgentProcess:
    """One agent of a bundle, served at ``address``, which stays the same over restarts; ``before`` are words that the
    command is put behind, of a program that becomes it; ``options`` are more of hmarl-agent's.
    """

    def __init__(
        self,
        bundle: Path,
        agent_id: str,
        listen: str = "127.0.0.1:0",
        before: Sequence[str] = (),
        options: Sequence[str] = (),
    ) -> None:
        self._before, self._options = before, options
        self._bundle = bundle
        self._agent_id = agent_id
        self.address = listen
        self.start()

    def start(self) -> None:
        command = [
            *self._before,
            sys.executable,
            "-m",
            "hmarl.runtime.commands.agent",
            str(self._bundle),
            "--agent",
            self._agent_id,
        ]
        command += ["--listen", self.address, "--json", "--log-level", "warning", *self._options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = json.loads(self.process.stdout.readline())["address"]

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
        self.kill()
