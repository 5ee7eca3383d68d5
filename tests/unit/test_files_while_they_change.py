"""Files that let one in, read at whatever moment of being replaced: the last good value stays, and looking goes on."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import pytest

from hmarl.runtime.reloading import SETTLING_S, Reloaded, Watch
from hmarl.runtime.secret_files import read_tokens
from processes import wait_for
from secured import write_tokens
from told_clock import Clock

TOKEN = "correct-horse-battery-staple"
LOGGER = logging.getLogger("hmarl.agent")


def test_a_file_that_comes_and_goes_stops_no_one_who_looks(tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "tokens", TOKEN)
    tokens = Reloaded("the tokens", [path], lambda: read_tokens("--t", path), LOGGER)
    until = time.monotonic() + 1.0

    def come_and_go() -> None:
        while time.monotonic() < until:
            path.unlink()
            write_tokens(path, TOKEN)

    other = threading.Thread(target=come_and_go)
    other.start()
    while other.is_alive():
        tokens.look()
    assert tokens.value.name_of(TOKEN) == "token"


def test_whatever_goes_wrong_when_a_file_is_read_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, clock = write_tokens(tmp_path / "tokens", TOKEN), Clock()
    broken = threading.Event()

    def read() -> str:
        if broken.is_set():
            raise OSError("Input/output error")
        return path.read_text()

    value = Reloaded("the text", [path], read, LOGGER, clock)
    before = value.value
    broken.set()
    write_tokens(path, TOKEN, TOKEN)
    monkeypatch.setattr(Watch, "EVERY_S", 0.01)
    stopped, looks = threading.Event(), [0]

    def looked() -> None:
        looks[0] += 1
        clock.now += SETTLING_S

    Watch([value], looked).start(stopped)
    wait_for(lambda: looks[0] > 5, "looking again")
    stopped.set()
    assert value.value == before
    assert value.failures == 1
    assert "the text cannot be used, the last good one stays: Input/output error" in caplog.text
