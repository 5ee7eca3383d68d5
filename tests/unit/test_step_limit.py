"""Endless episodes: what is declared is held to, what is guessed only describes, and nothing goes on for ever."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from counting_environment import HORIZON, CountingEnvironment, StepTeam
from hmarl.runtime.command_line import run as run_program
from hmarl.sdk.commands.evaluate import evaluate_command
from hmarl.sdk.environments import make
from hmarl.sdk.environments.conformance import check_environment
from hmarl.sdk.errors import EnvironmentFault, UsageError
from hmarl.sdk.evaluation.closed_loop import STEP_LIMIT, evaluate, limit_of, unfinished_remark
from hmarl.sdk.reports.video import record_episode
from hmarl.sdk.team import RandomTeam
from training_runs import tiny_config, train


def counting(batch: int, horizon: int | None, guessed: bool) -> CountingEnvironment:
    """Episodes of up to 8 steps, whatever the horizon."""
    environment = CountingEnvironment(batch, honest=False)
    environment.spec = replace(environment.spec, horizon=horizon, horizon_guessed=guessed)
    return environment


def test_a_guessed_horizon_is_not_enforced() -> None:
    evaluation = evaluate(counting(7, HORIZON, guessed=True), StepTeam(), 7, 5)
    assert evaluation.lengths.max() > HORIZON
    assert (evaluation.unfinished, evaluation.step_limit) == (0, STEP_LIMIT)
    with pytest.raises(EnvironmentFault, match=r"goes on after its horizon of 6 steps; .*env\.horizon"):
        evaluate(counting(7, HORIZON, guessed=False), StepTeam(), 7, 5, step_limit=1000)


@pytest.mark.parametrize("batch", [3, 7])
def test_episodes_are_cut_off_at_the_limit_and_counted(batch: int) -> None:
    whole = evaluate(counting(batch, None, guessed=False), StepTeam(), 7, 5)
    done: list[int] = []
    cut = evaluate(
        counting(batch, None, guessed=False), StepTeam(), 7, 5, step_limit=4, progress=lambda n, _: done.append(n)
    )
    longer = whole.lengths > 4
    assert 0 < longer.sum() < 7
    np.testing.assert_array_equal(cut.lengths, np.minimum(whole.lengths, 4))
    np.testing.assert_array_equal(cut.returns[~longer], whole.returns[~longer])
    assert cut.successes is not None
    np.testing.assert_array_equal(cut.successes, ~longer)
    assert cut.summary()["unfinished"] == cut.unfinished == longer.sum()
    assert done[-1] == 7
    assert unfinished_remark(whole, "--step-limit") is None
    said = unfinished_remark(cut, "--step-limit")
    assert said is not None
    assert said.startswith(f"{longer.sum()} of 7 episodes still ran after 4 steps")


def test_the_limit_is_what_was_given_else_the_declared_horizon_else_a_fixed_number() -> None:
    spec = counting(1, 6, guessed=False).spec
    assert limit_of(spec, 3) == 3
    assert limit_of(spec, None) == 6
    assert limit_of(replace(spec, horizon_guessed=True), None) == STEP_LIMIT
    assert limit_of(replace(spec, horizon=None), None) == STEP_LIMIT
    with pytest.raises(UsageError, match="step_limit: got 0, expected at least 1"):
        limit_of(spec, 0)


def test_a_film_of_an_endless_episode_ends_too() -> None:
    recording = record_episode(counting(1, None, guessed=False), StepTeam(), seed=7, step_limit=3)
    assert len(recording.rewards) == len(recording.frames) == 3


OFF_BY_ONE: dict[str, Any] = {"length": 4, "cut_late": True, "workers": 0}


def test_an_attribute_that_looks_like_a_horizon_is_a_guess_and_what_is_given_is_declared() -> None:
    pytest.importorskip("pettingzoo")
    name = "pettingzoo/parallel_toys:make_trio"
    guess = make(name, 2, **OFF_BY_ONE)
    assert (guess.spec.horizon, guess.spec.declared_horizon) == (4, None)
    assert evaluate(guess, RandomTeam(guess.spec), 2, 0).lengths.tolist() == [5, 5]
    declared = make(name, 2, **OFF_BY_ONE, horizon=4)
    assert declared.spec.declared_horizon == 4
    with pytest.raises(EnvironmentFault, match="goes on after its horizon of 4 steps"):
        evaluate(declared, RandomTeam(declared.spec), 2, 0)
    unknown = make(name, 2, **OFF_BY_ONE, horizon=None)
    assert (unknown.spec.horizon, unknown.spec.horizon_guessed) == (None, False)
    horizon = {each.name: each for each in check_environment(lambda b: make(name, b, **OFF_BY_ONE))}["horizon"]
    assert horizon.passed
    assert "4 steps is a guess" in horizon.detail
    for environment in (guess, declared, unknown):
        environment.close()


def test_the_command_takes_a_limit_and_says_when_it_bites(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], single_thread: None
) -> None:
    run = tmp_path / "run"
    arguments = {"evaluation": "endless"}
    train(tiny_config("happo", "troubled_environment:make", {}, {"evaluation_step_limit": 10}, arguments), run)
    capsys.readouterr()
    words = ["--run", str(run), "--episodes", "2", "--step-limit", "12", "--json"]
    assert run_program(evaluate_command, words) == 0
    output = capsys.readouterr()
    assert "2 of 2 episodes still ran after 12 steps" in " ".join((output.out + output.err).split())
    assert json.loads(output.out.splitlines()[-1])["unfinished"] == 2
