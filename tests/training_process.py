"""hmarl-train in a process of its own, to be stopped, killed and gone on with; it can import the tests' modules."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 120.0


class Training:
    """``hmarl-train`` with these words; what it prints (both streams) is read as it comes."""

    def __init__(self, *words: str, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "PYTHONUNBUFFERED": "1"}
        environment.pop("HMARL_DEBUG", None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hmarl.trainer.commands.train", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line)

    @property
    def output(self) -> str:
        """What was printed until now, lines joined by spaces."""
        return " ".join("".join(self._lines).split())

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something to become true while the process runs."""
        deadline = time.monotonic() + self._patience_s
        while not condition():
            assert self.process.poll() is None, f"it has ended: {self.output}"
            assert time.monotonic() < deadline, self.output
            time.sleep(0.01)

    def until_printed(self, text: str) -> None:
        """Wait for words in what is printed."""
        self.until(lambda: text in self.output)

    def ended(self) -> int:
        """Wait for the end; returns the exit code, or minus the signal's number."""
        code = self.process.wait(self._patience_s)
        self._reader.join(5.0)
        return code

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        self.process.kill()
        self.process.wait(self._patience_s)
