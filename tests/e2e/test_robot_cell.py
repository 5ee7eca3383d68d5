"""The example with robots and a live view: as its user starts it, an agent killed by its button, and started again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from installed import ROOT

EXAMPLE = ROOT / "examples" / "robot_cell.py"
WITHIN_S = 120.0


class Cell:
    """The running example, as a browser sees it."""

    def __init__(self, address: str) -> None:
        self.address = address

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.address + path, timeout=30) as response:
            content: bytes = response.read()
            return content

    def post(self, path: str) -> None:
        request = urllib.request.Request(self.address + path, method="POST")
        with urllib.request.urlopen(request, timeout=30):
            pass

    def until(self, what: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first status of which something is true."""
        deadline = time.monotonic() + WITHIN_S
        while time.monotonic() < deadline:
            try:
                status: dict[str, Any] = json.loads(self.get("/status"))
            except urllib.error.HTTPError:
                status = {}  # nothing has been drawn yet
            if status and what(status):
                return status
            time.sleep(0.05)
        raise AssertionError(f"not within {WITHIN_S} s: {status}")


@contextmanager
def running(*options: str) -> Iterator[tuple[Cell, subprocess.Popen[str]]]:
    command = [sys.executable, str(EXAMPLE), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Cell(process.stdout.readline().strip()), process
        finally:
            if process.poll() is None:
                process.terminate()


def agents_of(process: int) -> list[int]:
    """The agents that a program has started and that still run."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((each / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process and b"hmarl.runtime.commands.agent" in (each / "cmdline").read_bytes():
                found.append(int(each.name))
        except OSError:
            continue
    return found


def pixels(picture: bytes) -> tuple[tuple[int, int], bytes]:
    """Width, height and content of a PNG file as the example writes it, which any reader checks likewise."""
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, place = {}, 8
    while place < len(picture):
        (length,) = struct.unpack(">I", picture[place : place + 4])
        kind, content = picture[place + 4 : place + 8], picture[place + 8 : place + 8 + length]
        assert struct.unpack(">I", picture[place + 8 + length : place + 12 + length]) == (zlib.crc32(kind + content),)
        chunks[kind] = content
        place += 12 + length
    return struct.unpack(">II", chunks[b"IHDR"][:8]), zlib.decompress(chunks[b"IDAT"])  # type: ignore[return-value]


def test_it_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 200


def test_an_agent_is_killed_and_started_again_while_one_watches() -> None:
    name = "robot 1 agent_1"

    def of(status: dict[str, Any]) -> tuple[str, str | None]:
        return status["agents"][name]["process"], status["agents"][name]["reason"]

    with running("--robots", "1") as (cell, process):
        assert "<title>Robot cell</title>" in cell.get("/").decode()
        cell.until(lambda status: of(status) == ("running", None))
        size, first = pixels(cell.get("/0.png"))
        assert size == (400, 400)
        assert len(set(first)) > 10  # a robot, not an empty picture
        cell.post("/nonsense")  # changes nothing
        cell.post(f"/kill?{quote(name)}")
        killed = cell.until(lambda status: of(status)[0] == "killed" and of(status)[1] is not None)
        later = cell.until(lambda status: status["tick"] > killed["tick"] + 10)
        assert of(later)[1] is not None
        other = cell.until(lambda status: status["agents"]["robot 1 agent_0"]["reason"] is None)
        assert of(other)[0] == "killed"
        assert pixels(cell.get("/0.png"))[1] != first
        cell.post(f"/start?{quote(name)}")
        cell.until(lambda status: of(status) == ("running", None))
        cell.post(f"/freeze?{quote(name)}")
        cell.until(lambda status: of(status)[0] == "frozen" and of(status)[1] is not None)
        cell.post(f"/start?{quote(name)}")
        cell.until(lambda status: of(status) == ("running", None))
        started = agents_of(process.pid)
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=60)
        assert process.returncode == 0
    assert "robot 1 agent_1: " in told
    assert "ticks at 20 Hz" in told
    assert started
    assert not any(Path(f"/proc/{agent}").exists() for agent in started)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_the_page_shows_it_in_a_browser(tmp_path: Path) -> None:
    """Chromium, headless: the page's own script has filled in robots, agents and buttons."""
    with running("--robots", "1") as (cell, _):
        cell.until(lambda status: status["tick"] > 3)
        cell.post(f"/kill?{quote('robot 1 agent_0')}")
        cell.until(lambda status: status["agents"]["robot 1 agent_0"]["reason"] is not None)
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
        command += ["--virtual-time-budget=4000", "--dump-dom", cell.address]
        page = subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=True, env={**os.environ, "HOME": str(tmp_path)}
        ).stdout
    assert page.count("<button>kill</button>") == 2
    assert 'class="stale">fallback (' in page
    assert "robot 1: " in page
    assert "ticks at 20 Hz" in page
