"""A run can be stopped at any moment, and gone on with or begun again as it says."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hmarl.trainer.records.recorder import Recorder
from hmarl.trainer.runs.config import RunConfig
from hmarl.trainer.runs.run import Run
from hmarl.trainer.runs.stopping import Interrupted, StopRequest
from training_process import Training
from training_runs import command_line, final_hash, resumed, tiny_config, train

pytestmark = pytest.mark.usefixtures("single_thread")

TROUBLED = "troubled_environment:make"
Call = Callable[..., tuple[int, str, str]]
ENDLESS: dict[str, Any] = {"steps": 10**8, "checkpoint_interval": 10**6, "evaluation_interval": 10**8}


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Any]:
    """Starts hmarl-train; what still runs at the end is killed."""
    started: list[Training] = []

    def start(*words: str) -> Training:
        started.append(Training(*words))
        return started[-1]

    yield start
    for each in started:
        each.kill()


def updates(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_run_that_is_killed_before_its_first_checkpoint_begins_again(begin: Any, call: Call, tmp_path: Path) -> None:
    run, unbroken = tmp_path / "run", tmp_path / "unbroken"
    config = tiny_config("happo", "toy_environments:masked_discrete", {}, ENDLESS)
    training = begin(*command_line(config, run))
    training.until(lambda: updates(run) >= 3)
    training.kill()
    assert not list(run.glob("checkpoints/step-*.json"))
    code, _, error = call("train", "--resume", str(run), "--steps", "160")
    assert code == 0, error
    assert f"resuming {run} at 0 of 160 steps (no checkpoint had been written: it begins again)" in error
    finished = RunConfig.read(run)
    train(finished, unbroken)
    assert final_hash(run) == final_hash(unbroken)
    assert updates(run) == updates(unbroken) == 4, "lines of the run that was killed are still there"


@pytest.mark.parametrize("state", ["not yet a run", "no checkpoint", "not described"])
def test_whatever_a_kill_leaves_can_be_gone_on_with_as_it_says(state: str, call: Call, tmp_path: Path) -> None:
    config, run = tiny_config("happo", "toy_environments:masked_discrete"), tmp_path / "run"
    train(config, tmp_path / "unbroken")
    run.mkdir()
    (run / ".lock").write_text('{"pid": 1, "host": "gone"}\n')
    (run / ".config.json.ab12.tmp").write_text('{"hmarl_ver')
    words = command_line(config, run)
    if state != "not yet a run":
        words = ["--resume", str(run)]
        config.write(run)
        folder = run / "checkpoints"
        folder.mkdir()
        (folder / ".step-000000000080.safetensors.xyz1.tmp").write_bytes(b"\0" * 99)
        if state == "not described":
            first = sorted((tmp_path / "unbroken" / "checkpoints").glob("step-*.safetensors"))[0]
            shutil.copy(first, folder)
    code, _, error = call("train", *words)
    assert code == 0, error
    assert final_hash(run) == final_hash(tmp_path / "unbroken")
    assert not list(run.rglob("*.tmp")), "left by the kill"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_while_environments_are_built(number: signal.Signals, begin: Any, tmp_path: Path) -> None:
    run = tmp_path / "new" / "run"
    config = tiny_config("happo", TROUBLED, {}, {}, {"build_s": 300})
    training = begin(*command_line(config, run))
    training.until((run / ".lock").exists)
    training.process.send_signal(number)
    assert training.ended() == 130, training.output
    again = "Ctrl-C again" if number == signal.SIGINT else "a second signal"
    assert f"stopping; {again} leaves at once" in training.output
    assert "Traceback" not in training.output
    assert not run.parent.exists(), "the same command cannot be typed again"


def test_ctrl_c_saves_also_what_begins_anew(begin: Any, tmp_path: Path) -> None:
    """Environments whose state can be saved: test_resume.py."""
    run = tmp_path / "run"
    training = begin(*command_line(tiny_config("happo", TROUBLED, {}, ENDLESS, {"saves": False}), run))
    training.until(lambda: updates(run) >= 3)
    training.process.send_signal(signal.SIGINT)
    assert training.ended() == 130, training.output
    (saved,) = run.glob("checkpoints/step-*.json")
    told = f"stopped; saved {saved.stem}. Continue with: hmarl-train --resume {run}"
    assert f"{told}; the environments, which cannot be saved, then begin new episodes" in training.output
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    update = json.loads(saved.read_text())["update"]
    assert last["update"] == update, "the last update was not saved"
    assert "environments_truncated" in last
    summary = resumed(run, steps=40 * (update + 2))
    assert (summary["updates"], summary["resumed_at"]) == (update + 2, 40 * update)


class JustAfter(StopRequest):
    """Asked for in the moment after a run has looked whether it is, at the so-many-th time."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def __call__(self) -> bool:
        asked = super().__call__()
        self.looks -= 1
        if self.looks == 0:
            self.ask()
        return asked


@pytest.mark.parametrize("looks", [1, 2, 3, 4])
def test_ctrl_c_between_two_updates_saves_them(looks: int, tmp_path: Path) -> None:
    """Every update looks twice. Nothing was saved before."""
    run = Run.create(tiny_config("happo", "coordsum/sum-to-10", {}, ENDLESS), tmp_path / "run")
    try:
        with pytest.raises(KeyboardInterrupt) as stopped:
            run.train(JustAfter(looks))
    finally:
        run.close()
    assert isinstance(stopped.value, Interrupted)
    (saved,) = (tmp_path / "run").glob("checkpoints/step-*.json")
    assert json.loads(saved.read_text())["update"] == looks // 2 + 1


@pytest.mark.parametrize("evaluation", ["endless", "hang"])
def test_ctrl_c_in_an_evaluation_loses_nothing(evaluation: str, begin: Any, call: Call, tmp_path: Path) -> None:
    run, evaluates = tmp_path / "run", tmp_path / "evaluates"
    settings = {"evaluation_interval": 80, "evaluation_step_limit": 10**9}
    arguments = {"evaluation": evaluation, "armed": str(evaluates)}
    config = tiny_config("happo", TROUBLED, {}, settings, arguments)
    training = begin(*command_line(config, run))
    training.until(evaluates.exists)
    training.process.send_signal(signal.SIGINT)
    assert training.ended() == 130, training.output
    assert f"stopped; the last good checkpoint is in {run / 'checkpoints'} (step-000000000080)" in training.output
    assert f"continue with: hmarl-train --resume {run}" in training.output
    healed = RunConfig.read(run).model_copy(update={"environment_arguments": {"evaluation": ""}})
    healed.write(run)
    code, _, error = call("train", "--resume", str(run))
    assert code == 0, error
    said = [line for line in error.splitlines() if line.startswith("evaluat")]
    assert said[0] == "evaluating what was saved at 80 steps", "it may take long, and nothing else is said meanwhile"
    assert said[1].startswith("evaluation at 80 steps: ")
    train(healed, tmp_path / "unbroken")
    assert final_hash(run) == final_hash(tmp_path / "unbroken")
    assert figures(run) == figures(tmp_path / "unbroken")


def test_an_update_is_saved_also_when_stopping_is_asked_for_late_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is that this update is saved: whatever of it is being done at that moment."""
    stop, write = StopRequest(), Recorder.write

    def asked_meanwhile(recorder: Recorder, update: int, *figures: Any) -> None:
        write(recorder, update, *figures)
        if update == 3:
            stop.ask()

    monkeypatch.setattr(Recorder, "write", asked_meanwhile)
    run = Run.create(tiny_config("happo", "mpe/simple_spread", {}, {"checkpoint_interval": 100}), tmp_path / "run")
    with pytest.raises(Interrupted):
        run.train(stop)
    run.close()
    (saved,) = (tmp_path / "run").glob("checkpoints/step-*.json")
    assert json.loads(saved.read_text())["update"] == 3


def test_stopping_is_said_before_stopped(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that answers may be late, on a machine that is busy."""
    say = StopRequest.say

    def say_late(stop: StopRequest, number: int) -> None:
        time.sleep(0.2)
        say(stop, number)

    def asked(run: Run, stop: StopRequest) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
        return {}

    monkeypatch.setattr(StopRequest, "say", say_late)
    monkeypatch.setattr(Run, "train", asked)
    words = command_line(tiny_config("happo", "toy_environments:masked_discrete"), tmp_path / "run")
    code, _, error = call("train", *words)
    assert code == 130
    assert 0 < error.index("stopping; Ctrl-C again leaves at once") < error.index("stopped; no checkpoint")


def figures(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.endswith("_s")} for row in rows]


def test_a_second_ctrl_c_leaves_what_hangs(begin: Any, tmp_path: Path) -> None:
    run, hangs = tmp_path / "run", tmp_path / "hangs"
    arguments = {"hang_at": 35, "armed": str(hangs)}
    config = tiny_config("happo", TROUBLED, {}, {**ENDLESS, "checkpoint_interval": 1}, arguments)
    training = begin(*command_line(config, run))
    training.until(hangs.exists)
    training.process.send_signal(signal.SIGINT)
    training.until_printed("stopping after this update, which is saved; Ctrl-C again leaves at once")
    assert training.process.poll() is None
    training.process.send_signal(signal.SIGINT)
    assert training.ended() == 130, training.output
    assert f"(step-000000000120); continue with: hmarl-train --resume {run}" in training.output
    assert "saved step" not in training.output


def test_a_run_that_is_killed_while_it_evaluates_equals_one_that_was_not(begin: Any, tmp_path: Path) -> None:
    armed, run, unbroken = tmp_path / "armed", tmp_path / "run", tmp_path / "unbroken"
    arguments = {"evaluation": "kill", "armed": str(armed)}
    config = tiny_config("happo", TROUBLED, {}, {"steps": 240, "evaluation_interval": 80}, arguments)
    expected = train(config, unbroken)
    armed.touch()
    training = begin(*command_line(config, run))
    assert training.ended() == -signal.SIGKILL
    assert updates(run) == 1, "the line of an update comes with its evaluation"
    again = begin("--resume", str(run))
    assert again.ended() == -signal.SIGKILL, "it does not begin with the evaluation"
    assert updates(run) == 1
    armed.unlink()
    summary = resumed(run)
    assert final_hash(run) == final_hash(unbroken)
    assert figures(run) == figures(unbroken)
    assert sum("evaluation/local/return_mean" in row for row in figures(run)) == 3
    for file in ("best.json", "step-000000000080.json"):
        ours, theirs = (run / "checkpoints" / file, unbroken / "checkpoints" / file)
        assert ours.exists() == theirs.exists()
        assert not ours.exists() or ours.read_text() == theirs.read_text()
    assert summary["best_return"] == expected["best_return"]
