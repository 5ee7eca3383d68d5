"""What commands say while they work, and which option was meant when the wrong thing was given to one."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from command_lines import TESTS, run_in_pipes, run_in_terminal
from hmarl.runtime.command_line import run
from hmarl.sdk.commands.evaluate import evaluate_command
from hmarl.sdk.environments import make
from hmarl.sdk.environments.conformance import check_environment

BUNDLE = TESTS.parent / "models" / "simple-spread-hcpo"


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    """What looks like a run directory."""
    run = tmp_path / "my run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    (run / "checkpoints").mkdir()
    return run


def test_what_was_given_to_the_wrong_option_is_told_with_the_right_one(
    run_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoints = tmp_path / "endpoints.json"
    endpoints.write_text('{"agents": {"agent_0": "127.0.0.1:1"}}')
    zipped = shutil.make_archive(str(tmp_path / "bundle"), "zip", BUNDLE)
    for option, path, right in (
        (
            "--bundle",
            run_directory,
            f"use --run '{run_directory}'; hmarl-export '{run_directory}' makes a bundle of it",
        ),
        ("--bundle", endpoints, f"use --endpoints {endpoints}"),
        ("--run", BUNDLE, f"use --bundle {BUNDLE}"),
        ("--run", zipped, f"use --bundle {zipped}"),
        ("--endpoints", BUNDLE, f"use --bundle {BUNDLE}"),
        ("--endpoints", run_directory, f"use --run '{run_directory}'; hmarl-export"),
    ):
        code = run(evaluate_command, [option, str(path)])
        output, error = capsys.readouterr()
        assert (code, output) == (2, ""), error
        assert error.startswith(f"hmarl-eval: {option}: got a"), error
        assert right in error, error


def test_a_run_is_no_bundle_and_a_bundle_is_no_run(run_directory: Path) -> None:
    code, _, error = run_in_pipes("hmarl-verify", run_directory)
    assert (code, "this is a run directory: export it with 'hmarl-export" in error) == (3, True)
    code, _, error = run_in_pipes("hmarl-export", BUNDLE)
    assert (code, "no config.json (No such file or directory); this is a bundle" in error) == (3, True)


def test_families_whose_package_is_missing_are_not_called_installed() -> None:
    code, output, _ = run_in_pipes("hmarl-envs", "--json")
    assert code == 0
    states = json.loads(output)["families"]
    assert states["mpe"] == {"installed": True, "extra": None}
    packages = {"smac": "smac", "smacv2": "smacv2", "vmas": "vmas", "mamujoco": "mujoco", "smax": "jaxmarl"}
    assert {name: states[name]["installed"] for name in packages} == {
        name: find_spec(package) is not None for name, package in packages.items()
    }
    _, listed, _ = run_in_pipes("hmarl-envs")
    for name in ("smac", "smacv2"):
        (row,) = (line for line in listed.splitlines() if f" {name} " in line)
        assert ("not installed" in row) == (not states[name]["installed"])


def test_checks_say_how_far_they_are() -> None:
    told: list[tuple[str, int, int]] = []
    results = check_environment(
        lambda batch: make("mpe/simple_spread", batch, max_cycles=3), progress=lambda *each: told.append(each)
    )
    assert [name for name, _, _ in told] == [result.name for result in results]
    assert [done for _, done, _ in told] == list(range(len(results)))
    assert {total for _, _, total in told} == {len(results)}


def test_a_check_names_the_environment_at_once() -> None:
    code, _, error = run_in_pipes("hmarl-check-env", "mpe/simple_spread", "--steps", 3)
    assert code == 0
    assert error.splitlines()[0] == "checking mpe/simple_spread"


def test_the_bar_of_an_evaluation_is_whole_at_80_columns() -> None:
    code, lines = run_in_terminal(80, "hmarl-eval", "--bundle", BUNDLE, "--episodes", 20)
    assert code == 0, lines
    bars = [line for line in lines if "ETA" in line]
    assert bars
    assert not any("…" in line or len(line.rstrip()) > 80 for line in bars)
    assert all(line.startswith("playing ") for line in bars)
