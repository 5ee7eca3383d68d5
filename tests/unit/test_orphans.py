"""What a process is told when the one that started it is killed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

CHILD = """
import os, pathlib, signal, sys, time
from hmarl.runtime.orphans import die_with_parent
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(time.monotonic()))
die_with_parent(os.getppid())
print("ready", flush=True)
while not told or time.monotonic() < told[0] + 0.3:
    time.sleep(0.001)
pathlib.Path(sys.argv[1]).write_text(str(len(told)))
"""
PARENT = """
import subprocess, sys, threading, time
for _ in range(30):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
def spin():
    while True:
        sum(range(1000))
for _ in range(4):
    threading.Thread(target=spin, daemon=True).start()
def start():
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]], stdout=subprocess.PIPE)
    print(child.stdout.readline(), flush=True)
    time.sleep(600)
threading.Thread(target=start).start()
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells of a parent's end")
def test_the_end_of_a_parent_with_many_threads_is_told_once(tmp_path: Path) -> None:
    """A second signal would mean: leave at once. The kernel sends one for every thread of the parent, up to 32 here."""
    for number in range(5):
        heard = tmp_path / str(number)
        with subprocess.Popen([sys.executable, "-c", PARENT, CHILD, str(heard)], stdout=subprocess.PIPE) as parent:
            assert parent.stdout is not None
            assert b"ready" in parent.stdout.readline()
            parent.kill()
        deadline = time.monotonic() + 60
        while not (heard.exists() and heard.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert heard.read_text() == "1"
