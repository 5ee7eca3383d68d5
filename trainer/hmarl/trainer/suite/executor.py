"""Where runs are trained: in processes of this machine, or wherever else hmarl-train can be started."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from hmarl.runtime.children import python


class Started(Protocol):
    """A process of hmarl-train that was started."""

    def waits(self) -> bool:
        """Whether it waits for room: no time of its runs has passed yet."""

    def exit_code(self) -> int | None:
        """As of hmarl-train, minus the signal's number where one ended it; None while it goes on.

        Raises:
            OSError: it could not be started, which is known only now.
        """

    def ask_to_stop(self) -> None:
        """Have it save and end, as Ctrl-C does."""

    def kill(self) -> None:
        """End it at once: it goes on from its last checkpoint."""


class Executor(Protocol):
    """Starts runs. What they write lies on storage that the suite's own process sees as well."""

    def start(self, words: Sequence[str], log: Path, threads: int) -> Started:
        """Start hmarl-train.

        Args:
            words: its command line, without its name.
            log: to which its output is appended.
            threads: that it computes with.

        Raises:
            OSError: it could not be started.
        """


def how_it_ended(code: int) -> str:
    """An exit code in words, see ``Started``."""
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


class LocalExecutor:
    """Processes of this machine, which end when this one does: they save, and go on with the suite.

    Args:
        folder: in which they run; None: this process's.
        path: where they import from, besides where Python does by itself.
        variables: of their environment, besides this process's.
    """

    def __init__(
        self, folder: Path | None = None, path: Sequence[str] = (), variables: Mapping[str, str] | None = None
    ) -> None:
        self._folder, self._path, self._variables = folder, tuple(path), dict(variables or {})

    def start(self, words: Sequence[str], log: Path, threads: int = 1) -> LocalProcess:
        """See ``Executor``; the machine's scheduler has its own ways with threads."""
        command = python("-m", "hmarl.trainer.commands.child", str(os.getpid()), *words)
        with log.open("a", encoding="utf-8") as output:
            output.write(f"hmarl-train {' '.join(words)}\n")
            output.flush()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env=self._environment(),
                start_new_session=True,  # the terminal's Ctrl-C is the suite's to pass on
            )
        return LocalProcess(process)

    def _environment(self) -> dict[str, str]:
        path = [*self._path, *filter(None, [os.environ.get("PYTHONPATH")])]
        return {**os.environ, **self._variables, **({"PYTHONPATH": os.pathsep.join(path)} if path else {})}


class LocalProcess:
    """A process of this machine; see ``Started``."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def waits(self) -> bool:
        """It never does."""
        return False

    def exit_code(self, within_s: float = 0.0) -> int | None:
        """See ``Started``; waits so long for it."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(within_s)
        return None

    def ask_to_stop(self) -> None:
        """See ``Started``."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """See ``Started``."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # with what environments it has started
        self._process.wait()
