"""Settings that there were once, or were not yet: old runs go on, and old commands still do what they did."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hmarl.trainer.algorithms import find_algorithm
from hmarl.trainer.runs.config import RunConfig
from hmarl.trainer.runs.run import Run
from training_runs import command_line, final_hash, tiny_config, train

pytestmark = pytest.mark.usefixtures("single_thread")


def test_a_run_of_old_goes_on_without_its_retired_settings(tmp_path: Path) -> None:
    run, longer = tmp_path / "run", tmp_path / "longer"
    train(tiny_config("happo", "mpe/simple_spread"), run)
    path = run / "config.json"
    old = json.loads(path.read_text())
    old["run"]["log_interval_s"] = 1.0
    path.write_text(json.dumps(old))
    assert "log_interval_s" not in RunConfig.read(run).run
    resumed = Run.resume(run, steps=240)
    assert resumed.train()["steps"] == 240
    resumed.close()
    assert "log_interval_s" not in json.loads(path.read_text())["run"]
    train(tiny_config("happo", "mpe/simple_spread", {}, {"steps": 160}), longer)
    again = Run.resume(longer, steps=240)
    again.train()
    again.close()
    assert final_hash(run) == final_hash(longer)


@pytest.mark.parametrize(
    ("name", "environment", "settings"),
    [
        ("hamdpo", "mpe/simple_spread", {}),
        ("himpo", "lbfws/hard", {}),
        ("magpo", "mpe/simple_spread", {"credit": "own"}),
    ],
)
def test_a_run_of_before_there_was_a_setting_goes_on_as_it_began(
    name: str, environment: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    as_then = dict(find_algorithm(name).settings_class.before)
    assert as_then
    run, whole = tmp_path / "run", tmp_path / "whole"
    train(tiny_config(name, environment, {**settings, **as_then}), run)
    path = run / "config.json"
    old = json.loads(path.read_text())
    for setting in as_then:
        del old["algorithm_settings"][setting]
    shutil.copytree(run, whole)
    path.write_text(json.dumps(old))
    for directory in (run, whole):
        resumed = Run.resume(directory, steps=240)
        resumed.train()
        resumed.close()
    assert final_hash(run) == final_hash(whole)


def test_an_old_command_is_still_understood(call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    words = command_line(tiny_config("happo", "mpe/simple_spread", {}, {"steps": 40}), tmp_path / "run")
    code, _, error = call("train", *words, "--set", "run.log_interval_s=2.5")
    assert code == 0, error
    assert "log_interval_s" not in json.loads((tmp_path / "run" / "config.json").read_text())["run"]


def test_a_setting_that_there_never_was_is_refused(call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    words = command_line(tiny_config("happo", "mpe/simple_spread"), tmp_path / "run")
    code, _, error = call("train", *words, "--set", "run.log_interval=2.5")
    assert (code, "unknown setting 'run.log_interval'" in error) == (2, True)
