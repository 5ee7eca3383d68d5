"""Two agents who do what they are told: one thing by their local conductors, another by the conductor."""

from __future__ import annotations

from typing import Any

import torch

from hmarl.trainer.algorithms.hcpo import Hcpo
from hmarl.trainer.networks.policies import GroupPolicy
from training_runs import new_hcpo

TASK = "coordsum/sum-to-10"
SETTINGS: dict[str, Any] = {"instructions": 2, "conductor_hidden_sizes": (8,), "distillation_learning_rate": 0.05}


def always(policy: GroupPolicy, member: int, logits: list[float]) -> None:
    """Makes one member say the same whatever it sees."""
    row = policy.theta[member if len(policy.theta) > 1 else 0]
    row.zero_()
    weights = policy.network.named(row[: policy.network.size])
    last = max(key for key in weights if key.endswith("bias"))
    weights[last][: len(logits)] = torch.tensor(logits)


def told_pair(reversed_second: bool) -> Hcpo:
    """On ``TASK``: two agents who say 4 for instruction 0 and 6 for 1 (the second the other way round, if told so).
    Their local conductors say 0 and 1, the conductor 0 to both.
    """
    algorithm, _, _ = new_hcpo(TASK, **SETTINGS)
    assert algorithm.conductor.local is not None
    (policy,) = algorithm.policies
    for member in range(2):
        row = policy.theta[member]
        row.zero_()
        weights = policy.network.named(row[: policy.network.size])
        weights["0.weight"][:2, -2:] = torch.eye(2)
        turned = torch.eye(2).flip(0) if member == 1 and reversed_second else torch.eye(2)
        weights["1.weight"][:2, :2] = 50.0 * turned
        always(algorithm.conductor.local.policies[0], member, [3.0, 0.0] if member == 0 else [0.0, 3.0])
    always(algorithm.conductor.policy, 0, [3.0, 0.0])
    return algorithm
