"""HASAC and what it is made of, against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from hmarl.sdk.errors import UsageError
from hmarl.trainer.algorithms.hasac import Batch, Hasac, HasacSettings, policy_loss, target_entropy, temperature_loss
from hmarl.trainer.experience.replay import Replay, cut_into_transitions
from hmarl.trainer.learning.twin_critic import TwinCritic
from hmarl.trainer.networks.distributions import ActionHead, Categorical, DiagonalGaussian, MultiCategorical
from hmarl.trainer.networks.drawing import draw, seen_action
from training_runs import CPU, new_algorithm

pytestmark = pytest.mark.usefixtures("single_thread")
CHOOSERS, UNLIKE = "toy_environments:masked_discrete", "toy_environments:leaving"
BOX = spaces.Box(-2.0, 2.0, (2,), np.float32)


def small(environment: str = UNLIKE, batch_size: int = 4, steps: int = 8, **settings: Any) -> Any:
    return new_algorithm("hasac", environment, batch_size, steps, None, **{"batch_transitions": 16, **settings})


def collected(environment: str = UNLIKE, **settings: Any) -> tuple[Hasac, Batch]:
    """A fresh algorithm, and all that it did in one rollout."""
    algorithm, rollout, collector = small(environment, **settings)
    collector.collect(algorithm)
    rows = cut_into_transitions(rollout, algorithm.settings.n_step, algorithm.settings.gamma)
    return algorithm, algorithm.prepare(rows)


# --- losses and targets -------------------------------------------------------------------------------------------


def test_the_soft_target_by_hand() -> None:
    """R + γ^m·(min Q⁻ − Σ α_i·ln πⁱ): 3 + 0.5·(min(4, 6) − (0.2·(−1) + 0.1·2)) = 5, and with the second agent gone
    3 + 0.5·(4 + 0.2) = 5.1; after termination 3.
    """
    algorithm, batch = collected(CHOOSERS)
    algorithm.log_temperatures.copy_(torch.tensor([[0.2], [0.1]]).log())
    algorithm.critic.both = lambda theta, states, actions: (
        torch.tensor([[4.0], [6.0]]).expand(2, 3) if theta is algorithm.critic.target else pytest.fail("not the target")
    )
    algorithm.draw_all = lambda moment: ([], torch.tensor([[-1.0, 2.0]]).expand(3, 2))
    then = type(batch.then)([], [], torch.zeros(3, 7), torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]]))
    made = Batch(batch.now, [], torch.full((3,), 3.0), torch.tensor([0.5, 0.5, 0.0]), then)
    assert algorithm.soft_targets(made).tolist() == pytest.approx([5.0, 5.1, 3.0])


def test_the_policys_loss_by_hand() -> None:
    """The mean of 0.5·2 − 4 = −3 and 0.5·(−2) − 1 = −2; the third row, in which the agent is gone, does not count."""
    values = torch.tensor([4.0, 1.0, 99.0], requires_grad=True)
    log_prob = torch.tensor([2.0, -2.0, 50.0], requires_grad=True)
    loss = policy_loss(values, log_prob, torch.tensor(0.5), torch.tensor([1.0, 1.0, 0.0]))
    assert float(loss.detach()) == pytest.approx(-2.5)
    of_values, of_log_prob = torch.autograd.grad(loss, (values, log_prob))
    assert of_values.tolist() == pytest.approx([-0.5, -0.5, 0.0])
    assert of_log_prob.tolist() == pytest.approx([0.25, 0.25, 0.0])


def test_the_temperatures_gradient_by_hand() -> None:
    """−E[ ln π + H̄ ]: entropy 3 and 1 where 1 is wanted makes α fall, entropy 0 where 1 is wanted makes it rise."""
    logs = torch.zeros(2, requires_grad=True)
    log_probs = torch.tensor([[-3.0, 0.0], [-1.0, 77.0]])
    present = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    loss = temperature_loss(logs, log_probs, torch.ones(2, 2), present)
    (gradient,) = torch.autograd.grad(loss, logs)
    assert gradient.tolist() == pytest.approx([1.0, -1.0])


def test_a_temperature_follows_the_entropy_that_is_aimed_at() -> None:
    """Fresh choosers have nearly all the entropy that there is: α falls where less is wanted, and stays when told."""
    for automatic in (True, False):
        algorithm, rollout, collector = small(
            CHOOSERS, gradient_steps=5, automatic_temperature=automatic, initial_temperature=0.5
        )
        collector.collect(algorithm)
        metrics = algorithm.update(rollout, 0.0)
        assert metrics["agent_entropy"] > metrics["target_entropy"] == pytest.approx(0.3 * math.log(3))
        assert (algorithm.temperatures < 0.4999).all() == automatic
        assert automatic or algorithm.temperatures.tolist() == pytest.approx([0.5, 0.5])


def test_what_entropy_is_aimed_at() -> None:
    assert float(target_entropy(ActionHead(BOX), None, -0.5, 0.3)) == -1.0
    choice, branches = ActionHead(spaces.Discrete(4)), ActionHead(spaces.MultiDiscrete([3, 2]))
    assert float(target_entropy(choice, None, -1.0, 0.3)) == pytest.approx(0.3 * math.log(4))
    legal = torch.tensor([[True, True, False, False], [False, False, False, True], [False] * 4])
    assert target_entropy(choice, legal, -1.0, 0.5).tolist() == pytest.approx([0.5 * math.log(2), 0.0, 0.0])
    assert float(target_entropy(branches, None, -1.0, 1.0)) == pytest.approx(math.log(6))
    some = torch.tensor([[True, True, True, False, True]])
    assert target_entropy(branches, some, -1.0, 1.0).tolist() == pytest.approx([math.log(3)])


# --- actions ------------------------------------------------------------------------------------------------------


def test_a_squashed_gaussians_density_is_that_of_the_squashed_action() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_std, noise = torch.randn(3, 6, 2, generator=generator).unbind(0)
    drawn = draw(DiagonalGaussian(mean, log_std), noise)
    reference = TransformedDistribution(Independent(Normal(mean, log_std.exp()), 1), TanhTransform(cache_size=1))
    raw = mean + log_std.exp() * noise
    torch.testing.assert_close(drawn.seen, torch.tanh(raw))
    mild = raw.abs().amax(-1) < 3  # where the reference itself is exact
    assert mild.sum() > 3
    torch.testing.assert_close(drawn.log_prob[mild], reference.log_prob(torch.tanh(raw))[mild], rtol=1e-4, atol=1e-4)
    far = draw(DiagonalGaussian(torch.tensor([30.0]), torch.zeros(1)), torch.zeros(1))
    assert float(far.log_prob) == pytest.approx(-0.5 * math.log(2 * math.pi) + 60.0 - 2 * math.log(2), rel=1e-5)


def test_a_squashed_gaussian_passes_gradients_to_mean_and_deviation() -> None:
    """da/dμ = 1 − a², da/d ln σ = (1 − a²)·σ·ε at u = 0.5 + 0.5·1."""
    mean, log_std = torch.tensor([0.5], requires_grad=True), torch.tensor([math.log(0.5)], requires_grad=True)
    drawn = draw(DiagonalGaussian(mean, log_std), torch.ones(1))
    slopes = torch.autograd.grad(drawn.seen.sum(), (mean, log_std))
    expected = 1.0 - math.tanh(1.0) ** 2
    assert [float(slope) for slope in slopes] == pytest.approx([expected, 0.5 * expected])


def test_a_choice_is_one_hot_with_the_gradient_of_the_softmax() -> None:
    logits, noise = torch.tensor([[0.0, 1.0, 5.0]], requires_grad=True), torch.tensor([[0.5, 0.2, 0.1]])
    mask = torch.tensor([[True, True, False]])
    distribution = Categorical(logits, mask)
    drawn = draw(distribution, noise)
    assert drawn.seen.tolist() == [[0.0, 1.0, 0.0]]
    assert float(drawn.log_prob.detach()) == pytest.approx(-float(distribution.entropy().detach()))
    (gradient,) = torch.autograd.grad((drawn.seen * torch.tensor([2.0, 0.0, 9.0])).sum(), logits)
    p = 1.0 / (1.0 + math.exp(0.7))  # of the first choice, noise included
    assert gradient.flatten().tolist() == pytest.approx([2 * p * (1 - p), -2 * p * (1 - p), 0.0])


def test_actions_are_seen_as_they_were_drawn() -> None:
    assert seen_action(ActionHead(spaces.Discrete(3)), torch.tensor([[2, 0]])).tolist() == [[[0, 0, 1], [1, 0, 0]]]
    branches = ActionHead(spaces.MultiDiscrete([3, 2]))
    assert seen_action(branches, torch.tensor([[2, 0]])).tolist() == [[0, 0, 1, 1, 0]]
    both = MultiCategorical(torch.tensor([[0.0, 0.0, 4.0, 4.0, 0.0]]), (3, 2))
    assert draw(both, torch.zeros(1, 5)).seen.tolist() == [[0, 0, 1, 1, 0]]
    assert float(seen_action(ActionHead(BOX), torch.tensor([0.5, 9.0]))[0]) == pytest.approx(math.tanh(0.5))


def test_a_seen_deviation_is_the_networks_own_output() -> None:
    head = ActionHead(BOX, "tanh", 0.5, seen_std=True)
    assert (head.action_size, head.output_size, head.extra_size) == (2, 4, 0)
    distribution = head.distribution(torch.tensor([[1.0, 2.0, 0.0, math.log(2)]]), torch.zeros(0))
    assert isinstance(distribution, DiagonalGaussian)
    assert distribution.mean.tolist() == [[1.0, 2.0]]
    torch.testing.assert_close(distribution.log_std.exp(), torch.tensor([[0.5, 1.0]]))
    assert head.draw_perturbations((3,), torch.Generator()).shape == (3, 2)


# --- experience ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [1, 3, 20])
def test_transitions_by_loops(ahead: int) -> None:
    """Episodes of five steps; odd seeds terminate, even ones are cut off."""
    algorithm, rollout, collector = small(steps=12)
    collector.collect(algorithm)
    rows = {name: values.unflatten(0, (12, 4)) for name, values in cut_into_transitions(rollout, ahead, 0.5).items()}
    finals = dict(zip(rollout.final_places, rollout.final_states, strict=True))
    for t in range(12):
        for b in range(4):
            earned, last = 0.0, t
            for k in range(ahead):
                earned, last = earned + 0.5**k * float(rollout.team_rewards[t + k, b]), t + k
                if rollout.ended[last, b] or last == 11:
                    break
            assert float(rows["rewards"][t, b]) == pytest.approx(earned, abs=1e-6)
            following = finals.get((last, b), rollout.states[last + 1, b])
            assert torch.equal(rows["next_states"][t, b], following)
            discount = 0.0 if rollout.terminated[last, b] else 0.5 ** (last - t + 1)
            assert float(rows["discounts"][t, b]) == pytest.approx(discount)
            assert torch.equal(rows["next_observations.0"][t, b], rollout.next_observations(0)[last, b])
            assert torch.equal(rows["next_action_masks.0"][t, b], rollout.next_action_masks(0)[last, b])
            assert torch.equal(rows["next_active"][t, b], rollout.next_active()[last, b])
    assert torch.equal(rows["actions.1"], rollout.actions[1])
    assert rollout.terminated.any()
    assert rollout.truncated.any()


def test_broken_rewards_never_reach_the_buffer() -> None:
    algorithm, rollout, collector = small("toy_environments:poisoned", gradient_steps=1)
    for _ in range(4):
        collector.collect(algorithm)
        algorithm.update(rollout, 0.0)
    assert rollout.rewards.isnan().all()
    assert len(algorithm.replay) > 0
    assert all(torch.isfinite(rows).all() for rows in algorithm.replay.state_dict().values())


# --- critics and turns --------------------------------------------------------------------------------------------


def test_the_smaller_value_is_believed_and_both_are_taught() -> None:
    """Without hidden layers, Q = w·(s, a): of 2 and −1 the latter. Errors 2 − 5 and −1 − 5; the target has followed by
    a tenth.
    """
    settings = HasacSettings(critic_hidden_sizes=(), critic_learning_rate=0.5, target_rate=0.1)
    critic = TwinCritic(1, 1, settings, torch.Generator().manual_seed(0), CPU)
    critic.theta.copy_(torch.tensor([[2.0, 0.0, 0.0], [0.0, -1.0, 0.0]]))
    critic.target.zero_()
    state, actions = torch.ones(1, 1), [torch.ones(1, 1)]
    assert critic.smaller(critic.theta, state, actions).tolist() == [-1.0]
    metrics = critic.fit(state, actions, torch.tensor([5.0]), 1.0)
    assert float(metrics["critic_loss"]) == pytest.approx((9.0 + 36.0) / 2)
    assert critic.theta.flatten().tolist() == pytest.approx([2.5, 0.5, 0.5, 0.5, -0.5, 0.5], rel=1e-3)
    critic.follow()
    torch.testing.assert_close(critic.target, 0.1 * critic.theta)


def test_agents_improve_one_after_the_other_given_the_newest_policies_of_the_others() -> None:
    """Nearly deterministic policies, long steps: what the critic is asked shows whose policies were new."""
    algorithm, batch = collected(UNLIKE, learning_rate=0.3, initial_std=0.007)
    before = algorithm.draw_all(batch.now)[0]
    asked: list[list[Tensor]] = []
    smaller = algorithm.critic.smaller

    def asking(theta: Tensor, states: Tensor, actions: list[Tensor]) -> Tensor:
        asked.append([each.detach().clone() for each in actions])
        return smaller(theta, states, actions)

    algorithm.critic.smaller = asking
    actions = [each.clone() for each in before]
    algorithm._improve_agent(1, batch.now, actions, 1.0)
    after = algorithm.draw_all(batch.now)[0]
    algorithm._improve_agent(0, batch.now, actions, 1.0)
    assert (after[1] - before[1]).abs().max() > 0.2, "the arm's policy has moved"
    torch.testing.assert_close(asked[0][1], before[1], atol=0.1, rtol=0)
    torch.testing.assert_close(asked[1][1], after[1], atol=0.1, rtol=0)


def test_all_agents_improve_and_those_who_share_do_so_together() -> None:
    for shared in (False, True):
        algorithm, rollout, collector = small(CHOOSERS, gradient_steps=2, share_parameters=shared)
        collector.collect(algorithm)
        before = algorithm.policies[0].theta.clone()
        algorithm.update(rollout, 0.0)
        assert len(before) == (1 if shared else 2)
        assert (algorithm.policies[0].theta != before).any(-1).all()


def test_agents_that_have_left_contribute_nothing() -> None:
    algorithm, rollout, collector = small(UNLIKE, steps=5)
    collector.collect(algorithm)
    rows = cut_into_transitions(rollout, 2, 0.9)
    assert not rows["active"].all()

    def update_with(change: float) -> tuple[Tensor, Tensor]:
        changed = dict(rows)
        for name, agents in (("observations", "active"), ("next_observations", "next_active")):
            for g, group in enumerate(algorithm.spec.groups):
                away = ~rows[agents][:, list(group.agents)].unsqueeze(-1)
                changed[f"{name}.{g}"] = rows[f"{name}.{g}"] + change * away
        batch = algorithm.prepare(changed)
        algorithm.noise_generator.manual_seed(0)
        loss = policy_loss(
            algorithm.critic.smaller(algorithm.critic.theta, batch.now.states, batch.actions),
            algorithm.draw_all(batch.now)[1][:, 0],
            torch.tensor(0.5),
            batch.now.present[:, 0],
        )
        return algorithm.soft_targets(batch), loss

    for ours, theirs in zip(update_with(0.0), update_with(3.0), strict=True):
        torch.testing.assert_close(ours, theirs)


# --- deployment and learning --------------------------------------------------------------------------------------


def test_the_deployed_arm_squashes_and_rescales() -> None:
    """Bounds −1 to 1 and −0.1 to 0.7: middles 0 and 0.3, half widths 1 and 0.4."""
    algorithm, _, _ = small(UNLIKE)
    module = algorithm.deployable(1)
    (noise,) = module.describe("").noises
    assert noise.shape == [2]
    with torch.no_grad():
        observation = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
        drawn = torch.full((7, 2), 0.7)
        outputs = dict(zip(module.output_names, module(observation, drawn), strict=True))
        output = algorithm.policies[1].distribution(
            algorithm.policies[1].row(0),
            algorithm.policies[1].inputs(algorithm.observation_normalisers[1](observation.unsqueeze(1)))[:, 0],
        )
        squashed = torch.tanh(output.mean + output.log_std.exp() * 0.7)
    expected = torch.tensor([0.0, 0.3]) + torch.tensor([1.0, 0.4]) * squashed
    torch.testing.assert_close(outputs["action"], expected)
    assert outputs["action_mean"].shape == (7, 2)


def test_a_temperature_that_leaves_nothing_of_the_rewards_is_told() -> None:
    algorithm, _, _ = small(CHOOSERS)
    assert algorithm.advice({"temperature": 9.0, "q_mean": 1.0}) == []
    assert "target_entropy" in algorithm.advice({"temperature": 11.0})[0]
    (advice,) = algorithm.advice({"temperature": 1.0, "q_mean": 1e4})
    assert "run away" in advice
    assert "algorithm.critic_learning_rate" in advice, "learning_rate is the policies'"


def test_unlike_agents_learn_together() -> None:
    """A scout's choice, an arm's vector and a speaker's two choices, all to be read off their own observations: fresh
    agents earn about 0.5 an episode, and all at their best 2·1 + 4·0 + 5·1 = 7.
    """
    algorithm, rollout, collector = new_algorithm(
        "hasac", UNLIKE, 16, 10, None, hidden_sizes=(32,), critic_hidden_sizes=(64,), gamma=0.0, n_step=1,
        learning_rate=3e-3, critic_learning_rate=3e-3, target_entropy=-2.0, target_entropy_share=0.1,
        batch_transitions=128, gradient_steps=10,
    )  # fmt: skip
    earned = []
    for _ in range(20):
        collector.collect(algorithm)
        algorithm.update(rollout, 0.0)
        earned.append(float(rollout.team_rewards.sum() / 32))
    assert np.mean(earned[-5:]) > np.mean(earned[:3]) + 2.0, earned


def test_whoever_acts_elsewhere_is_sent_neither_critics_nor_optimisers() -> None:
    algorithm, _, _ = new_algorithm("hasac", "toy_environments:leaving", 2, 5)
    sent = algorithm.acting_components()
    assert "policies.0" in sent
    assert not [name for name in sent if "critic" in name or "optimiser" in name]


def test_more_rows_than_there_is_memory_for_are_told_by_the_setting() -> None:
    with pytest.raises(UsageError, match=r"algorithm\.replay_capacity: got 10,0[0,]*, .*each takes 16 bytes"):
        Replay(10**13).add({"rewards": torch.zeros(2, 4)})
