"""A process that has no descriptors or threads left takes orders again once it has."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os, resource, socket, threading, time
from pathlib import Path
from hmarl.runtime.reload_door import ReloadDoor, ask_for_reload

door = ReloadDoor(lambda path, say: {"bundle": str(path)})
"""
NO_DESCRIPTOR = """
caller = socket.socket(socket.AF_UNIX)
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
caller.connect(str(door.path))
time.sleep(0.5)
for each in held:
    os.close(each)
caller.close()
"""
NO_THREAD = """
def refuse(self):
    raise RuntimeError("can't start new thread")


start, threading.Thread.start = threading.Thread.start, refuse
with socket.socket(socket.AF_UNIX) as caller:
    caller.connect(str(door.path))
    assert caller.recv(1) == b""
threading.Thread.start = start
"""
ORDER = """
print(ask_for_reload(door.path, Path("/b"), print))
door.close()
"""


@pytest.mark.parametrize("lack", [NO_DESCRIPTOR, NO_THREAD], ids=["descriptors", "threads"])
def test_a_door_outlives_a_lack(lack: str) -> None:
    program = PROGRAM + lack + ORDER
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout) == (0, "{'bundle': '/b'}\n"), done.stderr
