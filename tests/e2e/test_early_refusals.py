"""What is mistyped is told before anything that takes long is loaded, built or begun."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_lines import run_in_pipes

TRAIN = ("happo", "--env", "mpe/simple_spread")


@pytest.fixture
def without_torch(tmp_path: Path) -> Path:
    """A folder with a PyTorch that is found, and cannot be loaded."""
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('PyTorch was loaded')\n")
    return tmp_path


@pytest.mark.parametrize(
    ("program", "arguments", "code", "told"),
    [
        ("hmarl-train", ("hapo", *TRAIN[1:]), 2, "unknown algorithm 'hapo'; did you mean 'happo'?"),
        ("hmarl-train", (*TRAIN[:2], "mpa/simple_spread"), 2, "unknown environment family 'mpa'; did you mean 'mpe'?"),
        ("hmarl-train", (*TRAIN[:2], "mpe/simple_spred"), 2, "unknown mpe task 'simple_spred'; did you mean"),
        ("hmarl-train", (*TRAIN[:2], "lbf/8x8"), 2, "lbf/8x8: expected a name like 8x8-2p-2f-coop"),
        ("hmarl-train", (*TRAIN[:2], "nowhere:make"), 2, "environment 'nowhere:make': No module named 'nowhere'"),
        ("hmarl-train", (*TRAIN, "--preset", "paper-mqe"), 2, "unknown preset 'paper-mqe'; did you mean 'paper-mpe'?"),
        ("hmarl-train", (*TRAIN, "--set", "env.M=3"), 2, "unknown argument of mpe/simple_spread 'M'"),
        ("hmarl-train", (*TRAIN, "--set", "env.N=0"), 2, "N: got 0, expected an integer of at least"),
        ("hmarl-train", (*TRAIN, "--set", "evn.N=2"), 2, "--set: unknown prefix 'evn' in 'evn.N=2'; did you mean"),
        ("hmarl-train", (*TRAIN, "--set", "run.sted=1"), 2, "unknown setting 'run.sted'; did you mean 'run.seed'?"),
        ("hmarl-train", (*TRAIN, "--steps", "0"), 2, "--steps: got '0', expected an integer of at least 1"),
        ("hmarl-train", (*TRAIN, "--set", "run.steps=0"), 2, "run.steps: got 0, expected a number of at least 1"),
        ("hmarl-eval", ("--run", "nowhere", "--checkpoint", "bst"), 2, "--checkpoint: got 'bst', expected best, last"),
        ("hmarl-export", ("nowhere", "--checkpoint", "bst"), 2, "--checkpoint: got 'bst', expected best, last or a"),
        ("hmarl-train", ("--resume", "nowhere"), 3, "run directory nowhere: no config.json"),
        ("hmarl-export", ("nowhere",), 3, "run directory nowhere: no config.json"),
        ("hmarl-algorithms", ("hcop",), 2, "unknown algorithm 'hcop'; did you mean 'hcpo'?"),
    ],
)
def test_a_slip_costs_no_torch(
    program: str, arguments: tuple[str, ...], code: int, told: str, without_torch: Path
) -> None:
    found, output, error = run_in_pipes(program, *arguments, path=without_torch)
    assert (found, output) == (code, ""), error
    last = error.splitlines()[-1]
    assert last.startswith(f"{program}: {told}"), error
    assert "training" not in error
    assert "building" not in error


def test_the_torch_of_these_tests_cannot_be_loaded(without_torch: Path) -> None:
    """Else they could not fail."""
    code, _, error = run_in_pipes("hmarl-train", *TRAIN, path=without_torch)
    assert code == 4
    assert "PyTorch was loaded" in error


@pytest.mark.parametrize(("seeds", "of"), [((), ""), (("--seeds", "1,2"), ""), (("--seeds", "1,2"), "seed2")])
def test_another_run_in_the_directory_costs_no_torch(
    seeds: tuple[str, ...], of: str, without_torch: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    (out / of).mkdir(parents=True)
    (out / of / "config.json").write_text("{}")
    words = ("hmarl-train", "mappo", *TRAIN[1:], *seeds, "--out", out)
    found, output, error = run_in_pipes(*words, path=without_torch)
    assert (found, output) == (2, ""), error
    assert error.startswith(f"hmarl-train: --out: {out / of} already holds a run; choose another"), error


@pytest.mark.parametrize("program", ["hmarl-train", "hmarl-export"])
def test_a_stop_while_torch_is_loaded_is_no_fault(program: str, without_torch: Path, tmp_path: Path) -> None:
    """The interrupt comes out of PyTorch's initialisation as an ImportError."""
    interrupted = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
except KeyboardInterrupt:
    raise ImportError("initialization failed") from None
"""
    (without_torch / "torch" / "__init__.py").write_text(interrupted)
    config = {"hmarl_version": "1", "algorithm": "happo", "environment": "mpe/simple_spread", "run": {}}
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({**config, "environment_arguments": {}, "algorithm_settings": {}}))
    words = TRAIN if program == "hmarl-train" else (run,)
    found, _, error = run_in_pipes(program, *words, path=without_torch)
    assert (found, error.splitlines()[-1]) == (130, f"{program}: interrupted"), error
