"""What agents remember of numbers that are not finite is forgotten when the rollout is passed over."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hmarl.trainer.contract.acting import forgotten_where_broken
from hmarl.trainer.runs.training import Training
from training_runs import tiny_config

pytestmark = pytest.mark.usefixtures("single_thread")
NAN, INFINITE = float("nan"), float("inf")


def test_what_is_forgotten_hand_computed() -> None:
    """Of two agents in two environments; a guider's; what is no real number, or all environments', stays."""
    state = {
        "memories.0": torch.tensor([[[1.0, 2.0], [3.0, NAN]], [[INFINITE, 6.0], [7.0, 8.0]]]),
        "guider_memory": torch.tensor([[[1.0], [NAN]], [[3.0], [4.0]]]),
        "earned": torch.tensor([NAN, 5.0]),
        "remaining": torch.tensor([1, 2]),
        "local_share": torch.tensor(0.5, dtype=torch.float64),
    }
    forgotten = forgotten_where_broken(state)
    assert forgotten["memories.0"].tolist() == [[[1.0, 2.0], [0.0, 0.0]], [[0.0, 0.0], [7.0, 8.0]]]
    assert forgotten["guider_memory"].tolist() == [[[0.0], [0.0]], [[3.0], [4.0]]]
    assert forgotten["earned"].tolist() == [0.0, 5.0]
    assert forgotten["remaining"].tolist() == [1, 2]
    assert float(forgotten["local_share"]) == 0.5


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        ("happo", {"recurrent": True}),
        ("hcpo", {"recurrent": True}),
        ("qmix", {"recurrent": True}),
        ("maven", {"recurrent": True}),
        ("sable", {}),
        ("magpo", {"recurrent": True}),
    ],
)
def test_one_observation_that_is_nan_costs_one_rollout(algorithm: str, settings: dict[str, Any]) -> None:
    """Rollouts of two steps, episodes of five: the one of the NaN goes on for two more rollouts."""
    run = {"rollout_length": 2, "environments": 3}
    training = Training(tiny_config(algorithm, "toy_environments:blinded_once", settings, run))
    try:
        training.collect()
        _, divergence = training.update(0.0)
        assert divergence is not None
        assert "observation" in divergence.why
        for _ in range(2):
            training.collect()
            metrics, divergence = training.update(0.0)
            assert divergence is None
            assert metrics.get("replay_fragments", 1.0) > 0
    finally:
        training.close()
