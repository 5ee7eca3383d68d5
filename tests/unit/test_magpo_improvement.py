"""MAGPO's monotone improvement, watched: its terms by hand and in a real update, and its picture."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hmarl.trainer.guiders.improvement import ImprovementPlot, promised
from hmarl.trainer.learning.performance import Performance
from hmarl.trainer.records.metrics import read_metrics
from training_runs import CPU, new_algorithm, tiny_config, train

pytestmark = pytest.mark.usefixtures("single_thread")
LOG2 = math.log(2.0)


def test_what_a_step_promises_hand_computed() -> None:
    """γ = ½; Â is 2, 0, 4, 2, centred 0, −2, 2, 0; joint ratios 2, 2, 2·2, ½: 2 · (0 − 4 + 8 + 0) / 4 = 2."""
    log_ratio = torch.tensor([[LOG2, LOG2, LOG2, 0.0], [0.0, 0.0, LOG2, -LOG2]])
    advantages = torch.tensor([2.0, 0.0, 4.0, 2.0])
    assert promised(advantages, log_ratio, None, 0.5) == pytest.approx(2.0)
    # Who had left does not count: the third ratio is 2, and 2 · (−4 + 4) / 4 = 0.
    active = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 1.0]])
    assert promised(advantages, log_ratio, active, 0.5) == pytest.approx(0.0)
    # A policy that does as before promises nothing.
    assert promised(advantages, torch.zeros(2, 4), None, 0.9) == pytest.approx(0.0, abs=1e-6)


def test_performance_and_what_came_of_a_step_hand_computed() -> None:
    performance = Performance(0.75, CPU)
    assert performance.of(torch.tensor([[1.0, 3.0]])) == {"performance": 8.0}
    resumed = Performance(0.75, CPU)
    resumed.load_state_dict({key: value.clone() for key, value in performance.state_dict().items()})
    for each in (performance, resumed):
        assert each.of(torch.tensor([[1.0, 1.0]])) == {"performance": 4.0, "realised_improvement": -4.0}
    assert Performance(1.0, CPU).of(torch.ones(2, 2)) == {}
    older = Performance(0.75, CPU)
    older.load_state_dict({})  # of a checkpoint from before
    assert older.of(torch.ones(1, 1)) == {"performance": 4.0}


def update(advantage_of: int | None = None, **settings: Any) -> tuple[Any, dict[str, float]]:
    """An update on advantages that are 1 where agent 0 takes an action, −1 elsewhere."""
    known = {"embedding_size": 8, "recurrent": False, "learning_rate": 3e-3, "epochs": 4, **settings}
    algorithm, rollout, collector = new_algorithm("magpo", "coordsum/sum-to-10", 256, 1, None, **known)
    if algorithm.guider.network.backtracks:
        algorithm.guider.network.backtrack(algorithm.guider.theta, algorithm.policies)
    collector.collect(algorithm)
    if advantage_of is not None:
        liked = torch.where(rollout.actions[0][:, :, 0] == advantage_of, 1.0, -1.0)
        estimate = algorithm.guider.estimate(rollout, algorithm.guided.remembered())
        told = replace(estimate, advantages=liked)
        algorithm.guider.estimate = lambda *_: told
    return algorithm, algorithm.update(rollout, 0.0)


def test_an_update_towards_what_earns_more_promises_more_and_the_followers_get_a_part_of_it() -> None:
    """A guider that may go anywhere; local policies that only imitate it stay behind, by a divergence that is told."""
    _, metrics = update(0, delta=1e6, reinforcement_weight=0.0, epochs=8, learner_learning_rate=1e-4)
    assert metrics["promised_improvement_guider"] > 0.1
    assert metrics["promised_improvement"] < 0.5 * metrics["promised_improvement_guider"]
    assert metrics["projection_kl_max"] >= metrics["projection_kl"] > 1e-3
    _, near = update(0, delta=1e6, reinforcement_weight=0.0, epochs=8, learner_learning_rate=3e-2)
    assert near["promised_improvement"] > metrics["promised_improvement"]
    assert near["projection_kl"] < metrics["projection_kl"]


def test_before_any_step_nothing_is_promised() -> None:
    """Steps of no length, and a guider that is what its local policies are: all terms are 0."""
    algorithm, metrics = update(0, guider="factorised", learning_rate=1e-12, learner_learning_rate=1e-12)
    for name in ("promised_improvement", "promised_improvement_guider", "projection_kl", "projection_kl_max"):
        assert metrics[name] == pytest.approx(0.0, abs=1e-4), name
    assert "performance" in algorithm.components()


def test_of_each_agents_own_reward_nothing_is_promised_to_the_team() -> None:
    _, metrics = update(credit="own")
    assert not {"promised_improvement", "projection_kl"} & set(metrics)
    assert "performance" in metrics


def test_a_run_records_and_draws_it(tmp_path: Path) -> None:
    settings = {"embedding_size": 8, "epochs": 1}
    train(tiny_config("magpo", "toy_environments:leaving", settings), tmp_path / "run")
    rows = read_metrics(tmp_path / "run")
    assert all(math.isfinite(row["promised_improvement"]) and row["projection_kl"] >= 0.0 for row in rows)
    assert [row.get("realised_improvement") is not None for row in rows] == [False] + [True] * (len(rows) - 1)
    assert (tmp_path / "run" / "plots" / "improvement.png").read_bytes().startswith(b"\x89PNG")
    assert ImprovementPlot().draw([{"steps": 1}], "nothing") is None
