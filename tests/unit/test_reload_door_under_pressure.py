"""A process that has no descriptors or threads left takes orders again once it has."""

from __future__ import annotations

import subprocess
import sys

import pytest

from scarcity import WITH_DESCRIPTORS_AGAIN, WITH_THREADS_AGAIN, WITHOUT_DESCRIPTORS, WITHOUT_THREADS

PROGRAM = """
import os, resource, socket, threading, time
from pathlib import Path
from hmarl.runtime.reload_door import ReloadDoor, ask_for_reload

door = ReloadDoor(lambda path, say: {"bundle": str(path)})
"""
NO_DESCRIPTOR = f"""
caller = socket.socket(socket.AF_UNIX)
{WITHOUT_DESCRIPTORS}
caller.connect(str(door.path))
time.sleep(0.5)
{WITH_DESCRIPTORS_AGAIN}
caller.close()
"""
NO_THREAD = f"""
{WITHOUT_THREADS}
with socket.socket(socket.AF_UNIX) as caller:
    caller.connect(str(door.path))
    assert caller.recv(1) == b""
{WITH_THREADS_AGAIN}
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
