"""By what rewards that are replayed are scaled."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.learning.reward_scale import RewardScale
from toy_environments import masked_discrete

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("horizon", "guessed", "steps"), [(25, False, 25), (400, False, 100), (25, True, 100), (None, False, 100)]
)
def test_rewards_add_up_over_a_declared_horizon_or_over_what_the_discount_leaves(
    horizon: int | None, guessed: bool, steps: int
) -> None:
    spec = replace(masked_discrete(2).spec, horizon=horizon, horizon_guessed=guessed)
    rollout = Rollout(spec, 4, 2, CPU)
    rollout.team_rewards = torch.tensor([2.0, -2.0]).repeat(4, 1)  # of root mean square 2
    scale = RewardScale(0.99, spec, CPU)
    scale.update(rollout)
    assert float(scale.factor) == pytest.approx(1 / (2 * steps**0.5), rel=1e-5)
