"""A process that has no descriptors left takes orders again once it has."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os, resource, socket, time
from pathlib import Path
from hmarl.runtime.reload_door import ReloadDoor, ask_for_reload

door = ReloadDoor(lambda path, say: {"bundle": str(path)})
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
print(ask_for_reload(door.path, Path("/b"), print))
door.close()
"""


def test_a_door_outlives_a_lack_of_descriptors() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout) == (0, "{'bundle': '/b'}\n"), done.stderr
