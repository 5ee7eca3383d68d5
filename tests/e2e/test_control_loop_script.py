"""The measurement of control loops runs, and says what it found."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from installed import ROOT


def may_be_first() -> bool:
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except PermissionError:
        return False
    return True


@pytest.mark.skipif(not may_be_first(), reason="SCHED_FIFO is not permitted here")
def test_a_loop_is_measured_in_a_process_with_settings(tmp_path: object) -> None:
    program = (
        "import sys; sys.path.insert(0, 'scripts')\n"
        "from pathlib import Path\n"
        "import control_loop\n"
        "if __name__ == '__main__':\n"
        "    with control_loop.served(Path(sys.argv[1]), 'unix') as agents, control_loop.hogs(1):\n"
        "        summary = control_loop.in_a_process(agents, True, 20.0, 0.5, 'SCHED_FIFO, slack, gc, memory')\n"
        "    print(control_loop.row(*control_loop.told(summary)))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    ticks = int(done.stdout.split("|")[1])
    assert 1 <= ticks <= 10


def test_a_wrong_option_is_one_line() -> None:
    command = [sys.executable, "scripts/control_loop.py", "--seconds", "never"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 2
    assert "--seconds" in done.stderr
    assert "Traceback" not in done.stderr
