"""One after the other: what each agent maximises, given the ratios of the agents before."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch

from training_runs import new_algorithm

pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.mark.parametrize("name", ["haa2c", "hamdpo", "happo", "hatrpo", "hcpo"])
def test_the_joint_advantage_is_multiplied_by_the_ratios_of_those_before(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm, rollout, collector = new_algorithm(name, "toy_environments:masked_discrete", 4, 10)
    collector.collect(algorithm)
    told: dict[str, Any] = {}

    def noted(team: Any, **known: Any) -> dict[str, float]:
        told.update(known)
        return {}

    monkeypatch.setattr(import_module(f"hmarl.trainer.algorithms.{name}"), "one_after_the_other", noted)
    algorithm.update(rollout, 0.0)
    size = rollout.steps * rollout.batch_size
    alone = told["advantage"](0, torch.ones(size))
    assert float(alone.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(alone.std()) == pytest.approx(1.0, abs=0.02)
    factor = torch.linspace(0.5, 2.0, size)
    torch.testing.assert_close(told["advantage"](1, factor), factor * alone)
    assert told["schedule"] == 1.0
