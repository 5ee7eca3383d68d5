"""A run that is killed and resumed is the run that was not killed, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hmarl.sdk.errors import UsageError
from hmarl.trainer.runs.config import RunConfig
from hmarl.trainer.runs.run import Run
from training_runs import command_line, final_hash, tiny_config, train

pytestmark = pytest.mark.usefixtures("single_thread", "without_pictures")

UPDATES = 40
# Rollouts that end in the middle of episodes and of instructions, checkpoints in the middle of an evaluation interval.
RUN: dict[str, Any] = {
    "steps": UPDATES * 4 * 9,
    "rollout_length": 9,
    "checkpoint_interval": 2,
    "evaluation_interval": 900,
    "loggers": (),  # importing TensorBoard takes longer than training
}
HELD: dict[str, Any] = {"instruction_interval": 3, "instructions": 3, "conductor_hidden_sizes": (8,)}
GUIDED: dict[str, Any] = {"embedding_size": 8, "epochs": 2, "minibatches": 2}
IN_CHUNKS: dict[str, Any] = {**GUIDED, "recurrent": True, "chunk_length": 3}
HIERARCHY: dict[str, Any] = {**GUIDED, "goal_size": 3, "goal_interval": 3}
INTERCHANGEABLE: dict[str, Any] = {"share_parameters": True, "agent_identity": False, "recurrent": True}
# Special settings and spaces; plain runs of every algorithm in every family are resumed by test_families.py.
LOCAL: dict[str, Any] = {
    "local_share": 0.7,
    "local_share_end": 0.2,
    "instruction_interval": 2,
    "local_conductors_remember": True,
    "share_local_conductors": True,
    "distillation_patience": 1,
    "distillation_epochs": 5,
}
# After two checkpoints two of four environments are conducted locally, three at first.
LESS_LOCAL: dict[str, Any] = {"local_share": 0.65, "local_share_end": 0.0, "conductor_hidden_sizes": (8,)}
TASKS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "hcpo-mpe": ("hcpo", "mpe/simple_spread", {**HELD, "critic": "q"}, {}),
    "hatrpo-mpe": ("hatrpo", "mpe/simple_spread", {}, {"continuous_actions": True}),
    "happo-mpe": ("happo", "mpe/simple_reference", {"minibatches": 2, "learning_rate_decay": "linear"}, {}),
    "hatrpo-coordsum": ("hatrpo", "coordsum/3x10-30", {"share_parameters": True}, {}),
    "hcpo-recurrent": ("hcpo", "mpe/simple_spread", {"recurrent": True, "chunk_length": 3}, {}),
    "hcpo-latent": ("hcpo", "mpe/simple_spread", {"instruction_space": "continuous", "instruction_interval": 2}, {}),
    "hcpo-common": ("hcpo", "mpe/simple_spread", {"conductor_sees": "common", "common_search": 3}, {}),
    "hcpo-local": ("hcpo", "mpe/simple_spread", LOCAL, {}),
    "hcpo-replay": ("hcpo", "mpe/simple_spread", {"replay_rollouts": 2}, {}),
    "hamdpo-mpe": ("hamdpo", "mpe/simple_spread", {"recurrent": True}, {"continuous_actions": True}),
    "ippo-mpe": ("ippo", "mpe/simple_speaker_listener", {"recurrent": True}, {}),
    "maven-mpe": ("maven", "mpe/simple_spread", {"recurrent": True, "chunk_length": 3, "replay_capacity": 40}, {}),
    "maven-coordsum": ("maven", "coordsum/3x10-30", {"learning_rate_decay": "linear"}, {}),
    "hasac-mpe": ("hasac", "mpe/simple_spread", {"replay_capacity": 200}, {"continuous_actions": True}),
    "qmix-mpe": ("qmix", "mpe/simple_spread", {"recurrent": True, "chunk_length": 3, "replay_capacity": 40}, {}),
    "vdn-coordsum": ("vdn", "coordsum/3x10-30", {"learning_rate_decay": "linear"}, {}),
    "hcpo-interchangeable": ("hcpo", "mpe/simple_spread", INTERCHANGEABLE, {}),
    "mat-leaving": ("mat", "toy_environments:leaving", GUIDED, {}),
    "mat-state": ("mat", "mpe/simple_spread", {**GUIDED, "guider_sees_state": True}, {"continuous_actions": True}),
    "magpo-mpe": ("magpo", "mpe/simple_spread", {**IN_CHUNKS, "delta": "auto", "imitation_gap": 1e-4}, {}),
    "magpo-shared": ("magpo", "mpe/simple_reference", {**IN_CHUNKS, "share_parameters": True}, {}),
    "magpo-sable": ("magpo", "mpe/simple_spread", {**IN_CHUNKS, "guider": "sable"}, {}),
    "magpo-factorised": ("magpo", "mpe/simple_spread", {**IN_CHUNKS, "guider": "factorised"}, {}),
    "sable-mpe": ("sable", "mpe/simple_reference", {**GUIDED, "chunk_length": 3}, {}),
    "magpo-leaving": ("magpo", "toy_environments:leaving", {**GUIDED, "learning_rate_decay": "linear"}, {}),
    "ctds-mpe": ("ctds", "mpe/simple_spread", IN_CHUNKS, {}),
    "himpo-mpe": ("himpo", "mpe/simple_spread", {**HIERARCHY, "static_graph": True}, {}),
    "himpo-leaving": ("himpo", "toy_environments:leaving", {**HIERARCHY, "goal_space": "discrete"}, {}),
    "happo-leaving": ("happo", "toy_environments:leaving", {}, {}),
    # Their state cannot be saved: the environments restart at every checkpoint, in the unbroken run too.
    "hcpo-pettingzoo": ("hcpo", "pettingzoo/mpe2.simple_spread_v3:parallel_env", HELD, {"workers": 0}),
    "magpo-restarting": ("magpo", "toy_environments:masked_discrete", IN_CHUNKS, {"saves": False}),
    "hcpo-restarting": ("hcpo", "toy_environments:masked_discrete", LESS_LOCAL, {"saves": False}),
    "himpo-restarting": ("himpo", "toy_environments:masked_discrete", HIERARCHY, {"saves": False}),
    "maven-restarting": ("maven", "toy_environments:masked_discrete", {"replay_capacity": 40}, {"saves": False}),
}
# One of every kind of state that is saved; `make test-slow` runs them all.
QUICK = {"hcpo-mpe", "hamdpo-mpe", "maven-mpe", "magpo-mpe", "himpo-mpe", "happo-leaving", "hcpo-restarting"}


def start(*arguments: str) -> subprocess.Popen[str]:
    """The real program in a process of its own; the toy environments can be imported there."""
    command = [sys.executable, "-m", "hmarl.trainer.commands.train", *arguments]
    # What this process imports from comes first: the child must not run an installed copy of what is tested.
    path = [str(Path(__file__).parents[1]), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def wait_for_checkpoints(process: subprocess.Popen[str], run: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(list(run.glob("checkpoints/step-*.json"))) < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def kill_in_mid_training(config: RunConfig, run: Path) -> None:
    process = start(*command_line(config, run))
    wait_for_checkpoints(process, run, 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (run / "summary.json").exists(), "the run ended before it was killed"


def resume(run: Path) -> dict[str, Any]:
    resumed = Run.resume(run)
    assert 0 < resumed.counters.update < UPDATES
    try:
        return resumed.train()
    finally:
        resumed.close()


def metrics(run: Path) -> list[dict[str, Any]]:
    """What was recorded, but for wall times."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.endswith("_s")} for row in rows]


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=() if task in QUICK else pytest.mark.slow) for task in TASKS]
)
def test_killed_and_resumed_equals_unbroken(task: str, tmp_path: Path) -> None:
    algorithm, environment, settings, arguments = TASKS[task]
    config = tiny_config(algorithm, environment, settings, RUN, arguments)
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    kill_in_mid_training(config, killed)
    expected = train(config, unbroken)
    summary = resume(killed)
    assert final_hash(killed) == final_hash(unbroken)
    assert RunConfig.read(killed) == RunConfig.read(unbroken)
    for key in ("steps", "updates", "episodes", "best_return"):
        assert summary[key] == expected[key]
    for row in (*summary["final"].values(), *expected["final"].values()):
        del row["latency_p50_us"], row["latency_p99_us"]
    assert summary["final"] == expected["final"]
    rows = metrics(killed)
    assert [row["update"] for row in rows] == list(range(1, UPDATES + 1)), "every update is recorded once"
    assert rows == metrics(unbroken)
    restarted = [row["update"] for row in rows if "environments_truncated" in row]
    assert bool(restarted) == (environment.startswith("pettingzoo") or not arguments.get("saves", True))


def test_the_program_resumes_from_the_checkpoint_before_a_damaged_one(tmp_path: Path) -> None:
    config = tiny_config("happo", "mpe/simple_spread")
    run = tmp_path / "run"
    train(config, run)
    good = final_hash(run)
    newest = max(run.glob("checkpoints/step-*.safetensors"))
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(bytes(content))
    process = start("--resume", str(run), "--json")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert f"{newest.name}: the file is damaged" in output.replace("\n", " ")
    assert f"resuming {run} at 80 of 160 steps" in output
    summary = json.loads(output.splitlines()[-1])
    assert (summary["updates"], summary["steps"], summary["resumed_at"]) == (4, 160, 80)
    assert "160 steps, the last 80 in " in output
    assert final_hash(run) == good


def test_ctrl_c_saves_and_says_how_to_resume(tmp_path: Path) -> None:
    run = tmp_path / "run"
    endless = tiny_config("happo", "mpe/simple_spread", {}, {"steps": 10**8})
    process = start(*command_line(endless, run))
    wait_for_checkpoints(process, run, 1)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    saved = max(run.glob("checkpoints/step-*.json"))
    assert f"stopped; saved {saved.stem}. Continue with: hmarl-train --resume {run}" in output
    assert "Traceback" not in output
    recorded = metrics(run)[-1]["update"]
    assert json.loads(saved.read_text())["update"] == recorded, "the last update was not saved"


def test_a_run_can_be_prolonged_and_a_passed_goal_is_summarised_at_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_config("happo", "mpe/simple_spread", {}, {"evaluation_interval": 10**6}), run)
    before = (run / "config.json").read_bytes()
    assert RunConfig.read(run).run_settings().steps == 160
    told = rf"--steps: got 159, expected at least 160, the steps that {run} has done; leave --steps out, or give 160"
    with pytest.raises(UsageError, match=told):
        Run.resume(run, steps=159)
    assert (run / "config.json").read_bytes() == before
    longer = Run.resume(run, steps=240)
    assert longer.train()["steps"] == 240
    longer.close()
    assert RunConfig.read(run).run_settings().steps == 240, "the next --resume would stop short of the new goal"
    for file in (run / "eval").iterdir():
        file.unlink()
    passed = Run.resume(run, steps=240)
    summary = passed.train()
    assert summary["steps"] == 240
    passed.close()
    assert summary["final"]["local"]["episodes"] == 2


def test_the_goal_that_the_last_update_went_beyond_can_be_named_again(tmp_path: Path) -> None:
    """As a suite does with a run that was killed before its summary was written; the goal is what it was."""
    run = tmp_path / "run"
    train(tiny_config("happo", "mpe/simple_spread", {}, {"steps": 130}), run)
    again = Run.resume(run, steps=130)
    assert again.train()["steps"] == 160
    again.close()
