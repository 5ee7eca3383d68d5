"""QMIX and VDN: what is theirs beside MAVEN's parts, against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hmarl.sdk.errors import UsageError
from hmarl.trainer.experience.replay import cut_into_fragments
from hmarl.trainer.learning.reward_scale import runaway_advice
from hmarl.trainer.mixing.mixer import SumMixer
from hmarl.trainer.mixing.team_value import Batch
from hmarl.trainer.networks.distributions import Categorical
from hmarl.trainer.networks.optimiser import FlatAdam, descend_all
from training_runs import new_algorithm, of_use

pytestmark = pytest.mark.usefixtures("single_thread")
CHOOSERS = "toy_environments:masked_discrete"
BOTH = ("qmix", "vdn")


def small(name: str, environment: str = CHOOSERS, steps: int = 8, **settings: Any) -> Any:
    sizes = of_use(name, {"mixing_hidden_sizes": (8,), "mixing_embedding": 4})
    return new_algorithm(name, environment, 4, steps, None, **{**sizes, **settings})


def batch_of(rewards: list[float], terminated: list[bool]) -> Batch:
    """One fragment of two agents who see nothing and have taken action 1."""
    length = len(rewards)
    return Batch(
        inputs=[],
        masks=[None],
        memories=[None],
        actions=[torch.ones(2, length, 1, dtype=torch.int64)],
        present=torch.ones(length + 1, 1, 2),
        states=torch.zeros(length + 1, 1, 7),
        context=torch.zeros(length + 1, 1, 7),
        rewards=torch.tensor(rewards).unsqueeze(-1),
        terminated=torch.tensor(terminated).unsqueeze(-1),
        valid=torch.ones(length, 1, dtype=torch.bool),
    )


def test_the_sum_weighs_all_utilities_alike_whatever_the_state() -> None:
    utilities = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mixer = SumMixer()
    assert mixer.initialise(torch.Generator()) is None
    total = mixer(None, utilities, torch.randn(50, 5))
    (slope,) = torch.autograd.grad(total.sum(), utilities)
    torch.testing.assert_close(total, utilities.sum(-1))
    assert (slope == 1.0).all()


def test_vdns_targets_and_gradient_by_hand() -> None:
    """Utilities of action 1 are 1 and 2, and 10 and 20 in the target networks, whose best action is 0: worth 100, but
    the learnt utilities decide. V = 30, y₀ = 1 + ½·30 = 16 and y₁ = 4; Q_tot = 3.

    The loss is (13² + 1²)/2, and every agent's utility has its whole gradient: (3 − 16) and (3 − 4).
    """
    algorithm, _, _ = small("vdn", gamma=0.5, td_lambda=0.0, normalise_values=False)
    utilities = torch.zeros(2, 3, 1, 4)
    utilities[0, ..., 1], utilities[1, ..., 1] = 1.0, 2.0
    utilities.requires_grad_()
    kept = torch.full((2, 3, 1, 4), 100.0)
    kept[0, ..., 1], kept[1, ..., 1] = 10.0, 20.0
    batch, learnt = batch_of([1.0, 4.0], [False, True]), [Categorical(utilities)]
    algorithm.value.utilities = lambda thetas, batch: [Categorical(kept)]
    returns = algorithm.value.lambda_returns(batch, learnt)
    assert returns.flatten().tolist() == pytest.approx([16.0, 4.0])
    loss, metrics = algorithm.value.td_loss(algorithm.value.learnt, batch, learnt, returns)
    assert float(loss.detach()) == pytest.approx((13.0**2 + 1.0) / 2)
    assert float(metrics["q_mean"]) == pytest.approx(10.0)
    (gradient,) = torch.autograd.grad(loss, utilities)
    for agent in range(2):
        assert gradient[agent, :, 0, 1].tolist() == pytest.approx([-13.0, -1.0, 0.0])
    assert gradient.count_nonzero() == 4, "only of the actions that were taken"


def test_lambda_joins_rewards_and_values() -> None:
    """λ = ½, γ = ½, V = 30: y₁ = 4 + ½·30 = 19, and y₀ = 1 + ½·(½·30 + ½·19) = 13.25."""
    algorithm, _, _ = small("vdn", gamma=0.5, td_lambda=0.5, normalise_values=False)
    kept = torch.zeros(2, 3, 1, 4)
    kept[0, ..., 1], kept[1, ..., 1] = 10.0, 20.0
    algorithm.value.utilities = lambda thetas, batch: [Categorical(kept)]
    returns = algorithm.value.lambda_returns(batch_of([1.0, 4.0], [False, False]), [Categorical(kept)])
    assert returns.flatten().tolist() == pytest.approx([13.25, 19.0])


@pytest.mark.parametrize("name", BOTH)
def test_the_best_and_the_random_actions_are_legal(name: str) -> None:
    """The environment itself refuses illegal actions."""
    for epsilon in (0.0, 1.0):
        algorithm, rollout, collector = small(name, steps=40, epsilon_start=epsilon)
        collector.collect(algorithm)
        counts = torch.bincount(rollout.actions[0].flatten(), minlength=4)
        assert epsilon < 1.0 or counts.min() > 0.5 * counts.max(), "exploration is uniform"
        batch = algorithm.value.prepare(cut_into_fragments(rollout, 40))
        best = algorithm.value.utilities(algorithm.value.learnt, batch)[0].mode()
        assert batch.masks[0].gather(-1, best.flatten(1, 2).unsqueeze(-1)).all()


@torch.no_grad()
def test_utilities_of_replayed_episodes_are_those_of_acting_with_agents_who_come_back() -> None:
    algorithm, rollout, collector = small("vdn", "toy_environments:returning", 10, recurrent=True, chunk_length=5)
    (policy,) = algorithm.policies
    inner, acted = policy.step, []

    def spy(*arguments: Any) -> Any:
        said = inner(*arguments)
        acted.append(said[0].logits)
        return said

    policy.step = spy
    collector.collect(algorithm)
    del policy.step
    team = algorithm.value
    (utilities,) = team.utilities(team.thetas, team.prepare(cut_into_fragments(rollout, 5)))
    fragments = utilities.logits[:, :5].unflatten(2, (2, 4))  # [N, L, chunks, B, A]
    torch.testing.assert_close(fragments.permute(2, 1, 0, 3, 4).flatten(0, 1), torch.stack(acted))


@pytest.mark.parametrize("name", BOTH)
def test_exploration_falls_with_the_steps(name: str) -> None:
    algorithm, rollout, collector = small(
        name, epsilon_start=0.8, epsilon_final=0.2, exploration_steps=64, gradient_steps=1
    )
    shares = []
    for _ in range(3):  # of 32 environment steps each
        collector.collect(algorithm)
        shares.append(algorithm.update(rollout, 0.0)["epsilon"])
    assert shares == pytest.approx([0.5, 0.2, 0.2])


@pytest.mark.parametrize("name", BOTH)
def test_the_target_networks_follow_by_their_rate(name: str) -> None:
    algorithm, rollout, collector = small(name, gradient_steps=1, target_rate=0.25)
    before = [target.clone() for target in algorithm.value.targets]
    assert len(before) == (2 if name == "qmix" else 1), "a sum has nothing to learn"
    collector.collect(algorithm)
    algorithm.update(rollout, 0.0)
    for old, target, theta in zip(before, algorithm.value.targets, algorithm.value.thetas, strict=True):
        assert not torch.equal(old, theta)
        torch.testing.assert_close(target, 0.75 * old + 0.25 * theta)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("environment", ["toy_environments:multi_discrete", "toy_environments:leaving"])
def test_other_actions_are_refused_by_name(name: str, environment: str) -> None:
    with pytest.raises(
        UsageError, match=rf"{name}: agent '(brancher|arm)' .* expected Discrete .* use hasac, or happo"
    ):
        small(name, environment)


def test_the_deployed_policy_is_greedy() -> None:
    algorithm, _, _ = small("qmix")
    module = algorithm.deployable(1)
    assert module.describe("").noises == []
    observation = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(20, 4, dtype=torch.bool)
    mask[:, 2] = False
    outputs = dict(zip(module.output_names, module(observation, mask), strict=True))
    assert torch.equal(outputs["action"], outputs["action_logits"].argmax(-1))
    assert (outputs["action"] != 2).all()


def test_values_that_run_away_are_told() -> None:
    """At γ = 0.99 rewards that are all alike add up to 10, scaled."""
    for q_mean in (-99.0, 99.0):
        assert runaway_advice({"q_mean": q_mean}, 0.99, True) is None
    assert "algorithm.target_rate" in str(runaway_advice({"q_mean": -101.0}, 0.99, True))
    assert runaway_advice({"q_mean": 1e6}, 0.99, False) is None, "rewards may be as large"
    assert runaway_advice({}, 0.99, True) is None
    for name in ("qmix", "vdn", "maven"):
        algorithm, *_ = small(name)
        assert "run away" in algorithm.advice({"q_mean": 1e3})[0]


def test_one_loss_moves_all_and_the_largest_gradient_is_told() -> None:
    """Gradients (3, 4) and (−12): norms 5 and 12."""
    optimisers = [FlatAdam(torch.zeros(2), 0.5, 1.0), FlatAdam(torch.zeros(1), 0.5, 100.0)]
    first, second = (optimiser.parameter for optimiser in optimisers)
    norm = descend_all(optimisers, 3.0 * first[0] + 4.0 * first[1] - 12.0 * second.sum(), schedule=0.5)
    assert float(norm) == pytest.approx(12.0)
    assert first.tolist() == pytest.approx([-0.25, -0.25], rel=1e-3), "Adam's first step is the step size"
    assert second.tolist() == pytest.approx([0.25], rel=1e-3)
