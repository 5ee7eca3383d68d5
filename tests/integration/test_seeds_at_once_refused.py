"""What goes with several seeds at once and what does not; a command that was refused leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hmarl.sdk.errors import UsageError
from hmarl.trainer.commands.seeds import seeds_shown
from hmarl.trainer.runs.config import RunConfig
from hmarl.trainer.runs.many_seeds import ManyRuns
from hmarl.trainer.runs.stopping import StopRequest
from training_runs import tiny_config

pytestmark = pytest.mark.usefixtures("single_thread")
Call = Callable[..., tuple[int, str, str]]
SMALL = ("--set", "run.environments=4", "--set", "run.rollout_length=10", "--set", "run.evaluation_episodes=2")


def create(config: RunConfig, folder: Path) -> ManyRuns:
    configs = [config.model_copy(update={"run": {**config.run, "seed": seed}}) for seed in (1, 2)]
    return ManyRuns.create(configs, [folder / "seed1", folder / "seed2"], StopRequest())


@pytest.mark.parametrize("more", [{}, {"stale_updates": 1}])
def test_workers_are_refused(more: dict[str, Any], tmp_path: Path) -> None:
    told = r"--seeds: got run\.workers=2, expected 0: .*hmarl-train happo --seed N"
    with pytest.raises(UsageError, match=told):
        create(tiny_config("happo", "mpe/simple_spread", {}, {"workers": 2, **more}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_cluster_is_refused(call: Call, tmp_path: Path) -> None:
    words = ("mappo", "--env", "coordsum/3x10-30", "--seeds", "1,2", "--ray", "--out", str(tmp_path / "run"))
    code, _, error = call("train", *words)
    assert code == 2
    assert "--seeds: got --ray as well, expected one of them" in error
    assert not (tmp_path / "run").exists()


def test_copies_whose_episodes_depend_on_one_another_are_refused(tmp_path: Path) -> None:
    told = "--seeds: in toy_environments:one_stream an episode depends on the seeds of all its copies"
    with pytest.raises(UsageError, match=told):
        create(tiny_config("happo", "toy_environments:one_stream"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_refused_leaves_no_run_behind_and_the_command_can_be_typed_again(tmp_path: Path) -> None:
    (tmp_path / "seed2").write_text("in the way")
    config = tiny_config("happo", "mpe/simple_spread")
    with pytest.raises(UsageError, match="seed2: cannot be written"):
        create(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["seed2"]
    (tmp_path / "seed2").unlink()
    create(config, tmp_path).close()


def test_many_seeds_have_a_directory_that_can_be_made() -> None:
    assert seeds_shown((7, 8, 9)) == "7-8-9"
    assert seeds_shown(tuple(range(1000, 1080))) == "1000-and-79-more"


def test_what_ended_each_of_several_seeds_is_told(call: Call, tmp_path: Path) -> None:
    words = ("mappo", "--env", "toy_environments:poisoned", "--seeds", "1,2", *SMALL, "--steps", "400")
    code, _, error = call("train", *words, "--set", "run.max_rollbacks=1", "--out", str(tmp_path / "runs"))
    assert code == 4
    (line,) = [line for line in error.splitlines() if line.startswith("hmarl-train: ")]
    for seed in (1, 2):
        assert f"hmarl-train --resume {tmp_path / 'runs' / f'seed{seed}'}" in line


def test_the_directory_of_several_runs_is_told_from_a_run(call: Call, tmp_path: Path) -> None:
    create(tiny_config("happo", "mpe/simple_spread"), tmp_path).close()
    code, _, error = call("train", "--resume", str(tmp_path))
    assert code == 3
    assert "no config.json (No such file or directory); it holds the runs seed1, seed2: name one of them" in error
