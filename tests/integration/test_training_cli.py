"""The trainer's command line: wrong use is explained, nothing is lost, results are written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hmarl.sdk.environments import make
from hmarl.sdk.errors import UsageError
from hmarl.sdk.evaluation.closed_loop import evaluate
from hmarl.trainer.algorithms import ALGORITHMS
from hmarl.trainer.export.policy_source import load_team
from training_runs import command_line, tiny_config, train

pytestmark = pytest.mark.usefixtures("single_thread")

TRAIN = ("happo", "--env", "mpe/simple_spread")
FAST = (
    "--set",
    "run.environments=4",
    "--set",
    "run.rollout_length=12",
    "--set",
    "run.evaluation_episodes=4",
    "--set",
    "run.threads=1",
)
GUIDED = {"embedding_size": 8, "epochs": 2}
Call = Callable[..., tuple[int, str, str]]

WRONG_USE = [
    (("hapo", "--env", "mpe/simple_spread"), 2, "unknown algorithm 'hapo'; did you mean 'happo'?"),
    (("happo", "--env", "mpe/simple_sprea"), 2, "did you mean 'simple_spread'?"),
    (("happo", "--env", "mep/simple_spread"), 2, "unknown environment family 'mep'; did you mean 'mpe'?"),
    (("happo", "--env", "mpe"), 2, "got no task, expected 'mpe/TASK'"),
    (("happo", "--env", "no_such_module:make"), 2, "No module named 'no_such_module'"),
    (("happo",), 2, "ALGORITHM: got happo without --env, expected hmarl-train ALGORITHM --env FAMILY/TASK"),
    ((), 2, "ALGORITHM: got nothing, expected hmarl-train ALGORITHM --env FAMILY/TASK"),
    ((*TRAIN, "--steps", "-5"), 2, "--steps: got '-5', expected an integer of at least 1"),
    ((*TRAIN, "--preset", "paper-mp"), 2, "unknown preset 'paper-mp'; did you mean 'paper-mpe'?"),
    (("--resume", "somewhere", "--preset", "paper-mpe"), 2, "--resume: takes everything from the run's config.json"),
    ((*TRAIN, "--steps", "many"), 2, "--steps: got 'many', expected an integer"),
    ((*TRAIN, "--seed", "-1"), 2, "--seed: got '-1', expected an integer of at least 0"),
    ((*TRAIN, "--set", "algorithm.clipp=0.1"), 2, "unknown setting 'algorithm.clipp'; did you mean 'algorithm.clip'?"),
    ((*TRAIN, "--set", "run.step=1"), 2, "unknown setting 'run.step'; did you mean 'run.steps'?"),
    ((*TRAIN, "--set", "algorithm.clip=7"), 2, "algorithm.clip: got 7"),
    ((*TRAIN, "--set", "run.steps=0"), 2, "run.steps: got 0, expected a number of at least 1"),
    ((*TRAIN, "--set", "algorithm.gamma=high"), 2, "algorithm.gamma: got 'high'"),
    ((*TRAIN, "--set", "algorithm.learning_rate=Infinity"), 2, "algorithm.learning_rate: got inf"),
    ((*TRAIN, "--set", "algorithm.hidden_sizes=[8,0]"), 2, "algorithm.hidden_sizes.1: got 0"),
    (
        ("mat", "--env", "mpe/simple_spread", "--set", "algorithm.attention_heads=3"),
        2,
        "algorithm.attention_heads: got 3",
    ),
    (("magpo", "--env", "mpe/simple_spread", "--set", "algorithm.delta=1"), 2, "algorithm.delta: got 1, expected"),
    (("magpo", "--env", "mpe/simple_spread", "--set", "algorithm.guider=vit"), 2, "algorithm.guider: got 'vit'"),
    (("sable", "--env", "mpe/simple_spread", "--set", "algorithm.guider=mat"), 2, "algorithm.guider: got 'mat'"),
    ((*TRAIN, "--set", "algorithm.gamma"), 2, "got 'algorithm.gamma', expected PREFIX.KEY=VALUE"),
    ((*TRAIN, "--set", "env.n=3"), 2, "unknown argument of mpe/simple_spread 'n'"),
    ((*TRAIN, "--set", "rum.steps=3"), 2, "unknown prefix 'rum'"),
    ((*TRAIN, "--device", "cuda:99"), 2, "run.device: got 'cuda:99'"),
    ((*TRAIN, "--device", "gpu"), 2, "run.device: got 'gpu', expected e.g. cpu or cuda:0"),
    (("--resume", "/nowhere", "--seed", "1"), 2, "only --steps and --ray may be given with it"),
    (("--resume", "/nowhere"), 3, "no config.json"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), WRONG_USE)
def test_wrong_use_is_explained(
    call: Call, arguments: tuple[str, ...], code: int, message: str, tmp_path: Path
) -> None:
    out = () if "--resume" in arguments else ("--out", str(tmp_path / "run"))
    got, output, error = call("train", *arguments, *out)
    assert (got, message in error, output) == (code, True, ""), error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists(), "a run that was refused must leave nothing behind"


def test_a_run_writes_what_it_promises_and_is_never_overwritten(call: Call, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("hcpo", "--env", "mpe/simple_spread", "--steps", "190", "--seed", "7", "--out", str(run), *FAST)
    code, output, error = call("train", *words, "--set", "env.N=2", "--json")
    assert code == 0, error
    assert "expected time" in error
    assert f"next: hmarl-export {run}" in error
    summary = json.loads(output.splitlines()[-1])
    assert (summary["steps"], summary["updates"], summary["episodes"], summary["seed"]) == (192, 4, 4, 7)
    assert set(summary["final"]) == {"local", "central", "random", "none"}
    for row in summary["final"].values():
        assert row["episodes"] == 4
        assert row["return_mean"] < 0
    written = json.loads((run / "summary.json").read_text())
    assert written["final"] == summary["final"]
    assert written["best_return"] == pytest.approx(summary["final"]["local"]["return_mean"])
    config = json.loads((run / "config.json").read_text())
    assert config["environment_arguments"] == {"N": 2}
    assert config["algorithm_settings"]["instructions"] == 10, "defaults are saved too"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(row["update"], row["steps"]) for row in rows] == [(1, 48), (2, 96), (3, 144), (4, 192)]
    for key in (
        "agent_kl",
        "agent_kl_max",
        "agent_true_kl",
        "agent_accepted",
        "agent_improvement",
        "conductor_kl",
        "conductor_predicted_improvement",
        "instruction_entropy",
        "instruction_usage/9",
        "local_conductor_agreement",
        "agent_kl/agent_1",
        "critic_loss",
        "explained_variance",
        "steps_per_s",
        "rollout_s",
        "update_s",
    ):
        assert all(key in row for row in rows), key
    assert "return" in rows[-1]
    assert sum(rows[0][f"instruction_usage/{k}"] for k in range(10)) == pytest.approx(1.0)
    assert rows[-1]["evaluation/local/return_mean"] == pytest.approx(summary["final"]["local"]["return_mean"])
    assert list((run / "tensorboard").iterdir())
    before = (run / "metrics.jsonl").read_bytes()
    code, _, error = call("train", *words)
    assert (code, f"--out: {run} already holds a run" in error) == (2, True)
    assert f"--resume {run}" in error
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_broken_reward_is_named_rolled_back_and_ends_the_run_when_it_does_not_stop(
    call: Call, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The toy's rewards are NaN after 20 steps: the second update is the first to see them."""
    run = tmp_path / "run"
    code, _, error = call(
        "train",
        "happo",
        "--env",
        "toy_environments:poisoned",
        "--steps",
        "9600",
        "--out",
        str(run),
        *FAST,
        "--set",
        "run.checkpoint_interval=1",
        "--set",
        "run.max_rollbacks=3",
        "--set",
        "run.checkpoints_kept=9",
    )
    assert code == 4, error
    named = "the environment's reward of agent 'chooser_0' is nan (step 8 of the rollout, environment 0)"
    assert f"update 2 diverged: {named}; rolled back" in caplog.text
    assert "3 updates in a row diverged" in error
    assert str(run / "checkpoints") in error
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("rolled_back") for row in rows] == [None, 1.0, 1.0]
    assert all(row["return"] is not None for row in rows), "one NaN must not hide the returns"
    first, *others = (_parameters(path) for path in sorted(run.glob("checkpoints/step-*.safetensors")))
    assert others
    assert all(other == first for other in others), "what diverged was not undone"


def test_a_resumed_run_remembers_how_many_updates_in_a_row_were_rolled_back(call: Call, tmp_path: Path) -> None:
    """Every rollout is longer than the 20 steps after which the toy's rewards are NaN."""
    run = tmp_path / "run"
    settings = ("run.checkpoint_interval=1", "run.max_rollbacks=3", "run.rollout_length=24")
    words = (*FAST, *(word for setting in settings for word in ("--set", setting)))
    code, _, error = call(
        "train", "happo", "--env", "toy_environments:poisoned", "--steps", "9600", "--out", str(run), *words
    )
    assert (code, "3 updates in a row diverged" in error) == (4, True), error
    rows = (run / "metrics.jsonl").read_text()
    assert len(rows.splitlines()) == 2
    code, _, error = call("train", "--resume", str(run))
    assert (code, "3 updates in a row diverged" in error) == (4, True), error
    assert (run / "metrics.jsonl").read_text() == rows, "it had two more tries"


def _parameters(path: Path) -> dict[str, Any]:
    from hmarl.trainer.records.checkpoint import read_checkpoint  # noqa: PLC0415 - the only test that looks inside

    tensors = read_checkpoint(path).tensors
    return {name: tensor.tolist() for name, tensor in tensors.items() if name.startswith("algorithm.")}


def test_export_and_resume_of_what_is_not_there_are_explained(call: Call, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, error = call("export", str(tmp_path / "empty"))
    assert (code, "no config.json" in error, "is it a run's?" in error) == (3, True, True)
    run = tmp_path / "run"
    train(tiny_config("happo", "mpe/simple_spread"), run)
    code, _, error = call("export", str(run), "--checkpoint", "77")
    assert (code, "got '77', expected best, last or one of [80, 160]" in error) == (3, True), error
    assert "exporting" not in error
    code, _, error = call("export", str(run), "--checkpoint", "newest")
    assert (code, "got 'newest', expected best, last or a number of steps" in error) == (2, True), error
    (run / "checkpoints" / "best.json").unlink()
    code, _, error = call("export", str(run))
    assert (code, "use --checkpoint last" in error) == (3, True), error
    assert not (run / "bundle").exists()
    for file in (run / "checkpoints").glob("step-*"):
        file.unlink()
    code, _, error = call("train", "--resume", str(run))
    assert (code, "no usable checkpoint" in error) == (3, True), error
    (run / "config.json").write_text('{"algorithm": ')
    code, _, error = call("train", "--resume", str(run))
    assert (code, "config.json is damaged" in error) == (3, True), error


@pytest.mark.parametrize("algorithm", ["mat", "sable"])
def test_what_acts_centrally_is_evaluated_but_never_exported(call: Call, tmp_path: Path, algorithm: str) -> None:
    run = tmp_path / "run"
    code, _, error = call("train", *command_line(tiny_config(algorithm, "mpe/simple_spread", GUIDED), run))
    assert code == 0, error
    assert "hmarl-export" not in error
    assert f"next: hmarl-eval --run {run}" in error
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["final"]) == {"guider"}
    assert summary["best_return"] == pytest.approx(summary["final"]["guider"]["return_mean"])
    # Told by the configuration alone: neither checkpoints nor environment are touched.
    shutil.rmtree(run / "checkpoints")
    before = sorted(run.rglob("*"))
    for out in ((), ("--out", str(tmp_path / "bundle.zip"))):
        code, output, error = call("export", str(run), *out, "--json")
        assert (code, output) == (2, "")
        assert f"hmarl-export: {algorithm}: acts for the whole team at once from all agents' observations" in error
        assert "hmarl-export --distil distils a local student for each agent, and magpo (or ctds) with" in error
        assert f"--set algorithm.guider={algorithm} trains one for each" in error
    assert sorted(run.rglob("*")) == before
    assert not (tmp_path / "bundle.zip").exists()


@pytest.mark.parametrize("algorithm", ["mat", "magpo", "ctds"])
def test_the_guider_can_be_played_with(algorithm: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_config(algorithm, "mpe/simple_spread", GUIDED), run)
    names, returns = [], []
    for variant, sample in ((None, False), ("guider", False), ("guider", False), ("guider", True), ("guider", True)):
        make_team, name, arguments = load_team(run, variant=variant, sample=sample)
        environment = make(name, 3, **arguments)
        team = make_team(environment.spec)
        names.append(team.name)
        returns.append(evaluate(environment, team, 5, seed=2).returns.tolist())
        environment.close()
    assert names == ["guider" if algorithm == "mat" else "local", *["guider"] * 4]
    assert returns[1] == returns[2] != returns[3] == returns[4]
    assert (returns[0] == returns[1]) == (algorithm == "mat")
    with pytest.raises(UsageError, match="has no instructions to choose"):
        load_team(run, instruction_choice="sample")
    if algorithm == "mat":
        with pytest.raises(UsageError, match="variant: got 'local', expected one of guider"):
            load_team(run, variant="local")


def test_a_checkpoint_of_other_networks_is_refused_by_name(call: Call, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_config("happo", "mpe/simple_spread"), run)
    config = json.loads((run / "config.json").read_text())
    config["algorithm_settings"]["critic_hidden_sizes"] = [9]
    (run / "config.json").write_text(json.dumps(config))
    for words in (("train", "--resume"), ("export",)):
        code, _, error = call(*words, str(run))
        assert code == 3, error
        assert "'algorithm.critic.network.theta' has shape" in error or "'critic.network.theta' has shape" in error


def test_a_named_preset_is_the_base_that_settings_go_on_top_of(call: Call, tmp_path: Path) -> None:
    words = ("hcpo", "--env", "mpe/simple_spread", "--preset", "paper-mpe", "--steps", "40", *FAST)
    code, _, error = call("train", *words, "--set", "algorithm.instructions=2", "--out", str(tmp_path / "run"))
    assert code == 0, error
    assert "(preset paper-mpe)" in error
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    settings = config["algorithm_settings"]
    assert (settings["instructions"], settings["critic_learning_rate"], settings["kl_limit"]) == (2, 5e-4, 0.005)
    assert (config["run"]["steps"], config["run"]["environments"]) == (40, 4)


def test_settings_and_presets_are_listed(call: Call) -> None:
    _, output, _ = call("algorithms", "--json")
    listed = json.loads(output.splitlines()[-1])
    assert listed["algorithms"] == list(ALGORITHMS)
    central = [name for name, algorithm in ALGORITHMS.items() if not algorithm.exportable]
    assert {"himpo", "mat", "sable"} <= set(central)
    assert listed["central"] == central
    acts = {line.split()[1]: "centrally" in line for line in output.splitlines() if line.startswith("│")}
    assert [name for name, centrally in acts.items() if centrally] == central
    _, output, _ = call("algorithms", "hcpo", "--json")
    settings = json.loads(output.splitlines()[-1])
    assert settings["algorithm.instructions"] == 10
    assert "algorithm.instruction_interval" in output
    _, output, _ = call("algorithms", "--presets", "--json")
    presets = json.loads(output.splitlines()[-1])["presets"]
    assert any(preset["algorithm"] == "hcpo" for preset in presets)
    assert {"paper-smac", "paper-mamujoco", "paper-mpe"} <= {preset["name"] for preset in presets}
    code, _, error = call("algorithms", "hcp")
    assert (code, "unknown algorithm 'hcp'; did you mean 'hcpo'?" in error) == (2, True)


def test_the_real_program_leaves_with_the_same_codes() -> None:
    """Once in a process of its own, as the shell sees it."""
    program = "from hmarl.trainer.commands.train import train_main; train_main()"
    words = [sys.executable, "-c", program, *TRAIN, "--set", "algorithm.clipp=0.1"]
    result = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(
        "hmarl-train: unknown setting 'algorithm.clipp'; did you mean 'algorithm.clip'?"
    )
    assert result.stdout == ""
