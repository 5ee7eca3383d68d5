"""Where runs are trained: in processes of this machine, or wherever else hmarl-train can be started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol


class Started(Protocol):
    """A run that was started."""

    def exit_code(self) -> int | None:
        """As of hmarl-train, minus the signal's number where one ended it; None while it goes on."""

    def ask_to_stop(self) -> None:
        """Have it save and end, as Ctrl-C does."""

    def kill(self) -> None:
        """End it at once: it goes on from its last checkpoint."""


class Executor(Protocol):
    """Starts runs. What they write lies on storage that the suite's own process sees as well."""

    def start(self, words: Sequence[str], log: Path) -> Started:
        """Start hmarl-train.

        Args:
            words: its command line, without its name.
            log: to which its output is appended.

        Raises:
            OSError: it could not be started.
        """


class LocalExecutor:
    """Processes of this machine, which end when this one does: they save, and go on with the suite."""

    def start(self, words: Sequence[str], log: Path) -> Started:
        """See ``Executor``."""
        command = [sys.executable, "-m", "hmarl.trainer.commands.child", str(os.getpid()), *words]
        with log.open("a", encoding="utf-8") as output:
            output.write(f"hmarl-train {' '.join(words)}\n")
            output.flush()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the terminal's Ctrl-C is the suite's to pass on
            )
        return _LocalRun(process)


class _LocalRun:
    """A process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def exit_code(self) -> int | None:
        """See ``Started``."""
        return self._process.poll()

    def ask_to_stop(self) -> None:
        """See ``Started``."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """See ``Started``."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # with what environments it has started
        self._process.wait()
