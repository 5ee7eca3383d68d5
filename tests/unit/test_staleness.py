"""Rollouts that older policies have collected: importance weights, and what they do to estimates and surrogates."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hmarl.runtime.errors import UsageError
from hmarl.trainer.networks.settings import validate
from hmarl.trainer.runs.settings import RunSettings
from hmarl.trainer.runs.training import Training
from hmarl.trainer.sequential.estimates import estimate_by
from hmarl.trainer.sequential.samples import TeamSamples
from hmarl.trainer.sequential.staleness import correct, importance
from training_runs import new_algorithm, of_use, team_samples, tiny_config


def collected(environment: str = "mpe/simple_spread", **settings: Any) -> tuple[Any, Any]:
    """An algorithm, and a rollout of its own policies with their log-probabilities."""
    algorithm, rollout, collector = new_algorithm("happo", environment, 3, 8, **settings)
    algorithm.local_acting.records_log_probs = True
    collector.collect(algorithm)
    return algorithm, rollout


@pytest.mark.parametrize("recurrent", [False, True])
def test_policies_that_have_not_moved_weigh_nothing(recurrent: bool) -> None:
    algorithm, rollout = collected(recurrent=recurrent)
    torch.testing.assert_close(importance(team_samples(algorithm, rollout)), torch.ones(8, 3), rtol=1e-4, atol=1e-4)
    told = correct(team_samples(algorithm, rollout))
    assert told["stale_ratio"] == pytest.approx(1.0, abs=1e-4)


def test_importance_is_the_product_over_the_agents() -> None:
    algorithm, rollout = collected()
    members = rollout.log_probs[0].shape[-1]
    rollout.log_probs[0][2, 1] -= math.log(3.0) / members  # the action was less likely when it was taken
    rollout.log_probs[0][4, 0, 0] += math.log(2.0)
    ratio = importance(team_samples(algorithm, rollout))
    assert float(ratio[2, 1]) == pytest.approx(3.0, rel=1e-3)
    assert float(ratio[4, 0]) == pytest.approx(0.5, rel=1e-3)
    correct(team_samples(algorithm, rollout))
    assert float(rollout.correction[2, 1]) == 1.0
    assert float(rollout.correction[4, 0]) == pytest.approx(0.5, rel=1e-3)


def test_agents_that_have_left_do_not_count() -> None:
    algorithm, rollout = collected("toy_environments:leaving")
    gone = (~rollout.active).nonzero()
    assert len(gone), "an agent must leave, or nothing is tested"
    for g, group in enumerate(rollout.spec.groups):
        for member, agent in enumerate(group.agents):
            rollout.log_probs[g][:, :, member][~rollout.active[:, :, agent]] -= 5.0
    ratio = importance(team_samples(algorithm, rollout))
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=1e-4, atol=1e-4)


def test_each_step_weighs_as_much_in_every_agents_surrogate() -> None:
    algorithm, rollout = collected()
    rollout.correction = torch.rand(8, 3)
    team = TeamSamples(rollout, algorithm.policies, algorithm.features(rollout))
    for agent in range(3):
        weight = team.of_agent(agent).surrogate_weight
        assert weight is not None
        torch.testing.assert_close(weight, rollout.correction.flatten())
    both = team.of_members(0, slice(0, 2)).surrogate_weight
    assert both is not None
    torch.testing.assert_close(both.view(8, 3, 2)[..., 1], rollout.correction)


def test_estimates_by_hand() -> None:
    """γ = 0.5, λ = 1, V = 0: Â_1 = 4; Â_0 = 2 + 0.5·c_1·4 with c_1 = 0.25; targets c_t·Â_t."""
    rollout = SimpleNamespace(
        team_rewards=torch.tensor([[2.0], [4.0]]),
        ended=torch.zeros(2, 1, dtype=torch.bool),
        correction=torch.tensor([[0.5], [0.25]]),
        next_values=lambda values, finals: values[1:],
    )
    discounting = SimpleNamespace(gamma=0.5, gae_lambda=1.0)
    estimate = estimate_by(rollout, torch.zeros(2, 1), torch.zeros(3, 1), torch.zeros(0), discounting)  # type: ignore[arg-type]
    torch.testing.assert_close(estimate.advantages, torch.tensor([[2.5], [4.0]]))
    torch.testing.assert_close(estimate.returns, torch.tensor([[1.25], [1.0]]))


def test_what_cannot_be_corrected_is_refused() -> None:
    settings = {"workers": 2, "stale_updates": 1}
    with pytest.raises(UsageError, match=r"run\.stale_updates: got 1 for magpo.*expected 0"):
        Training(tiny_config("magpo", "mpe/simple_spread", {"embedding_size": 8}, settings))
    with pytest.raises(
        UsageError, match=r"run\.stale_updates: got 1 for hasac, which learns from replayed.*expected 0"
    ):
        Training(tiny_config("hasac", "mpe/simple_spread", {}, settings))
    with pytest.raises(UsageError, match=r"run\.stale_updates: got 1.*0 without workers"):
        validate(RunSettings, {"stale_updates": 1}, "run")
    with pytest.raises(UsageError, match=r"run\.workers: got 5.*run\.environments=4"):
        validate(RunSettings, {"environments": 4, "workers": 5}, "run")


@pytest.mark.parametrize("name", ["happo", "mappo", "ippo", "haa2c", "hamdpo", "a2po", "hatrpo"])
def test_steps_of_no_weight_move_no_policy(name: str) -> None:
    """They count in no algorithm's surrogate."""
    nothing_else = {"entropy_coefficient": 0.0, "kl_regularisation": False}
    algorithm, rollout, collector = new_algorithm(name, "mpe/simple_spread", 3, 8, **of_use(name, nothing_else))
    collector.collect(algorithm)
    before = [policy.theta.clone() for policy in algorithm.policies]

    def moved(weight: float) -> float:
        rollout.correction = torch.full((8, 3), weight)
        algorithm.update(rollout, 0.0)
        return max(
            float((policy.theta - old).abs().max()) for policy, old in zip(algorithm.policies, before, strict=True)
        )

    assert moved(0.0) < 1e-6
    assert moved(1.0) > 1e-5
