"""Settings that TOML has no word for, in presets, suites and spaces: what is written is what is read."""

from __future__ import annotations

import itertools
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest

from hmarl.sdk.commands._common import parse_settings
from hmarl.sdk.errors import UsageError
from hmarl.trainer.commands.tune import _space
from hmarl.trainer.runs.preset_files import read_preset, write_preset
from hmarl.trainer.runs.presets import Preset
from hmarl.trainer.runs.request import requested
from hmarl.trainer.runs.toml_settings import setting_of, toml_key, toml_setting
from hmarl.trainer.suite.definition import Definition, read_definition
from hmarl.trainer.tuning.plan import SearchPlan, confirming_suite
from hmarl.trainer.tuning.space import Choice, Range
from suite_definitions import defined, refusal

GROUPS = ("algorithm", "run", "env")
VALUES = (
    None,
    True,
    -3,
    1e-4,
    1e16,
    math.inf,
    "null",
    "json:null",
    'a "text"\\ with\nlines\x7f and \u00e4',
    [],
    [64, 64],
    [None, "json:1", [None]],
    {},
    {"a": None, "b.c": {"d": [1, {"e": 2}]}},
)


@pytest.mark.parametrize("value", VALUES)
def test_what_is_written_is_what_is_read(value: Any, tmp_path: Path) -> None:
    (read,) = tomllib.loads(f"{toml_key('a.b c')} = {toml_setting(value)}").values()
    assert setting_of(read, "x") == value
    path = tmp_path / "mine.toml"
    write_preset(path, Preset("happo", "mpe/*", 10, "", {}, {}, {"faults": 1, "faults.delay": value}))
    assert read_preset(str(path), "happo").environment_arguments == {"faults": 1, "faults.delay": value}


def test_what_toml_has_words_for_is_written_in_them() -> None:
    values = [True, -3, 0.5, "relu", [64, 64], ["a", [False]]]
    assert [toml_setting(value) for value in values] == [
        "true",
        "-3",
        "0.5",
        '"relu"',
        "[64, 64]",
        '["a", [false]]',
    ]
    assert toml_setting(None) == '"json:null"'
    assert toml_setting((1, 2)) == "[1, 2]"


def own_game(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An environment whose arguments may be anything."""
    (folder / "toml_settings_game.py").write_text("def make(batch_size, bonus=1, shape=(), faults=''): ...\n")
    monkeypatch.syspath_prepend(folder)
    return "toml_settings_game:make"


def confirmed(plan: SearchPlan, folder: Path) -> Definition:
    preset, confirm = folder / "best.toml", folder / "confirm.toml"
    write_preset(preset, plan.preset_of({"algorithm.gamma": 0.95}, "best"))
    confirm.write_text(confirming_suite(plan, preset, 1))
    return read_definition(confirm)


def given(words: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    return parse_settings([word for before, word in itertools.pairwise(words) if before == "--set"], GROUPS)


@pytest.mark.parametrize(
    ("settings", "group", "expected"),
    [
        (("env.bonus=null",), "env", {"bonus": None}),
        (("env.bonus=None", "env.shape=True"), "env", {"bonus": None, "shape": True}),
        (('env.shape={"a": [1, null]}',), "env", {"shape": {"a": [1, None]}}),
        (("env.shape=[1,2]", "env.bonus=1", "env.bonus=2"), "env", {"shape": [1, 2], "bonus": 2}),
        (('env.shape="a\\/b"', "env.bonus=Infinity"), "env", {"shape": "a/b", "bonus": math.inf}),
        (("env.faults=out=3,loss=0.1", "env.faults.delay=2"), "env", {"faults": "out=3,loss=0.1", "faults.delay": 2}),
        (("algorithm.chunk_length=null",), "algorithm", {"chunk_length": None}),
    ],
)  # fmt: skip
def test_what_a_search_finds_trains_in_the_settings_of_its_trials(
    settings: tuple[str, ...], group: str, expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    game = own_game(tmp_path, monkeypatch)
    space = {"algorithm.gamma": Range(0.9, 0.99)}
    plan = SearchPlan("happo", game, None, settings, space, steps=1000, evaluations=2, seeds=1, measure="return")
    suite = confirmed(plan, tmp_path)
    request = requested("happo", game, {"seed": 1}, (), str(tmp_path / "best.toml"), lambda name, arguments: None)
    found = {"algorithm": request.algorithm_settings, "env": request.arguments}[group]
    assert {key: found[key] for key in expected} == expected
    before, after = suite.runs
    assert given(before.words)[group] == expected
    assert given(after.words)[group] == (expected if group == "env" else {}), "its preset has the others"


def test_a_choice_of_null_is_found_as_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    game = own_game(tmp_path, monkeypatch)
    space = {"env.bonus": Choice((None, 1))}
    plan = SearchPlan("happo", game, None, (), space, steps=1000, evaluations=2, seeds=1, measure="return")
    write_preset(tmp_path / "best.toml", plan.preset_of({"env.bonus": None}, "best"))
    assert read_preset(str(tmp_path / "best.toml"), "happo").environment_arguments == {"bonus": None}


def test_suites_grids_and_spaces_take_json_as_well(tmp_path: Path) -> None:
    suite = defined(
        tmp_path,
        'tasks = ["coordsum/sum-to-10"]\nalgorithms = ["mappo"]\nseeds = 1\nsteps = 100\n'
        'settings.algorithm.hidden_sizes = "json:[8]"\n[grid]\n"algorithm.chunk_length" = ["json:null", 5]\n',
    )
    assert [given(run.words)["algorithm"] for run in suite.runs] == [
        {"hidden_sizes": [8], "chunk_length": None},
        {"hidden_sizes": [8], "chunk_length": 5},
    ]
    space = tmp_path / "space.toml"
    space.write_text('algorithm.chunk_length = ["json:null", 5]\n')
    assert _space((), space) == {"algorithm.chunk_length": Choice((None, 5))}


def test_no_json_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('algorithm = "happo"\nenvironment = "x"\nsteps = 1\nsettings.env.a = [1, "json:nul"]\n')
    expected = r"settings\.env\.a\[1\]: got 'json:nul', expected JSON behind 'json:', e\.g\. 'json:null'"
    with pytest.raises(UsageError, match=rf"--preset .*mine\.toml: {expected}"):
        read_preset(str(path), "happo")
    text = 'tasks = ["coordsum/sum-to-10"]\nalgorithms = ["mappo"]\nsettings.run.threads = "json:"\n'
    assert "mine.toml: settings: run.threads: got 'json:', expected JSON behind" in refusal(tmp_path, text)
