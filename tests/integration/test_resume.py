"""A run that is killed and resumed is the run that was not killed, bit for bit."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SETTINGS = {
    "run.environments": 8,
    "run.rollout_length": 25,
    "run.checkpoint_interval": 4,
    "run.evaluation_interval": 3000,
    "run.evaluation_episodes": 4,
    "run.threads": 1,
}
TASKS = [
    ("hcpo", "mpe/simple_spread", {"algorithm.instruction_interval": 3}),
    ("hatrpo", "coordsum/3x10-30", {}),
    ("happo", "mpe/simple_reference", {"algorithm.minibatches": 2}),
    ("hcpo", "pettingzoo/mpe2.simple_spread_v3:parallel_env", {"env.workers": 0, "algorithm.instruction_interval": 2}),
]


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hmarl.trainer.cli", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def arguments(algorithm: str, environment: str, out: Path, settings: dict[str, object], steps: int) -> list[str]:
    words = [algorithm, "--env", environment, "--steps", str(steps), "--seed", "5", "--out", str(out)]
    for key, value in {**SETTINGS, **settings}.items():
        words += ["--set", f"{key}={value}"]
    return words


def wait_for_checkpoint(process: subprocess.Popen[str], run: Path) -> None:
    deadline = time.monotonic() + 120
    while not list(run.glob("checkpoints/step-*.json")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def final_hash(run: Path) -> str:
    return hashlib.sha256(max(run.glob("checkpoints/step-*.safetensors")).read_bytes()).hexdigest()


def finished(process: subprocess.Popen[str]) -> str:
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 0, output
    return output


@pytest.mark.parametrize(("algorithm", "environment", "settings"), TASKS)
def test_killed_and_resumed_equals_unbroken(
    algorithm: str, environment: str, settings: dict[str, object], tmp_path: Path
) -> None:
    steps = 4000
    finished(start(*arguments(algorithm, environment, tmp_path / "unbroken", settings, steps)))
    process = start(*arguments(algorithm, environment, tmp_path / "killed", settings, steps))
    wait_for_checkpoint(process, tmp_path / "killed")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / "summary.json").exists(), "the run ended before it was killed"
    output = finished(start("--resume", str(tmp_path / "killed")))
    assert "resuming" in output
    assert final_hash(tmp_path / "killed") == final_hash(tmp_path / "unbroken")
    lines = (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    updates = [line.split('"update": ')[1].split(",")[0] for line in lines]
    assert updates == [str(update) for update in range(1, 21)], "every update is recorded once"


def test_ctrl_c_saves_and_says_how_to_resume(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(*arguments("happo", "mpe/simple_spread", run, {}, 10_000_000))
    wait_for_checkpoint(process, run)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    assert f"hmarl-train --resume {run}" in output
    saved = sorted(run.glob("checkpoints/step-*.json"))[-1].stem
    assert f"saved {saved}" in output
    assert "Traceback" not in output


def test_the_one_before_is_used_when_the_newest_checkpoint_is_damaged(tmp_path: Path) -> None:
    run = tmp_path / "run"
    finished(start(*arguments("happo", "mpe/simple_spread", run, {}, 4000)))
    good = final_hash(run)
    newest = max(run.glob("checkpoints/step-*.safetensors"))
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(bytes(content))
    (run / "summary.json").unlink()
    output = finished(start("--resume", str(run)))
    assert "is damaged" in output
    assert final_hash(run) == good
