"""The wheel in a virtual environment of its own, for tests of what is installed where."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Installed:
    """A virtual environment that holds the wheel and what it depends on, of the versions that a file states."""

    def __init__(self, place: Path, constraints: Path) -> None:
        self.bin = place / "venv" / "bin"
        self.work = place / "work"
        self.work.mkdir(parents=True)
        self._variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        wheels = place / "wheels"
        self._run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", wheels, ROOT)
        (wheel,) = wheels.glob("hmarl-*.whl")
        self._run(sys.executable, "-m", "venv", place / "venv")
        self._run(self.bin / "python", "-m", "pip", "install", "-c", constraints, wheel)

    def _run(self, *command: object) -> None:
        subprocess.run([str(word) for word in command], check=True, env=self._variables, stdout=subprocess.DEVNULL)

    def start(self, program: str, *arguments: object) -> subprocess.Popen[str]:
        """A running program of the environment."""
        return subprocess.Popen(
            [str(self.bin / program), *map(str, arguments)], cwd=self.work, env=self._variables, text=True
        )

    def call(self, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """A program of the environment, run to its end in a directory without any source."""
        command = [str(self.bin / program), *map(str, arguments)]
        return subprocess.run(
            command, cwd=self.work, env=self._variables, capture_output=True, text=True, check=False, timeout=120
        )
