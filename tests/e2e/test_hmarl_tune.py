"""A search as users type it: real runs, its preset, and the seed that a report may not use."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Call = Callable[..., tuple[int, str, str]]
TASK = ("mappo", "--env", "coordsum/sum-to-10")
SMALL = ("run.environments=4", "run.rollout_length=10", "run.evaluation_episodes=2", "algorithm.hidden_sizes=[8]")
SETTINGS = [word for setting in SMALL for word in ("--set", setting)]
GAMMA = ("--search", "algorithm.gamma=0.1..0.9")


@pytest.mark.timeout(900)
def test_a_search_ends_in_a_preset_that_trains_with_other_seeds_only(call: Call, tmp_path: Path) -> None:
    folder, run = tmp_path / "search", str(tmp_path / "run")
    space = tmp_path / "space.toml"
    space.write_text("[algorithm]\nepochs = [1, 2]\n")
    words = [*TASK, *GAMMA, "--space", str(space), *SETTINGS, "--steps", "80", "--out", str(folder)]
    code, output, error = call("tune", *words, "--trials", "2", "--jobs", "2", "--evaluations", "2", "--json")
    assert code == 0, error
    told = json.loads(output.splitlines()[-1])
    assert told["counts"] == {"done": 2}
    assert told["best"][0]["settings"].keys() == {"algorithm.epochs", "algorithm.gamma"}
    assert "--preset" in told["command"]
    assert (folder / "confirm.toml").exists()
    code, _, error = call("tune", *words, "--trials", "2", "--evaluations", "1")
    assert (code, "holds another search" in error) == (2, True), error
    preset = ["--preset", told["preset"], "--out", run]
    code, _, error = call("train", *TASK, *preset, "--seed", "1000000000")
    assert (code, "by which" in error) == (2, True), error
    code, _, error = call("train", *TASK, *preset, "--seed", "1")
    assert code == 0, error
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["algorithm_settings"]["gamma"] == told["best"][0]["settings"]["algorithm.gamma"]
    assert (config["run"]["steps"], config["run"]["environments"]) == (80, 4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--search: got nothing, expected a setting and its values, or --space FILE"),
        (("--search", "algorithm.gamma"), "--search: got 'algorithm.gamma', expected KEY=VALUES"),
        (("--search", "gamma=0.1..0.9"), "--search: got 'gamma', expected a setting algorithm"),
        (("--search", "algorithm.gama=0.1..0.9"), "unknown setting 'algorithm.gama'"),
        (("--search", "algorithm.gamma=0.1..9"), "algorithm.gamma: got 9"),
        (("--search", "run.seed=1..9"), "got run.seed or run.steps, which make no trial better"),
        ((*GAMMA, "--set", "algorithm.gamma=0.5"), "--set: got algorithm.gamma, which is searched"),
        (("--space", "nowhere.toml"), "--space nowhere.toml: cannot be read"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_nothing(
    words: tuple[str, ...], message: str, call: Call, tmp_path: Path
) -> None:
    code, _, error = call("tune", *TASK, *words, "--out", str(tmp_path / "none"))
    assert code == 2
    assert message in error
    assert not (tmp_path / "none").exists()


def test_without_optuna_the_extra_is_named(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, error = call("tune", *TASK, *GAMMA, "--out", str(tmp_path / "none"))
    assert (code, "pip install 'hmarl[tune]'" in error) == (2, True), error
