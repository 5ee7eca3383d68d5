"""Advice under a conductor: every warning is provoked, names its remedy, and is silent where nothing is wrong."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from hmarl.trainer.algorithms.hcpo import Hcpo
from hmarl.trainer.records.problems import Problems
from hmarl.trainer.runs.advice import Advice
from hmarl.trainer.runs.evaluator import Evaluator
from told_pair import SETTINGS, TASK, told_pair
from training_runs import new_algorithm, new_hcpo, tiny_config, train

pytestmark = pytest.mark.usefixtures("single_thread")


def advised(preference: torch.Tensor | None = None, **settings: Any) -> tuple[Hcpo, str | None]:
    """What is said of one update, whose conductor prefers instructions, whatever the state, as told."""
    algorithm, rollout, collector = new_hcpo(**settings)
    if preference is not None:
        algorithm.conductor.policy.theta.zero_()
        biases = algorithm.conductor.policy.network.named(algorithm.conductor.policy.theta[0])["1.bias"]
        biases.copy_(preference)
    collector.collect(algorithm)
    return algorithm, next(iter(algorithm.advice(algorithm.update(rollout, 0.0))), None)


def test_nothing_is_said_of_an_ordinary_update() -> None:
    assert advised()[1] is None
    assert advised(instructions=1)[1] is None
    assert advised(conductor_sees="nothing")[1] is None


def test_local_conductors_that_do_not_follow() -> None:
    sure = torch.tensor([3.0, 3.0, -3.0, -3.0])
    _, advice = advised(sure, distillation_learning_rate=1e-9)
    assert advice is not None
    assert advice.startswith("the local conductors do not follow")
    assert "algorithm.distillation_patience=2 with algorithm.distillation_epochs=50" in advice
    # The remedy is one.
    remedy = {"distillation_patience": 2, "distillation_epochs": 50, "distillation_learning_rate": 1e-2}
    assert advised(sure, **remedy)[1] is None


def test_an_instruction_that_took_over() -> None:
    sure = torch.tensor([9.0, 0.0, 0.0, 0.0])
    followed = {"distillation_patience": 2, "distillation_epochs": 50, "distillation_learning_rate": 1e-2}
    _, advice = advised(sure, **followed)
    assert advice is not None
    assert advice.startswith("one instruction took over")
    assert "algorithm.conductor_entropy_coefficient" in advice


def test_a_trust_region_that_collapses() -> None:
    """Steps far too long for what the gradient promises, and a single try."""
    _, advice = advised(kl_limit=50.0, backtracks=1, accept_ratio=0.99)
    assert advice is not None
    assert advice.startswith("the trust region has collapsed")
    assert "algorithm.kl_limit" in advice


@pytest.mark.parametrize(
    ("local", "central", "far"), [(-46.8, -15.4, True), (124.0, 168.0, True), (-15.1, -15.1, False)]
)
def test_a_team_that_does_worse_as_deployed(local: float, central: float, far: bool) -> None:
    algorithm, _, _ = new_hcpo()
    metrics = {
        f"evaluation/{name}/{figure}": value
        for name, value in (("local", local), ("central", central))
        for figure in ("return_mean", "return_median")
    }
    advice = algorithm.advice(metrics)
    assert len(advice) == far
    if far:
        assert "algorithm.conductor_sees=common" in advice[0]
        assert "algorithm.local_share=0.5" in advice[0]


def test_an_evaluation_of_such_a_team_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Local conductors who have two agents say the same number, where the conductor has them say ten."""
    config = tiny_config("hcpo", TASK, SETTINGS, {"evaluation_episodes": 8})
    problems = Problems()
    for reversed_second, warned in ((True, True), (False, False)):
        caplog.clear()
        evaluator = Evaluator(config, tmp_path, told_pair(reversed_second))
        (tmp_path / "eval").mkdir(exist_ok=True)
        with caplog.at_level(logging.WARNING):
            evaluated = evaluator.attempt(40, problems)
        assert (evaluated.returns["local"] < evaluated.returns["central"]) == warned
        assert ("earns far less than under the central one" in caplog.text) == warned


def test_guided_hcpo_says_it_too() -> None:
    algorithm, _, _ = new_algorithm("guided-hcpo", "mpe/simple_spread", 2, 4, None, embedding_size=8)
    (follow,) = algorithm.advice({"local_conductor_kl": 1.0})
    assert "do not follow" in follow
    part, again = algorithm.advice({"local_conductor_kl": 1.0, "outside_share": 0.99})
    assert "part" in part
    assert again == follow


def test_what_lasts_hides_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    """Local conductors never follow; then an instruction takes over as well. Each is said once."""
    advice = Advice(new_hcpo()[0])
    lasting = {"local_conductor_kl": 1.0}
    with caplog.at_level(logging.WARNING):
        advice.on(lasting, "update 1")
        advice.on(lasting, "update 2")
        advice.on(lasting | {"instruction_usage/0": 0.99, "instruction_usage/1": 0.01}, "update 3")
    said = [record.getMessage() for record in caplog.records]
    assert [each.partition(" ")[2][:1] for each in said] == ["1", "3"]
    assert "do not follow" in said[0]
    assert "one instruction took over" in said[1]


def test_a_run_warns_once_of_an_evaluation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, float]] = []

    def advice(self: Hcpo, metrics: dict[str, float]) -> list[str]:
        asked.append(metrics)
        return ["look at the gap"] if "evaluation/local/return_mean" in metrics else []

    monkeypatch.setattr(Hcpo, "advice", advice)
    config = tiny_config("hcpo", "mpe/simple_spread", {}, {"evaluation_interval": 40})
    with caplog.at_level(logging.WARNING):
        train(config, tmp_path / "run")
    said = [record.getMessage() for record in caplog.records if "look at the gap" in record.getMessage()]
    assert said == ["evaluation at 40 steps: look at the gap"]
    assert sum("evaluation/local/return_mean" in metrics for metrics in asked) == 4
