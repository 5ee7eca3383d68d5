"""Evaluations say how actions were chosen, play both ways, and a summary tells the last from the best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hmarl.sdk.environments import make
from hmarl.sdk.evaluation.closed_loop import evaluate
from hmarl.trainer.records.metrics import read_evaluation
from hmarl.trainer.runs.loaded_run import load_run
from hmarl.trainer.runs.seeds import EVALUATION_SEED
from training_runs import tiny_config, train

pytestmark = pytest.mark.usefixtures("single_thread")
TASK = "mpe/simple_spread"


def trained(directory: Path, algorithm: str = "magpo", run: dict[str, Any] | None = None, **settings: Any) -> Any:
    small = {"embedding_size": 8, "epochs": 1} if algorithm == "magpo" else {}
    return train(
        tiny_config(algorithm, TASK, {**small, **settings}, {"evaluation_interval": 40, **(run or {})}), directory
    )


@pytest.mark.parametrize("deterministic", [True, False])
def test_both_ways_are_played_and_named(deterministic: bool, tmp_path: Path) -> None:
    final = trained(tmp_path / "run", deterministic_evaluation=deterministic)["final"]
    judged, other = ("greedy", "sampled") if deterministic else ("sampled", "greedy")
    algorithm = load_run(tmp_path / "run", "last").algorithm
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert set(final) == {"local", "guider"}
    for name, row in final.items():
        assert row["actions"] == judged
        assert judged not in row
        for sample, got in ((not deterministic, row), (deterministic, row[other])):
            environment = make(TASK, 2)
            played = evaluate(environment, algorithm.teams(sample)[name], 2, EVALUATION_SEED).summary()
            assert got["return_mean"] == pytest.approx(played["return_mean"], rel=1e-5)
        assert rows[-1][f"evaluation/{name}/return_mean"] == pytest.approx(row["return_mean"])
        assert rows[-1][f"evaluation/{name}/{other}/return_mean"] == pytest.approx(row[other]["return_mean"])
        assert row["return_mean"] != row[other]["return_mean"]


def test_teams_that_are_only_to_be_compared_with_play_once(tmp_path: Path) -> None:
    final = trained(tmp_path / "run", "hcpo", {"steps": 40})["final"]
    assert [name for name, row in final.items() if "sampled" in row] == ["local"]


def test_the_other_way_can_be_left_out(tmp_path: Path) -> None:
    final = trained(tmp_path / "run", run={"steps": 40, "evaluation_modes": "judged"})["final"]
    assert all(row["actions"] == "greedy" and "sampled" not in row for row in final.values())


def test_a_summary_tells_the_best_checkpoints_evaluation_from_the_last(tmp_path: Path) -> None:
    summary = trained(tmp_path / "run", learning_rate=0.05)
    best = summary["best"]
    evaluations = {
        int(path.stem.removeprefix("step-")): read_evaluation(path) for path in (tmp_path / "run" / "eval").iterdir()
    }
    assert len(evaluations) == 4
    highest = max(evaluations, key=lambda steps: evaluations[steps]["local"]["return_mean"])
    assert best == {"steps": highest, "teams": evaluations[highest]}
    assert summary["best_return"] == pytest.approx(best["teams"]["local"]["return_mean"])
    assert summary["final"] == evaluations[160]
