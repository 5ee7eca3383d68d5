"""A fleet whose machine has nothing left to start a member with for a while: the others serve on, and it is started."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hmarl.runtime import fleet_member, health_probe
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.fleet import Fleet
from hmarl.runtime.fleet_member import FleetError
from hmarl.runtime.health_probe import HealthProbe
from processes import wait_for

# Its own process: the descriptors that are missing would be missing to the tests.
PROGRAM = """
import logging, os, resource, signal, sys
from pathlib import Path

sys.path.insert(0, sys.argv[2])
from hmarl.runtime import fleet_member
from hmarl.runtime.bundle import load_bundle
from hmarl.runtime.fleet import Fleet
from processes import wait_for

fleet_member.FIRST_PAUSE_S = fleet_member.LONGEST_PAUSE_S = 0.02
fleet_member.MAX_FAILURES = 3
said = []
handler = logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger("hmarl.fleet").addHandler(handler)
NUMBER, HARD = resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def opened():
    return {int(each) for each in os.listdir("/proc/self/fd")}


def refusals():
    return [line for line in said if line.startswith("agent agent_0 cannot be started: Too many open files")]


def leave(room):
    '''So many descriptors are free.'''
    free = [number for number in range(1000) if number not in taken]
    resource.setrlimit(NUMBER, (free[room], HARD))


with Fleet(load_bundle(Path(sys.argv[1]))) as fleet:
    taken = opened()
    other = fleet.process_ids["agent_1"]
    leave(0)
    os.kill(fleet.process_ids["agent_0"], signal.SIGKILL)
    for room in range(5):  # wherever starting it breaks off; the one that died has left two more
        leave(room)
        before = len(refusals())
        wait_for(lambda: len(refusals()) > before + fleet_member.MAX_FAILURES, f"failing with room for {room}")
    fleet.check()
    assert fleet.process_ids == {"agent_1": other} and fleet.members["agent_1"].serving
    resource.setrlimit(NUMBER, (900, HARD))
    wait_for(lambda: fleet.serving, "the restart")
    os.kill(fleet.process_ids["agent_0"], signal.SIGKILL)  # its first failure, whatever the machine lacked before
    wait_for(lambda: not fleet.serving, "noticing the crash")
    wait_for(lambda: fleet.serving, "the second restart")
    fleet.check()
    assert fleet.process_ids["agent_1"] == other
    wait_for(lambda: len(opened()) <= len(taken), f"closing what was opened: {len(taken)}, now {len(opened())}")
"""


def test_a_member_that_cannot_be_started_is_started_later(toy_bundle: Bundle) -> None:
    words = [str(toy_bundle.path), str(Path(__file__).parents[1])]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_fleet_that_cannot_start_a_member_at_all_ends(toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_member, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(FleetError, match="agent 'agent_0' cannot be started: No such file or directory; tried 6 times"):
        Fleet(toy_bundle, roster={"agent_0": None}).start()


@pytest.mark.parametrize("said", ["no JSON", "[1]", '{"address": 1}', "{}", "[" * 100_000])
def test_a_member_that_does_not_say_where_it_serves_has_failed(
    toy_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    """Something that it loads may print what it pleases."""
    (tmp_path / "said").write_text(f"{said}\n")
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\ncat {tmp_path / 'said'}\nexec sleep 60\n")
    python.chmod(0o755)
    monkeypatch.setattr(fleet_member, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(FleetError, match="agent 'agent_0' keeps failing: exit code -9, 6 failures in a row"):
        Fleet(toy_bundle, roster={"agent_0": None}).start()


def test_a_question_for_which_there_is_no_thread_is_asked_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    probe, start = HealthProbe(f"frames:{tmp_path}/nothing"), threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for now in range(10):
        probe.tend(now * health_probe.CHECK_EVERY_S)
    assert (probe.unanswered, probe.unwell) == (0, 0), "the agent is not to blame"
    monkeypatch.setattr(threading.Thread, "start", start)
    probe.tend(10 * health_probe.CHECK_EVERY_S)
    wait_for(lambda: probe._answers, "the answer")
    probe.tend(10 * health_probe.CHECK_EVERY_S)
    assert probe.unanswered == 1
