"""What a suite's file comes to: every algorithm on every task with every seed, checked as hmarl-train would."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from hmarl.sdk.commands._common import parse_settings
from hmarl.sdk.errors import UsageError
from suite_definitions import defined, refusal

SMALL = 'tasks = ["coordsum/sum-to-10"]\nalgorithms = ["mappo"]\nseeds = 1\nsteps = 100\n'


def settings_of(words: tuple[str, ...]) -> dict[str, object]:
    """What ``--set`` says, by name."""
    pairs = [word for before, word in itertools.pairwise(words) if before == "--set"]
    return {
        f"{group}.{key}": value
        for group, values in parse_settings(pairs, ("algorithm", "env", "run")).items()
        for key, value in values.items()
    }


def test_algorithms_tasks_and_seeds_multiply_seed_by_seed(tmp_path: Path) -> None:
    suite = defined(
        tmp_path,
        'tasks = ["coordsum/sum-to-10", { env = "coordsum/3x10-30", settings = { env.record = "own" }, steps = 500 }]\n'
        'algorithms = ["mappo", "happo"]\nseeds = 2\nsteps = 100\nevaluations = 5\n',
    )
    found = [(run.seed, run.task, run.label, run.steps) for run in suite.runs]
    own = "coordsum/3x10-30 record=own"
    assert found == [
        (seed, task, label, steps)
        for seed in (100, 101)
        for task, steps in (("coordsum/sum-to-10", 100), (own, 500))
        for label in ("mappo", "happo")
    ]
    assert (suite.name, len({run.name for run in suite.runs})) == ("mine", 8)
    last = suite.runs[-1]
    assert last.words[:7] == ("happo", "--env", "coordsum/3x10-30", "--steps", "500", "--seed", "101")
    assert settings_of(last.words) == {"run.threads": 1, "run.evaluation_interval": 100, "env.record": "own"}


def test_variants_have_settings_of_their_own_and_a_grid_multiplies_them(tmp_path: Path) -> None:
    suite = defined(
        tmp_path,
        SMALL
        + "[settings]\nalgorithm.gamma = 0.5\nrun.threads = 2\n"
        + '[[variants]]\nalgorithm = "happo"\nlabel = "short"\nseeds = [7]\nsettings.algorithm.gamma = 0.1\n'
        + '[grid]\n"algorithm.clip" = [0.1, 0.2]\n',
    )
    found = {run.label: (run.seed, settings_of(run.words)) for run in suite.runs}
    usual = {"run.threads": 2, "run.evaluation_interval": 5}
    assert found == {
        **{f"mappo clip={c}": (100, {**usual, "algorithm.gamma": 0.5, "algorithm.clip": c}) for c in (0.1, 0.2)},
        **{f"short clip={c}": (7, {**usual, "algorithm.gamma": 0.1, "algorithm.clip": c}) for c in (0.1, 0.2)},
    }


def test_another_setting_is_another_run_and_the_order_is_none(tmp_path: Path) -> None:
    one = defined(tmp_path, SMALL + "[settings]\nalgorithm.gamma = 0.5\nalgorithm.clip = 0.1\n").runs[0].name
    same = defined(tmp_path, SMALL + "[settings.algorithm]\nclip = 0.1\ngamma = 0.5\n").runs[0].name
    other = defined(tmp_path, SMALL + "[settings]\nalgorithm.gamma = 0.5\nalgorithm.clip = 0.2\n").runs[0].name
    longer = defined(tmp_path, SMALL.replace("100", "200")).runs[0].name
    assert one == same
    assert len({one, other, longer}) == 3


def test_a_variant_can_be_for_some_tasks_only(tmp_path: Path) -> None:
    suite = defined(
        tmp_path,
        'tasks = ["coordsum/sum-to-10", "mpe/simple_spread"]\nseeds = 1\nsteps = 100\n'
        '[[variants]]\nalgorithm = "mappo"\ntasks = ["mpe/*"]\n',
    )
    assert [run.task for run in suite.runs] == ["mpe/simple_spread"]


def test_a_preset_file_lies_beside_the_suite_and_its_seeds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "found.toml").write_text(
        'algorithm = "mappo"\nenvironment = "coordsum/sum-to-10"\nsteps = 300\nsearch_seeds = [7]\n'
        "[settings.algorithm]\ngamma = 0.2\n"
    )
    text = (
        'tasks = ["coordsum/sum-to-10"]\nseeds = [{seed}]\n[[variants]]\nalgorithm = "mappo"\npreset = "found.toml"\n'
    )
    run = defined(tmp_path, text.replace("{seed}", "8")).runs[0]
    assert run.steps == 300
    assert run.words[run.words.index("--preset") + 1] == str(tmp_path / "found.toml")
    with pytest.raises(UsageError, match=r"--seed: got 7, by which .*found\.toml was searched for"):
        defined(tmp_path, text.replace("{seed}", "7"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SMALL + "colour = 1\n", r"colour: got 1, expected no such key"),
        (SMALL.replace("mappo", "mapo"), "unknown algorithm 'mapo'.*did you mean 'mappo'.*in .*mine.toml"),
        (SMALL.replace("sum-to-10", "sum"), "coordsum.*sum"),
        (SMALL + "[settings]\nalgorithm.clop = 1\n", "algorithm.clop.*did you mean"),
        (SMALL + "[settings]\nalgorithm.clip = -1\n", "algorithm.clip: got -1"),
        (SMALL + "[settings]\nclip = 1\n", r"settings: got 'clip', expected a setting algorithm"),
        (SMALL + '[grid]\nalgorithm.clip = 0.1\n', "grid.algorithm.clip: got 0.1, expected a list"),
        (SMALL + '[grid]\nenv.target = [1]\n', "grid: got 'env.target', which makes another task"),
        (SMALL.replace('["mappo"]', '["mappo", "mappo"]'), "variants: got 'mappo' twice"),
        (SMALL + '[[variants]]\nalgorithm = "happo"\nlabel = "a, b"\n', "expected one without a comma"),
        (SMALL.replace('algorithms = ["mappo"]\n', ""), "algorithms: got none"),
        (
            'tasks = [{ env = "mpe/simple_speaker_listener", measure = "success_rate" }]\nalgorithms = ["mappo"]\n',
            "tasks: mpe/simple_speaker_listener: measure: got success_rate, expected return",
        ),
        ("tasks = [\n", "expected a TOML file"),
        (SMALL + "[budget]\nminutes = 'ten'\n", r"mine.toml: budget.minutes: got 'ten', expected a number$"),
        (SMALL + "seeds_at_once = 0\n", "seeds_at_once: got 0, expected true or false or a number of at least 1$"),
        (SMALL + '[[variants]]\nalgorithms = "happo"\n', r"variants.0.algorithm: got nothing, expected a value$"),
        ("tasks = []\n", r"tasks: got \[\], expected a list of at least 1$"),
        ("tasks = [{enw = 'x'}]\n", r"tasks.0.env: got nothing, expected a value$"),
        ("tasks = [{env = 'x', range = 1}]\n", r"tasks.0.range: got 1, expected a list$"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    told = refusal(tmp_path, text)
    assert re.search(message, told), told


def test_a_long_label_makes_no_name_that_is_too_long(tmp_path: Path) -> None:
    run = defined(tmp_path, SMALL + f'[[variants]]\nalgorithm = "happo"\nlabel = "{"long " * 60}"\n').runs[-1]
    assert run.label == "long " * 60
    assert len(run.name) < 200
