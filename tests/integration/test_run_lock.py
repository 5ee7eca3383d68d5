"""A run directory has one owner at a time, and is free again when that one's process has ended, however it did."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hmarl.sdk.errors import UsageError
from hmarl.trainer.runs.lock import RunLock
from hmarl.trainer.runs.run import Run
from training_process import Training
from training_runs import command_line, tiny_config, train

pytestmark = pytest.mark.usefixtures("single_thread")

GUIDED = {"embedding_size": 8, "epochs": 2}
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def owned(tmp_path: Path) -> Iterator[tuple[Path, Training]]:
    """A run that trains in another process, with a child that was forked there and lives on."""
    run = tmp_path / "run"
    settings = {"steps": 10**8, "checkpoint_interval": 1, "evaluation_interval": 10**8}
    config = tiny_config("mat", "troubled_environment:make", GUIDED, settings, {"forks_at": 25})
    training = Training(*command_line(config, run))
    training.until(lambda: len(list(run.glob("checkpoints/step-*.json"))) >= 3)
    yield run, training
    training.kill()


def files(run: Path) -> dict[str, int]:
    names = ("config.json", "students", "bundle", ".lock")
    return {path.name: path.stat().st_ino for path in run.iterdir() if path.name in names}


def test_a_second_owner_is_refused_by_the_first_ones_pid_until_that_one_is_killed(
    owned: tuple[Path, Training], call: Call
) -> None:
    run, training = owned
    before = files(run)
    config = tiny_config("mat", "troubled_environment:make", GUIDED)
    for command in (
        ("train", *command_line(config, run)),
        ("train", "--resume", str(run), "--steps", "160"),
        ("export", str(run), "--checkpoint", "last", "--distil"),
    ):
        code, _, error = call(*command)
        assert code == 2, error
        assert f"run directory {run}: in use by process {training.process.pid}" in error
    assert files(run) == before
    assert json.loads((run / "config.json").read_text())["run"]["steps"] == 10**8
    training.kill()
    # At once, though the child that was forked before lives on.
    resumed = Run.resume(run)
    assert json.loads((run / ".lock").read_text())["pid"] == os.getpid()
    resumed.close()


def test_a_lock_is_free_after_its_release_and_leaves_nothing_when_it_is_discarded(tmp_path: Path) -> None:
    run = tmp_path / "new" / "run"
    lock = RunLock(run)
    with pytest.raises(UsageError, match=f"in use by process {os.getpid()}"):
        RunLock(run)
    lock.discard()
    assert not run.parent.exists()
    RunLock(run).release()
    lock = RunLock(run)
    (run / "something").touch()
    lock.discard()
    assert (run / "something").exists()


@pytest.mark.parametrize("moment", [(os, "mkdir"), (os, "open"), (fcntl, "flock"), (os, "pwrite")])
def test_ctrl_c_while_the_lock_is_taken_leaves_nothing(
    moment: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the moment after a call to the system: Python looks for signals when it comes back."""
    module, name = moment
    call = getattr(module, name)

    def interrupted(*arguments: Any, **named: Any) -> Any:
        call(*arguments, **named)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(module, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        RunLock(tmp_path / "new" / "run")
    assert not list(tmp_path.iterdir())
    RunLock(tmp_path / "new" / "run").release()


def test_what_is_forked_does_not_hold_the_lock(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    try:
        with pytest.raises(UsageError):
            RunLock(tmp_path)  # the fork did not free it either
        lock.release()
        deadline = time.monotonic() + 10  # the child lets go in its own time
        while True:
            try:
                RunLock(tmp_path).release()
                break
            except UsageError:
                assert time.monotonic() < deadline, "the child holds it"
                time.sleep(0.01)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_finished_run_is_free(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = tiny_config("happo", "toy_environments:masked_discrete")
    train(config, run)
    with pytest.raises(UsageError, match=f"already holds a run; choose another, or use --resume {run}"):
        Run.create(config, run)
    Run.resume(run).close()


def test_checkpoints_of_a_run_without_its_config_are_not_begun_over(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = tiny_config("happo", "toy_environments:masked_discrete")
    train(config, run)
    (run / "config.json").unlink()
    before = sorted(path.name for path in (run / "checkpoints").iterdir())
    with pytest.raises(UsageError, match=f"{run} holds checkpoints of a run whose config.json is gone; choose another"):
        Run.create(config, run)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == before


def test_an_unwritable_directory_is_named_at_once(call: Call, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words: Any = command_line(tiny_config("happo", "toy_environments:masked_discrete"), tmp_path / "file" / "run")
    code, _, error = call("train", *words)
    assert (code, "cannot write there (Not a directory)" in error) == (2, True), error
