"""Environments that exit, crash, hang or run out of shared memory: an error that says so, and nothing left behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hmarl.sdk.environments import make
from hmarl.sdk.environments.workers.lifted import CopyNumbers
from hmarl.sdk.environments.workers.process import STEP
from hmarl.sdk.errors import EnvironmentFault, UsageError

TESTS = Path(__file__).parent.parent
FAILING, NUMBERED = "pettingzoo/odd_toys:Failing", "pettingzoo/odd_toys:Numbered"
PLACE = r"\(.*odd_toys.py:\d+\)"


@pytest.fixture(autouse=True)
def _fresh_numbers(monkeypatch):
    """As in a process of its own: what other tests have left open takes no numbers."""
    monkeypatch.setattr(CopyNumbers, "_taken", set())


def step_twice(environment):
    environment.reset(np.arange(environment.batch_size))
    for _ in range(2):
        environment.step((np.zeros((environment.batch_size, 2), np.int64),))


def make_and_play(where, workers):
    play_twice(make(FAILING, 2, where=where, at=1, workers=workers))


def play_twice(environment):
    for _ in range(2):
        step_twice(environment)


# --- errors and exits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("how", "told"), [("raise", "KeyError: 'wheel_left'"), ("exit", r"it called sys.exit\(7\)")])
@pytest.mark.parametrize("where", ["step", "reset"])
def test_an_environment_that_fails_or_exits_is_named_with_its_file_and_line(where, how, told, workers):
    environment = make(FAILING, 2, workers=workers, where=where, how=how, at=1)
    with pytest.raises(EnvironmentFault, match=rf"environment 0: {told} {PLACE}"):
        play_twice(environment)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_exit_while_it_is_made_is_refused_and_one_while_it_is_closed_passed_over(workers):
    with pytest.raises(UsageError, match=rf"Failing with .*: it called sys.exit\(7\) {PLACE}; it takes: where"):
        make(FAILING, 2, workers=workers, where="make", how="exit")
    with pytest.raises(EnvironmentFault, match=rf"could not be made: it called sys.exit\(7\) {PLACE}"):
        make(FAILING, 2, workers=workers, where="reset", how="exit", at=0)
    environment = make(FAILING, 2, workers=workers, where="close", how="exit", at=0)
    step_twice(environment)
    environment.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupt_that_an_environment_raises_is_its_own(workers):
    environment = make(FAILING, 2, workers=workers, how="interrupt")
    with pytest.raises(EnvironmentFault, match=rf"environment 0: KeyboardInterrupt {PLACE}"):
        step_twice(environment)


def test_ctrl_c_in_this_process_stays_an_interrupt():
    environment = make(FAILING, 1, workers=0, how="spin")
    with pytest.raises(KeyboardInterrupt):
        step_twice(environment)
    environment.close()


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("os_exit", r"\(exit code 3\); see its output above"),
        ("crash", r"\(killed by SIGSEGV\): a crash in native code; its output above shows where"),
        ("kill", r"\(killed by SIGKILL\): probably by the kernel's out-of-memory killer"),
    ],
)
def test_a_worker_that_is_lost_is_told_with_its_signal(how, told, capfd):
    environment = make(FAILING, 2, workers=1, how=how)
    with pytest.raises(EnvironmentFault, match=f"environment 0: the worker process died {told}"):
        step_twice(environment)
    if how == "crash":
        assert "in fail" in capfd.readouterr().err


def test_the_traceback_of_a_worker_is_shown_when_asked_for(capfd, monkeypatch):
    for debug in ("0", "1"):
        monkeypatch.setenv("HMARL_DEBUG", debug)
        with pytest.raises(EnvironmentFault):
            step_twice(make(FAILING, 2, workers=1))
        assert ("Traceback" in capfd.readouterr().err) == (debug == "1")


def test_a_command_calls_an_exit_of_an_environment_a_failure():
    for name in ("pettingzoo/odd_toys:Failing", "own_vectors:exiting"):
        settings = ["--set", "env.how=exit", "--set", "env.workers=0"] if "/" in name else []
        program = f"from hmarl.sdk.commands import check_environment\nsys.argv = ['x', {name!r}, *{settings!r}]"
        done = subprocess.run(
            [sys.executable, "-c", f"import sys\n{program}\ncheck_environment.main()"],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(TESTS), "COLUMNS": "300"},
        )
        assert done.returncode == 4
        assert "called sys.exit(7)" in done.stdout + done.stderr


# --- hanging ---------------------------------------------------------------------------------------------------------

HANGING = """
import sys, threading, numpy as np
from hmarl.sdk.environments import make
environment = make("pettingzoo/odd_toys:Failing", 2, workers=2, how=sys.argv[1])
print(*[worker.process.pid for worker in environment._pool._workers], flush=True)
environment.reset(np.arange(2))
for _ in range(2):
    environment.step((np.zeros((2, 2), np.int64),))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_workers_that_hang_end_with_a_parent_that_is_killed():
    # "native" holds the interpreter's lock: no thread of the worker could see to it.
    parents = [
        subprocess.Popen(
            [sys.executable, "-c", HANGING, how],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
        )
        for how in ("sleep", "native")
    ]
    pids = [int(pid) for parent in parents for pid in parent.stdout.readline().split()]
    assert len(pids) == 4
    time.sleep(2.0)
    assert all(processes_of(pid) for pid in pids)
    for parent in parents:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        parent.stdout.close()
    deadline = time.monotonic() + 60
    while any(processes_of(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(processes_of(pid) for pid in pids)


def processes_of(session):
    """Processes of a worker's session, itself and its guardian, that are no zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = path.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_session) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_closing_hung_workers_takes_as_long_as_closing_one_and_leaves_no_process():
    environment = make(FAILING, 6, workers=6, how="sleep")
    pids = [worker.process.pid for worker in environment._pool._workers]
    environment.reset(np.arange(6))
    environment.step((np.zeros((6, 2), np.int64),))
    for worker in environment._pool._workers:
        worker.send(STEP)
    begin = time.monotonic()
    environment.close()
    # One deadline of 3 s for all, not one each: 18 s.
    assert time.monotonic() - begin < 15
    deadline = time.monotonic() + 20
    while any(processes_of(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(processes_of(pid) for pid in pids)


# --- shared memory ---------------------------------------------------------------------------------------------------

SMALL = """
import subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/dev/shm"], check=True)
from hmarl.sdk.environments import make
from hmarl.sdk.errors import EnvironmentFault
for batch in (4, 4000):
    try:
        make("pettingzoo/odd_toys:Pair", batch, workers=2).close()
        print("made")
    except EnvironmentFault as error:
        print(error)
print(len(__import__("os").listdir("/dev/shm")), "left")
"""


def _can_unshare():
    if shutil.which("unshare") is None or shutil.which("mount") is None:
        return False
    probe = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _can_unshare(), reason="a small /dev/shm of its own takes root and the tool unshare")
def test_too_little_shared_memory_is_an_error_before_the_workers_start():
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", SMALL],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        timeout=120,
        check=True,
    )
    made, refused, left = done.stdout.splitlines()
    assert (made, left) == ("made", "0 left")
    assert "4000 environments in worker processes need 0." in refused
    assert "/dev/shm has 0.1 MiB free" in refused
    for advice in ("--shm-size", "fewer environments", "env.workers=0"):
        assert advice in refused


# --- the copies' numbers ---------------------------------------------------------------------------------------------


def numbers(environment):
    """[B, 3]: the argument, the variable when made, the variable when reset; with auto-resets in between."""
    seen = environment.reset(np.arange(environment.batch_size))
    for _ in range(4):
        seen = environment.step((np.zeros((environment.batch_size, 2), np.int64),)).observation
    return seen.observations[0][:, 0].astype(int).tolist()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_copy_knows_its_number_as_argument_and_as_variable(workers):
    environment = make(NUMBERED, 3, workers=workers)
    assert numbers(environment) == [[0] * 3, [1] * 3, [2] * 3]
    assert "copy_index" not in environment.spec.arguments
    assert "HMARL_COPY_INDEX" not in os.environ
    environment.close()


def test_numbers_of_copies_that_live_at_one_time_differ_and_are_free_again_later():
    training, evaluation = make(NUMBERED, 2, workers=2), make(NUMBERED, 2, workers=0)
    assert [row[0] for row in numbers(training) + numbers(evaluation)] == [0, 1, 2, 3]
    training.close()
    again = make(NUMBERED, 3, workers=0)
    assert [row[0] for row in numbers(again)] == [0, 1, 4]
    again.close()
    evaluation.close()


def test_a_number_that_is_given_counts_and_functions_without_the_parameter_get_none():
    environment = make(NUMBERED, 1, copy_index=7)
    assert numbers(environment) == [[7, 0, 0]]
    environment.close()
    make("pettingzoo/odd_toys:any_number", 1).close()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_environment_that_could_not_be_made_or_has_failed_keeps_no_numbers(workers):
    for where in ("make", "reset"):
        with pytest.raises((UsageError, EnvironmentFault)) as kept:  # its traceback keeps all of them alive
            make_and_play(where, workers)
    assert kept.value is not None
    environment = make(NUMBERED, 1)
    assert numbers(environment)[0][0] == 0
    environment.close()
