"""The bundle that ships with the project, served by a fleet, as the README has it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from installed import ROOT

SHIPPED_BUNDLE = ROOT / "models" / "simple-spread-hcpo"


@contextlib.contextmanager
def shipped_fleet(endpoints: Path, *options: str) -> Iterator[Path]:
    """A fleet that serves until the end of the block; its addresses are in the file ``endpoints``."""
    command = [sys.executable, "-m", "hmarl.runtime.commands.fleet", str(SHIPPED_BUNDLE), "--out", str(endpoints)]
    command += options
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as fleet:
        try:
            deadline = time.monotonic() + 60.0
            while not endpoints.exists():
                assert fleet.poll() is None, "hmarl-fleet has ended"
                assert time.monotonic() < deadline, "hmarl-fleet is not serving"
                time.sleep(0.05)
            yield endpoints
        finally:
            fleet.terminate()
