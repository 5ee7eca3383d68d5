"""A suite whose seeds one process trains, as users type it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hmarl.trainer.records.metrics import read_metrics
from hmarl.trainer.runs.config import RunConfig
from training_runs import train

Call = Callable[..., tuple[int, str, str]]
SUITE = """
tasks = ["coordsum/sum-to-10"]
algorithms = ["mappo"]
seeds = 2
seeds_at_once = true
steps = 80
evaluations = 2
settings.run = { environments = 4, rollout_length = 10, evaluation_episodes = 2 }
settings.algorithm = { hidden_sizes = [8], critic_hidden_sizes = [8] }
"""


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("single_thread", "without_pictures")
def test_each_seed_has_its_run_and_its_record(call: Call, tmp_path: Path) -> None:
    file, folder = tmp_path / "tiny.toml", tmp_path / "out"
    file.write_text(SUITE)
    code, output, error = call("suite", str(file), "--out", str(folder), "--json")
    assert code == 0, error
    assert json.loads(output.splitlines()[-1])["done"] == 2
    first, second = sorted(path for path in (folder / "runs").iterdir() if path.is_dir())
    assert [RunConfig.read(run).run["seed"] for run in (first, second)] == [100, 101]
    log = first.with_name(f"{first.name}.log").read_text()
    assert f"--seeds 100,101 --out {first} --out {second}" in log
    assert f"see {folder / 'runs' / first.name}.log" in second.with_name(f"{second.name}.log").read_text()
    train(RunConfig.read(second), tmp_path / "alone")
    for ours, alone in zip(read_metrics(second), read_metrics(tmp_path / "alone"), strict=True):
        assert ours["critic_loss"] == pytest.approx(alone["critic_loss"], rel=1e-3, abs=1e-5)
    curves = json.loads((folder / "marl-eval.json").read_text())["coordsum"]["sum-to-10"]["mappo"]
    assert sorted(curves) == ["seed_100", "seed_101"]
