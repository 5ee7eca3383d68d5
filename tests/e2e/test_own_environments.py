"""An environment of one's own, in the current directory, is found by the commands as it stands there."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from command_lines import TESTS, command

TINY = (
    "--steps",
    "96",
    "--set",
    "run.environments=2",
    "--set",
    "run.rollout_length=12",
    "--set",
    "run.threads=1",
    "--set",
    "run.evaluation_episodes=2",
)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory with a module of the user's, and with one that is called as one of the standard library."""
    shutil.copy(TESTS / "toy_environments.py", tmp_path / "mine.py")
    (tmp_path / "json.py").write_text("raise RuntimeError('the standard library comes first')\n")
    (tmp_path / "numpy.py").write_text("raise RuntimeError('what is installed comes first')\n")
    return tmp_path


def call(here: Path, program: str, *arguments: object) -> str:
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        command(program, *arguments), cwd=here, env=variables, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_checked_trained_and_evaluated_without_a_path(here: Path) -> None:
    assert "✓" in call(here, "hmarl-check-env", "mine:masked_discrete", "--steps", 10)
    said = call(here, "hmarl-train", "happo", "--env", "mine:masked_discrete", "--out", "run", *TINY)
    assert "next: hmarl-export run" in said
    assert "return, mean" in call(here, "hmarl-eval", "--run", "run", "--episodes", 2)


def test_copies_in_worker_processes_find_it_too(here: Path) -> None:
    shutil.copy(TESTS / "parallel_toys.py", here / "three.py")
    assert "✓" in call(here, "hmarl-check-env", "pettingzoo/three:make_trio", "--steps", 5, "--set", "env.workers=2")
