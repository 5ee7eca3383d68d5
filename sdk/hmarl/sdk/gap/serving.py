"""A fleet of agent processes for the rungs that are served, started when the first of them is played."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from hmarl.runtime.children import python
from hmarl.sdk.clock import now_s
from hmarl.sdk.errors import AgentError

_START_LIMIT_S = 120.0
_STOP_LIMIT_S = 30.0


class OwnFleet:
    """hmarl-fleet with a bundle, on free ports of 127.0.0.1; a context manager.

    Args:
        bundle: its path.
    """

    def __init__(self, bundle: Path) -> None:
        self._bundle = bundle
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def endpoints(self) -> Path:
        """The endpoints file of the fleet, which is started where it does not run yet.

        Raises:
            AgentError: it has ended, or does not serve in time.
        """
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="hmarl-gap-")
        path = Path(self._folder.name) / "endpoints.json"
        if self._process is None:
            words = python("-m", "hmarl.sdk.gap.fleet_process", str(os.getpid()))
            with path.with_name("log").open("w", encoding="utf-8") as log:
                self._process = subprocess.Popen(
                    [*words, str(self._bundle), "--out", str(path)], stdout=subprocess.DEVNULL, stderr=log, text=True
                )
        deadline = now_s() + _START_LIMIT_S
        while not path.exists():
            if self._process.poll() is not None:
                said = path.with_name("log").read_text(encoding="utf-8").strip().splitlines()
                raise AgentError(
                    f"the fleet has ended with exit code {self._process.returncode}: {' '.join(said[-1:])}"
                )
            if now_s() > deadline:
                raise AgentError(
                    f"the fleet does not serve after {_START_LIMIT_S:g} s; hmarl-verify looks at the bundle"
                )
            time.sleep(0.02)
        return path

    def close(self) -> None:
        """Stop it; a second call does nothing."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
