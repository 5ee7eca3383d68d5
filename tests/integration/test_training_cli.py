"""The trainer's command line: wrong use is explained, nothing is lost, results are written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FAST = ["--set", "run.environments=4", "--set", "run.rollout_length=12", "--set", "run.evaluation_episodes=4"]


def call(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = f"import sys; from hmarl.trainer.cli import {name}_main; {name}_main()"
    root = Path(__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, timeout=200, cwd=root
    )


TRAIN = ("happo", "--env", "mpe/simple_spread")
WRONG_USE = [
    (("hapo", "--env", "mpe/simple_spread"), 2, "unknown algorithm 'hapo'; did you mean 'happo'?"),
    (("happo", "--env", "mpe/simple_sprea"), 2, "did you mean 'simple_spread'?"),
    (("happo", "--env", "mep/simple_spread"), 2, "unknown environment family 'mep'; did you mean 'mpe'?"),
    (("happo",), 2, "usage: hmarl-train ALGORITHM --env FAMILY/TASK"),
    ((*TRAIN, "--steps", "-5"), 2, "run.steps: got -5"),
    ((*TRAIN, "--set", "algorithm.clipp=0.1"), 2, "unknown setting 'algorithm.clipp'; did you mean 'algorithm.clip'?"),
    ((*TRAIN, "--set", "algorithm.clip=7"), 2, "algorithm.clip: got 7"),
    ((*TRAIN, "--set", "algorithm.gamma=high"), 2, "algorithm.gamma: got 'high'"),
    ((*TRAIN, "--set", "env.n=3"), 2, "unknown argument of mpe/simple_spread 'n'"),
    ((*TRAIN, "--set", "rum.steps=3"), 2, "unknown prefix 'rum'"),
    ((*TRAIN, "--device", "cuda:7"), 2, "run.device: got 'cuda:7'"),
    ((*TRAIN, "--device", "gpu"), 2, "run.device: got 'gpu', expected e.g. cpu or cuda:0"),
    (("--resume", "/nowhere", "--seed", "1"), 2, "only --steps may be given with it"),
    (("--resume", "/nowhere"), 3, "no config.json"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), WRONG_USE)
def test_wrong_use_is_explained(arguments: tuple[str, ...], code: int, message: str, tmp_path: Path) -> None:
    out = () if "--resume" in arguments else ("--out", str(tmp_path / "run"))
    result = call("train", *arguments, *out)
    assert (result.returncode, message in result.stderr) == (code, True), result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_run_writes_what_it_promises_and_is_never_overwritten(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("hcpo", "--env", "mpe/simple_spread", "--steps", "192", "--out", str(run), *FAST)
    result = call("train", *words, "--json")
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout.splitlines()[-1])
    assert (summary["steps"], summary["updates"]) == (192, 4)
    assert set(summary["final"]) == {"local", "central", "random", "none"}
    assert json.loads((run / "summary.json").read_text())["final"] == summary["final"]
    config = json.loads((run / "config.json").read_text())
    assert config["algorithm_settings"]["instructions"] == 10
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == [1, 2, 3, 4]
    for key in ("agent_kl", "conductor_kl", "instruction_entropy", "local_conductor_agreement", "agent_kl/agent_0"):
        assert all(key in row for row in rows), key
    assert list((run / "tensorboard").iterdir())
    again = call("train", *words)
    assert (again.returncode, "already holds a run" in again.stderr) == (2, True)


def test_a_diverged_update_is_named_rolled_back_and_ends_the_run_when_it_does_not_stop(tmp_path: Path) -> None:
    result = call(
        "train", "happo", "--env", "toy_environments:poisoned", "--steps", "9600", "--out", str(tmp_path / "run"),
        *FAST, "--set", "run.checkpoint_interval=1",
    )  # fmt: skip
    assert result.returncode == 4, result.stderr
    assert "diverged" in result.stderr
    assert "rolled back" in result.stderr
    assert "updates in a row diverged" in result.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0].get("rolled_back") is None
    assert rows[-1]["rolled_back"] == 1.0


def test_export_of_nothing_is_explained(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    result = call("export", str(tmp_path / "run"))
    assert (result.returncode, "no config.json" in result.stderr) == (3, True)
    trained = call("train", *TRAIN, "--steps", "96", "--out", str(tmp_path / "trained"), *FAST)
    assert trained.returncode == 0, trained.stderr
    result = call("export", str(tmp_path / "trained"), "--checkpoint", "77")
    assert (result.returncode, "expected best, last or one of [96]" in result.stderr) == (3, True), result.stderr
    for file in (tmp_path / "trained" / "checkpoints").glob("step-*"):
        file.unlink()
    result = call("train", "--resume", str(tmp_path / "trained"))
    assert (result.returncode, "no usable checkpoint" in result.stderr) == (3, True), result.stderr


def test_settings_and_presets_are_listed() -> None:
    result = call("algorithms", "hcpo", "--json")
    settings = json.loads(result.stdout.splitlines()[-1])
    assert settings["algorithm.instructions"] == 10
    presets = json.loads(call("algorithms", "--presets", "--json").stdout.splitlines()[-1])["presets"]
    assert any(preset["algorithm"] == "hcpo" for preset in presets)
    assert "did you mean 'hcpo'" in call("algorithms", "hcp").stderr
