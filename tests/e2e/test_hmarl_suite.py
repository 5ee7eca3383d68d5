"""A suite from its file to its page, killed in the middle; as users type it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from command_lines import command, surroundings
from hmarl.trainer.records.metrics import read_metrics
from hmarl.trainer.runs.lock import RunLock
from training_process import PATIENCE_S
from training_runs import tiny_config, train

pytestmark = pytest.mark.timeout(1200)  # many short processes: long where a machine is busy

SUITE = """
tasks = [{ env = "coordsum/sum-to-10", range = [0, 1] }]
algorithms = ["mappo", "happo"]
seeds = [100]
steps = 800
evaluations = 2
settings.run = { environments = 4, rollout_length = 10, evaluation_episodes = 2, checkpoint_interval = 1 }
settings.algorithm = { hidden_sizes = [8], critic_hidden_sizes = [8] }
"""


@dataclass
class Killed:
    """What was found of a suite that was stopped by Ctrl-C, killed, and started again.

    Attributes:
        folder, file: of the suite.
        stopped: exit code and output of the command that was stopped.
        ledger: how its runs stood then.
        page: written then.
        done_before: how many were done when it was killed.
        answer: of the last command.
    """

    folder: Path
    file: Path
    stopped: tuple[int, str]
    ledger: dict[str, Any]
    page: str
    done_before: int
    answer: tuple[int, str, str]

    def runs(self) -> list[Path]:
        return sorted(path for path in (self.folder / "runs").iterdir() if path.is_dir())


def until(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    work = tmp_path_factory.mktemp("suite")
    file, folder = work / "tiny.toml", work / "out"
    file.write_text(SUITE)
    words = command(*words_of(file, folder))
    process = subprocess.Popen(words, env=surroundings(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until(lambda: any(folder.glob("runs/*/checkpoints/step-*.json")))
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=PATIENCE_S)
    ledger, page = json.loads((folder / "suite.json").read_text()), (folder / "index.html").read_text()
    again = subprocess.Popen(words, env=surroundings(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: any("resuming" in path.read_text() for path in folder.glob("runs/*.log")))
    again.kill()
    again.wait()
    done = len(list(folder.glob("records/*.json")))
    last = subprocess.run(
        [*words, "--json"], env=surroundings(), capture_output=True, text=True, check=False, timeout=900
    )
    answer = (last.returncode, last.stdout, last.stderr)
    return Killed(folder, file, (process.returncode, said), ledger, page, done, answer)


def words_of(file: Path, folder: Path) -> tuple[Any, ...]:
    return ("hmarl-suite", file, "--out", folder, "--jobs", 1)


def test_ctrl_c_saves_all_runs(killed: Killed) -> None:
    code, output = killed.stopped
    assert code == 130, output
    assert "stopping: every run ends its update and saves; Ctrl-C again leaves at once" in output
    assert "stopped; all runs are saved, and the same command goes on" in output
    status = [entry["status"] for entry in killed.ledger["runs"].values()]
    assert set(status) <= {"stopped", "waiting"}
    assert "stopped" in status
    assert "was stopped, and can go on" in killed.page


def test_the_same_command_goes_on_and_ends(killed: Killed) -> None:
    code, output, error = killed.answer
    assert code == 0, error
    assert killed.done_before < 2, "killed in the middle"
    told = json.loads(output.splitlines()[-1])
    assert (told["done"], told["planned"], told["failed"]) == (2, 2, {})
    assert "2 of 2 runs done" in error
    assert len(list((killed.folder / "records").iterdir())) == 2


def test_runs_that_were_killed_are_as_if_they_had_not_been(killed: Killed, tmp_path: Path) -> None:
    resumed = [run for run in killed.runs() if "resuming" in run.with_name(f"{run.name}.log").read_text()]
    assert resumed
    run = resumed[0]
    config = json.loads((run / "config.json").read_text())
    again = tiny_config(config["algorithm"], "coordsum/sum-to-10", config["algorithm_settings"], config["run"])
    train(again, tmp_path / "whole")
    ours, whole = (
        [{key: value for key, value in row.items() if not key.endswith("_s")} for row in read_metrics(folder)]
        for folder in (run, tmp_path / "whole")
    )
    assert ours == whole


def test_results_are_written_for_other_tools_and_for_people(killed: Killed) -> None:
    document = json.loads((killed.folder / "marl-eval.json").read_text())
    algorithms = document["coordsum"]["sum-to-10"]
    assert {name: sorted(runs) for name, runs in algorithms.items()} == {
        name: ["seed_100"] for name in ("mappo", "happo")
    }
    steps = algorithms["happo"]["seed_100"]
    assert [step.get("step_count") for step in steps.values()] == [400, 800, None]
    page = (killed.folder / "index.html").read_text()
    assert page.count("data:image/png;base64") == 5, "four of all tasks, one of the task"
    for words in ("Probability of improvement", "Performance profile", "coordsum/sum-to-10", "hmarl-suite"):
        assert words in page
    assert "missing or incomplete" not in page
    assert "http" not in page.replace("http-equiv", "")


Call = Callable[..., tuple[int, str, str]]


def test_check_lists_what_is_left_and_trains_nothing(killed: Killed, call: Call, tmp_path: Path) -> None:
    code, output, error = call("check-suite", str(killed.file), "--out", str(killed.folder))
    assert (code, "2 runs, 1,600 steps; 0.0 s one after the other" in output) == (0, True), error
    code, output, _ = call("check-suite", str(killed.file), "--out", str(tmp_path / "none"), "--json")
    listed = json.loads(output.splitlines()[-1])
    assert (code, listed["left_s"], len(listed["runs"])) == (0, None, 2)
    assert not (tmp_path / "none").exists()


def test_another_librarys_results_stand_beside_and_nothing_is_trained(
    killed: Killed, call: Call, tmp_path: Path
) -> None:
    step = {"step_1": {"step_count": 1000, "return": [0.5, 1.0]}}
    theirs = {"coordsum": {"sum-to-10": {"qmix": {"seed_0": step}, "mappo": {"seed_0": step}}}}
    (tmp_path / "benchmarl.json").write_text(json.dumps(theirs))
    words = [killed.file, "--out", killed.folder, "--no-train", "--beside", tmp_path / "benchmarl.json"]
    code, _, error = call("suite", *map(str, words))
    assert code == 0, error
    page = (killed.folder / "index.html").read_text()
    assert "qmix" in page
    assert "mappo (benchmarl)" in page


def test_one_process_at_a_time_owns_a_suite(killed: Killed, call: Call) -> None:
    with RunLock(killed.folder, "suite directory"):
        code, _, error = call("suite", str(killed.file), "--out", str(killed.folder))
    assert code == 2
    assert f"suite directory {killed.folder}: in use by process {os.getpid()}" in error
