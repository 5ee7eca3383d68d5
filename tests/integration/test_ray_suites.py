"""Runs of suites and searches as processes beside actors of Ray: they end, are killed and stop as local ones do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from command_lines import command, surroundings
from hmarl.trainer.records.metrics import read_metrics
from hmarl.trainer.runs.ray_session import ray_session
from hmarl.trainer.suite.executor import Executor, Started
from hmarl.trainer.suite.ray_executor import executor_at
from ray_cluster import ray_cluster
from training_process import PATIENCE_S
from training_runs import tiny_config, train

Call = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.timeout(1200)  # many short processes: long where a machine is busy
SMALL = ("environments=4", "rollout_length=10", "evaluation_episodes=2", "checkpoint_interval=1", "threads=1")
SETTINGS = [word for each in SMALL for word in ("--set", f"run.{each}")]
SETTINGS += ["--set", "algorithm.hidden_sizes=[8]", "--set", "algorithm.critic_hidden_sizes=[8]"]
LONG = ["mappo", "--env", "coordsum/sum-to-10", "--steps", "100000000", "--seed", "1", *SETTINGS]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray of this machine for all tests here; its address."""
    with ray_cluster(2) as cluster, ray_session(cluster.address):
        yield cluster.address


@pytest.fixture
def executor(cluster: str) -> Iterator[Executor]:
    with executor_at(cluster) as executor:
        yield executor


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """None of them outlives a test that fails."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 2 * PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ended(run: Started) -> int:
    until(lambda: run.exit_code() is not None)
    code = run.exit_code()
    assert code is not None
    return code


def steps(run: Path) -> int:
    """Of the newest checkpoint, 0 without one."""
    return max([int(path.stem.partition("-")[2]) for path in run.glob("checkpoints/step-*.json")], default=0)


def owner(run: Path) -> int:
    """The process that trains, 0 where there is none. Asking for the lock itself would keep it from who wants it."""
    try:
        pid = int(json.loads((run / ".lock").read_text())["pid"])
        os.kill(pid, 0)
    except (OSError, ValueError):
        return 0
    return pid


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_run_is_a_process_and_its_exit_code_comes_back(executor: Executor, tmp_path: Path) -> None:
    run = executor.start(["--version"], tmp_path / "run.log", 1)
    refused = executor.start(["mapo", "--env", "mpe/simple_spread"], tmp_path / "refused.log", 64)
    lost = executor.start(["--version"], tmp_path / "nowhere" / "run.log", 1)
    with pytest.raises(OSError, match=r"No such file.*does every machine see .*nowhere\?"):
        ended(lost)
    assert (ended(run), ended(refused)) == (0, 2), "64 threads take the CPUs of a machine, not 64 of them"
    assert (tmp_path / "run.log").read_text().splitlines()[-1].startswith("hmarl-train ")
    assert "did you mean 'mappo'" in (tmp_path / "refused.log").read_text()


def test_one_that_finds_no_room_waits_and_is_not_begun_when_it_is_stopped(executor: Executor, tmp_path: Path) -> None:
    first = executor.start([*LONG, "--out", str(tmp_path / "first")], tmp_path / "first.log", 2)
    until(lambda: not first.waits())
    second = executor.start([*LONG, "--out", str(tmp_path / "second")], tmp_path / "second.log", 1)
    until(lambda: steps(tmp_path / "first"))
    assert (second.waits(), second.exit_code()) == (True, None)
    second.ask_to_stop()
    assert ended(second) == 130
    first.ask_to_stop()
    assert ended(first) == 130
    assert "stopped; saved" in (tmp_path / "first.log").read_text()
    assert not (tmp_path / "second").exists()


def test_whatever_is_killed_of_a_run_it_counts_as_killed_and_nothing_is_lost(
    executor: Executor, tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "run.log"
    first = executor.start([*LONG, "--out", str(run)], log, 1)
    until(lambda: steps(run))
    os.kill(parent(owner(run)), signal.SIGKILL)
    assert ended(first) == -signal.SIGKILL
    assert "lost by Ray: " in log.read_text()
    until(lambda: not owner(run))
    saved = steps(run)
    assert "stopped; saved" in log.read_text(), "by itself"
    second = executor.start(["--resume", str(run)], log, 1)
    until(lambda: steps(run) > saved)
    os.kill(owner(run), signal.SIGKILL)
    assert ended(second) == -signal.SIGKILL
    third = executor.start(["--resume", str(run)], log, 1)
    until(lambda: owner(run))
    third.kill()
    until(lambda: not owner(run))
    assert ended(third) == -signal.SIGKILL


def test_what_loggers_are_told_reaches_a_run_and_no_log(
    cluster: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = "secret-of-the-tests-0123456789"
    monkeypatch.setenv("WANDB_API_KEY", key)
    with executor_at(cluster) as executor:
        run = executor.start([*LONG, "--out", str(tmp_path / "run")], tmp_path / "run.log", 1)
        until(lambda: owner(tmp_path / "run"))
        assert f"WANDB_API_KEY={key}" in Path(f"/proc/{owner(tmp_path / 'run')}/environ").read_text()
        run.kill()
        ended(run)
    sessions = sorted(Path(tempfile.gettempdir(), "ray").glob(f"session_hmarl_*_{os.getpid()}"), key=os.path.getmtime)
    logs = [*sessions[-1].glob("logs/**/*"), tmp_path / "run.log"]  # other tests of this process have had theirs
    assert len(logs) > 5
    assert not [path for path in logs if path.is_file() and key.encode() in path.read_bytes()]


SUITE = """
tasks = ["coordsum/sum-to-10"]
algorithms = ["mappo"]
seeds = 2
seeds_at_once = 2
steps = 6000
evaluations = 2
settings.run = { environments = 4, rollout_length = 10, evaluation_episodes = 2, checkpoint_interval = 1 }
settings.algorithm = { hidden_sizes = [8], critic_hidden_sizes = [8] }
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_suite_on_ray_survives_ctrl_c_and_kills(
    cluster: str, processes: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    file, folder = tmp_path / "tiny.toml", tmp_path / "out"
    file.write_text(SUITE)
    words = command("hmarl-suite", file, "--out", folder, "--ray", cluster)

    def started() -> subprocess.Popen[str]:
        processes.append(
            subprocess.Popen(words, env=surroundings(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
        return processes[-1]

    def runs() -> list[Path]:
        return sorted(path for path in folder.glob("runs/*") if (path / "config.json").exists())

    def going(after: int) -> bool:
        """Whether all have a checkpoint of a later step, and go on."""
        return len(runs()) == 2 and all(steps(run) > after and owner(run) for run in runs())

    suite = started()
    until(lambda: going(0))
    suite.send_signal(signal.SIGINT)
    said, _ = suite.communicate(timeout=600)
    assert suite.returncode == 130, said
    assert {each["status"] for each in json.loads((folder / "suite.json").read_text())["runs"].values()} == {"stopped"}
    assert not any(map(owner, runs()))
    suite, before = started(), max(map(steps, runs()))
    until(lambda: going(before))
    suite.kill()
    suite.communicate()
    suite, before = started(), max(map(steps, runs()))
    log = runs()[0].with_name(f"{runs()[0].name}.log")
    until(lambda: log.read_text().count("\nhmarl-train --resume ") == 2)  # the one that was killed has saved
    until(lambda: going(before))
    os.kill(parent(owner(runs()[0])), signal.SIGKILL)
    said, _ = suite.communicate(timeout=3000)
    assert suite.returncode == 0, said
    assert "goes on by itself" in said
    config = json.loads((runs()[0] / "config.json").read_text())
    train(tiny_config("mappo", "coordsum/sum-to-10", config["algorithm_settings"], config["run"]), tmp_path / "whole")
    ours, whole = ([row["steps"] for row in read_metrics(run)] for run in (runs()[0], tmp_path / "whole"))
    assert ours == whole
    assert len(list((folder / "records").iterdir())) == 2


@pytest.mark.parametrize(
    "words",
    [("suite", "none.toml"), ("tune", "mappo", "--env", "mpe/simple_spread", "--search", "algorithm.gamma=0..1")],
)
def test_a_missing_extra_is_one_line(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, out, err = call(*words, "--ray")
    assert (code, out) == (2, "")
    assert "hmarl[ray]" in err
    assert len(err.strip().splitlines()) == 1


def test_a_ray_that_would_train_nothing_is_refused(call: Call) -> None:
    code, _, err = call("suite", "none.toml", "--ray", "--no-train")
    assert code == 2
    assert "--ray: got --no-train as well" in err
    code, _, err = call("train", "mappo", "--env", "mpe/simple_spread", "--seeds", "1,2", "--ray")
    assert code == 2
    assert "--seeds: got --ray as well" in err
