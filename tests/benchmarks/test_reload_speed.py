"""How long a reload keeps acts waiting: the interpreter's longest turn, in the process's own processor time.

What else runs on the machine does not count, so the figure is the same on a busy one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from serving import SHIPPED_BUNDLE
from toy_bundle import write_toy_bundle

pytestmark = pytest.mark.benchmark
# In a process that holds what an agent holds, and no test's modules.
PROGRAM = """
import gc, json, sys, threading, time
from pathlib import Path
from hmarl.runtime.bundle import load_bundle, to_plain, write_bundle
from hmarl.runtime.registry import SessionRegistry
from hmarl.runtime.reload import Reloader
from hmarl.runtime.session import Policy
import hmarl.runtime.server

first = load_bundle(sys.argv[1])
files = {name: first.read(name) for name in first.manifest.files}
second = write_bundle(Path(sys.argv[2]), {**to_plain(first.manifest), "name": "second"}, files)
del files
sessions = SessionRegistry(Policy(first, "agent_0"), 10, 600.0)
reloader = Reloader(sessions, load_bundle)
gc.collect()
gc.freeze()
longest = 0.0

def look():
    global longest
    last = time.process_time()
    while True:
        time.sleep(0.0001)
        now = time.process_time()
        longest, last = max(longest, now - last), now

threading.Thread(target=look, daemon=True).start()
found = []
for number in range(9):
    longest, used, begun = 0.0, time.process_time(), time.monotonic()
    reloader.switch(reloader.prepare((second, first)[number % 2].path))
    found.append((1e3 * longest, 1e3 * (time.process_time() - used), time.monotonic() - begun))
print(json.dumps(found))
"""


@pytest.mark.parametrize("graph", ["shipped", "48 MiB"])
def test_the_longest_turn_of_a_reload(graph: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = SHIPPED_BUNDLE
    if graph != "shipped":
        bundle = write_toy_bundle(tmp_path / "large", agents=("agent_0",), sizes=(2048, 2048, 2048)).path
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(bundle), str(tmp_path / "second")],
        check=True,
        capture_output=True,
        text=True,
        timeout=600,
    )
    turns, used, took = (sorted(values) for values in zip(*json.loads(done.stdout), strict=True))
    with capsys.disabled():
        print(f"\n{graph}: longest turn, ms: median {turns[4]:.1f}, largest of 9 {turns[-1]:.1f}; ", end="")
        print(f"processor time {used[4]:.0f} ms, from the order to the switch {took[4]:.2f} s")
    assert turns[4] < (20.0 if graph == "shipped" else 300.0)
