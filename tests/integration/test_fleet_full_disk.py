"""A fleet whose endpoints file finds no room: one line, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hmarl.runtime.bundle import Bundle
from small_disk import fill, small_disk


def test_endpoints_that_find_no_room(toy_bundle: Bundle, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        fill(disk / "filler")
        out = disk / "endpoints.json"
        command = [sys.executable, "-m", "hmarl.runtime.commands.fleet", str(toy_bundle.path), "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 2, "before any agent is started"
        said = f"hmarl-fleet: --out: got '{out}', but nothing can be written in that folder: No space left on device; "
        assert done.stderr.splitlines()[-1] == said + "choose another"
        assert [file.name for file in disk.iterdir()] == ["filler"]
