"""What fails beside training (evaluation, plots, TensorBoard) loses none of it, ends none of it, and is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hmarl.trainer.runs.run import Run
from training_runs import command_line, final_hash, tiny_config, train

pytestmark = pytest.mark.usefixtures("single_thread")

TROUBLED = "troubled_environment:make"
Call = Callable[..., tuple[int, str, str]]


def figures(run: Path) -> list[dict[str, Any]]:
    """What was recorded, but for wall times and evaluations."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.endswith("_s") and "evaluation" not in k} for row in rows]


def test_a_failing_evaluation_loses_no_training_and_is_told(
    call: Call, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = {"evaluation_interval": 80}
    code, output, error = call(
        "train", *command_line(tiny_config("happo", TROUBLED, {}, settings, {"evaluation": "KeyError"}), run), "--json"
    )
    assert code == 4, error
    assert "evaluation at 80 steps failed: KeyError: 'fuel'; training goes on" in caplog.text
    assert f"by hand: hmarl-eval --run {run} --checkpoint 80" in caplog.text
    assert f"hmarl-train: trained and saved in {run}, but evaluation at 160 steps failed: KeyError: 'fuel'" in error
    assert "failed 2 times" in error
    summary = json.loads(output.splitlines()[-1])
    assert (summary["steps"], summary["final"], len(summary["problems"])) == (160, {}, 1)
    train(tiny_config("happo", TROUBLED, {}, settings), tmp_path / "well")
    assert final_hash(run) == final_hash(tmp_path / "well")
    assert figures(run) == figures(tmp_path / "well")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("evaluation_failed") for row in rows] == [None, 1.0, None, 1.0]


def test_an_endless_evaluation_ends_at_its_limit_and_says_so(
    call: Call, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = tiny_config("happo", TROUBLED, {}, {"evaluation_step_limit": 30}, {"evaluation": "endless"})
    code, _, error = call("train", *command_line(config, run))
    assert code == 0, error
    told = "2 of 2 episodes still ran after 30 steps, were cut off and count as far as they went"
    assert f"evaluation at 160 steps, local: {told}; run.evaluation_step_limit sets the limit" in caplog.text
    (row,) = json.loads((run / "summary.json").read_text())["final"].values()
    assert (row["unfinished"], row["length_mean"]) == (2, 30.0)


def test_what_fails_of_the_teams_compared_with_costs_the_judged_one_nothing(
    call: Call, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The other way to choose actions is played after all teams were judged."""
    run = tmp_path / "run"
    config = tiny_config("happo", TROUBLED, {}, {"evaluation_interval": 80}, {"evaluation": "KeyError later"})
    code, output, error = call("train", *command_line(config, run), "--json")
    assert code == 4, error
    told = "evaluation at 160 steps, local, sampled actions failed: KeyError: 'fuel'"
    assert f"hmarl-train: trained and saved in {run}, but {told}" in error
    assert f"{told}; training goes on" in caplog.text
    summary = json.loads(output.splitlines()[-1])
    train(tiny_config("happo", TROUBLED, {}, {"evaluation_interval": 80, "evaluation_modes": "judged"}), tmp_path / "w")
    well = json.loads((tmp_path / "w" / "summary.json").read_text())
    for got, expected in ((summary["final"], well["final"]), (summary["best"]["teams"], well["best"]["teams"])):
        assert set(got) == {"local"}
        assert got["local"]["return_mean"] == expected["local"]["return_mean"]
        assert "sampled" not in got["local"]
    assert final_hash(run) == final_hash(tmp_path / "w")


def test_a_team_that_is_only_compared_with_may_fail(
    call: Call, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    run, settings = tmp_path / "run", {"evaluation_modes": "judged", "steps": 40}
    config = tiny_config("hcpo", TROUBLED, {"conductor_hidden_sizes": (8,)}, settings, {"evaluation": "KeyError later"})
    code, output, error = call("train", *command_line(config, run), "--json")
    assert code == 4, error
    assert "evaluation at 40 steps, central failed: KeyError: 'fuel'" in caplog.text
    final = json.loads(output.splitlines()[-1])["final"]
    assert "central" not in final
    assert {"local", "random"} <= set(final)  # environments are made anew after the failure
    (row,) = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    assert row["evaluation/local/return_mean"] == pytest.approx(final["local"]["return_mean"])


def test_an_endless_episode_of_the_other_way_is_told_too(
    call: Call, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    config = tiny_config("happo", TROUBLED, {}, {"evaluation_step_limit": 30}, {"evaluation": "endless later"})
    code, _, error = call("train", *command_line(config, tmp_path / "run"))
    assert code == 0, error
    told = "evaluation at 160 steps, local, sampled actions: 2 of 2 episodes still ran after 30 steps, were cut off"
    assert told in caplog.text


@pytest.mark.parametrize(
    ("trouble", "named"),
    [
        ("nan", "the environment's observation of agent 'chooser_1' is nan at index 2 (step 4 of the episode of seed "),
        ("nan reward", "the environment's reward of agent 'chooser_1' is inf (step 4 of the episode of seed "),
    ],
)
def test_what_is_broken_in_an_evaluation_is_named(
    call: Call, caplog: pytest.LogCaptureFixture, trouble: str, named: str, tmp_path: Path
) -> None:
    config = tiny_config("happo", TROUBLED, {}, {}, {"evaluation": trouble})
    code, _, error = call("train", *command_line(config, tmp_path / "run"))
    assert code == 4, error
    assert f"evaluation at 160 steps failed: EnvironmentFault: toy/troubled: {named}" in caplog.text


def test_what_is_broken_when_an_export_records_is_named(call: Call, tmp_path: Path) -> None:
    config = tiny_config("happo", TROUBLED, {}, {"steps": 40}, {"nan_at": 14})
    run = tmp_path / "run"
    Run.create(config, run).close()
    trained = Run.resume(run)
    trained._parts.saver.save(trained.counters, None)
    trained.close()
    code, _, error = call("export", str(run), "--checkpoint", "last")
    assert code == 4
    assert (
        "the environment's observation of agent 'chooser_1' is nan at index 2 (step 14 of a random play, environment 1)"
        in error
    )


@pytest.mark.parametrize(("name", "told"), [("plots", "plots: not drawn"), ("tensorboard", "TensorBoard: ")])
def test_what_cannot_be_written_beside_training_is_told(call: Call, name: str, told: str, tmp_path: Path) -> None:
    config, run = tiny_config("happo", TROUBLED), tmp_path / "run"
    run.mkdir()
    (run / name).write_text("in the way")
    code, _, error = call("train", *command_line(config, run))
    assert code == 4, error
    assert f"hmarl-train: trained and saved in {run}, but {told}" in error
    assert "Traceback" not in error
    train(config, tmp_path / "well")
    assert final_hash(run) == final_hash(tmp_path / "well")
    assert json.loads((run / "summary.json").read_text())["final"]
    (run / name).unlink()
    again = Run.resume(run)
    assert again.train()["problems"] == []
    again.close()
    assert list((run / name).iterdir())


def test_a_broken_observation_is_named_and_learnt_from_by_none(
    call: Call, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    # What is seen after step 14, that is at step 4 of the second rollout.
    code, _, error = call("train", *command_line(tiny_config("happo", TROUBLED, {}, {}, {"nan_at": 14}), run))
    assert code == 0, error
    named = (
        "the environment's observation of agent 'chooser_1' is nan at index 2 (step 4 of the rollout, environment 1)"
    )
    assert f"update 2 diverged: {named}; rolled back" in caplog.text
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("rolled_back") for row in rows] == [None, 1.0, None, None]


def test_a_run_that_fails_before_its_first_checkpoint_claims_none(call: Call, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = {"checkpoint_interval": 100, "max_rollbacks": 1}
    code, _, error = call("train", *command_line(tiny_config("happo", TROUBLED, {}, settings, {"nan_at": 14}), run))
    assert code == 4, error
    assert "1 updates in a row diverged" in error
    assert "look for it in the environment" in error
    assert "the last good checkpoint" not in error
    assert f"no checkpoint was written yet; begin again with: hmarl-train --resume {run}" in error
