"""MAVEN and what it is made of, against numbers worked out by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from hmarl.runtime.session import noise_for
from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import AgentSpec
from hmarl.trainer.algorithms.maven import Maven, MavenSettings
from hmarl.trainer.experience.replay import Replay, cut_into_fragments
from hmarl.trainer.experience.rollout import Collector, Rollout
from hmarl.trainer.mixing.latent import LatentPolicy, latent_log_likelihood
from hmarl.trainer.mixing.mixer import MonotoneMixer
from hmarl.trainer.mixing.team_value import Batch
from hmarl.trainer.networks.distributions import Categorical
from hmarl.trainer.networks.flat import Mlp
from hmarl.trainer.networks.settings import AlgorithmSettings
from toy_environments import ToyEnvironment
from training_runs import CPU, new_algorithm

pytestmark = pytest.mark.usefixtures("single_thread")
CHOOSERS = "toy_environments:masked_discrete"
SMALL: dict[str, Any] = {
    "hidden_sizes": (8,),
    "mixing_hidden_sizes": (8,),
    "latent_hidden_sizes": (8,),
    "mixing_embedding": 4,
}


def maven(environment: str = CHOOSERS, batch_size: int = 4, steps: int = 8, **settings: Any) -> Any:
    return new_algorithm("maven", environment, batch_size, steps, **{**SMALL, **settings})


def leaving_team(steps: int = 5) -> tuple[Maven, Rollout, Collector]:
    """Two choosers, the first of whom leaves after two steps."""
    agents = tuple(AgentSpec(f"chooser_{i}", 3, spaces.Discrete(4), has_action_mask=True) for i in range(2))
    made = ToyEnvironment("toy/leaving_choosers", agents, 3, leaves={0: 2})
    algorithm = Maven(made.spec, MavenSettings(**SMALL), torch.Generator().manual_seed(3), CPU)
    rollout = Rollout(made.spec, steps, 3, CPU)
    return algorithm, rollout, Collector(made, rollout, np.arange(3))


# --- mixing -------------------------------------------------------------------------------------------------------


def test_the_teams_value_never_falls_when_a_utility_rises() -> None:
    generator = torch.Generator().manual_seed(0)
    mixer = MonotoneMixer(3, 5, (8,), 4)
    theta = torch.randn(mixer.network.size, generator=generator)
    utilities = torch.randn(50, 3, generator=generator, requires_grad=True)
    total = mixer(theta, utilities, torch.randn(50, 5, generator=generator))
    (slope,) = torch.autograd.grad(total.sum(), utilities)
    assert total.shape == (50,)
    assert (slope >= 0).all()
    assert (slope > 0).any()


def test_every_agents_best_action_is_the_teams_best() -> None:
    """IGM, by enumerating all joint actions."""
    generator = torch.Generator().manual_seed(1)
    mixer = MonotoneMixer(3, 2, (8,), 4)
    theta = torch.randn(mixer.network.size, generator=generator)
    for _ in range(20):
        utilities, context = torch.randn(3, 4, generator=generator), torch.randn(2, generator=generator)
        joint = list(itertools.product(range(4), repeat=3))
        totals = [
            mixer(theta, torch.stack([u[a] for u, a in zip(utilities, acts, strict=True)]), context) for acts in joint
        ]
        own_best = totals[joint.index(tuple(utilities.argmax(-1).tolist()))]
        assert own_best >= torch.stack(totals).max() - 1e-6


def test_the_mixing_network_by_hand() -> None:
    """E = 1, weights from biases alone: |−2|·u₀ + |3|·u₁ + 0.5, then |−4|·elu(·) + 1."""
    mixer = MonotoneMixer(2, 1, (), 1)
    theta = torch.tensor([0.0] * 5 + [-2.0, 3.0, 0.5, -4.0, 1.0])
    assert mixer(theta, torch.tensor([1.0, 2.0]), torch.zeros(1)) == pytest.approx(4 * 8.5 + 1)
    below = mixer(theta, torch.tensor([-1.0, 0.0]), torch.zeros(1))
    assert float(below) == pytest.approx(4 * math.expm1(-1.5) + 1, rel=1e-5)


# --- targets and loss ---------------------------------------------------------------------------------------------


def hand_made() -> tuple[Maven, Batch, list[Categorical]]:
    """Two fragments of two agents, L = 2; Q_tot is the sum; the first ends by termination after two steps, the second
    goes on after one. The learnt utilities prefer action 1, the target networks value it at 1, 2, 4 by step.
    """
    algorithm, _, _ = maven(gamma=0.5, td_lambda=0.5, latents=2)
    algorithm.value.mixer = lambda theta, utilities, context: utilities.sum(-1)
    worth = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1)
    target = torch.zeros(2, 3, 2, 4)
    target[..., 0], target[..., 1] = 100.0, worth  # double Q-learning must not take the 100
    algorithm.value.utilities = lambda thetas, batch: [Categorical(target)]
    learnt = torch.zeros(2, 3, 2, 4)
    learnt[..., 1] = 3.0
    batch = Batch(
        inputs=[],
        masks=[None],
        memories=[None],
        actions=[torch.ones(2, 2, 2, dtype=torch.int64)],
        present=torch.ones(3, 2, 2),
        states=torch.zeros(3, 2, 7),
        context=torch.zeros(3, 2, 9),
        rewards=torch.tensor([[1.0, 5.0], [2.0, 99.0]]),
        terminated=torch.tensor([[False, False], [True, False]]),
        valid=torch.tensor([[True, True], [True, False]]),
    )
    return algorithm, batch, [Categorical(learnt)]


def test_lambda_returns_by_hand() -> None:
    """V = 2, 4, 8 by step. First: y₁ = 2 and y₀ = 1 + ½(½·4 + ½·2) = 2.5. Second: y₀ = 5 + ½·4 = 7."""
    algorithm, batch, learnt = hand_made()
    returns = algorithm.value.lambda_returns(batch, learnt)
    assert returns[:, 0].tolist() == pytest.approx([2.5, 2.0])
    assert float(returns[0, 1]) == pytest.approx(7.0)


def test_the_loss_by_hand() -> None:
    """Q_tot = 6 everywhere: errors 3.5, 4 and −1 at the valid steps; the discriminator knows nothing: log ½."""
    algorithm, batch, learnt = hand_made()
    algorithm.discriminator_theta.zero_()
    none: list[Tensor] = [torch.zeros(0), torch.zeros(0)]
    returns = algorithm.value.lambda_returns(batch, learnt)
    loss, metrics = algorithm.loss(none, algorithm.discriminator_theta, batch, torch.tensor([0, 1]), learnt, returns)
    expected = (3.5**2 + 4**2 + 1) / 3
    assert float(metrics["td_loss"]) == pytest.approx(expected)
    assert float(metrics["latent_log_likelihood"]) == pytest.approx(math.log(0.5))
    assert float(loss) == pytest.approx(expected + 0.01 * math.log(2), rel=1e-5), "the bonus lowers the loss"


def test_agents_that_have_left_contribute_nothing() -> None:
    algorithm, rollout, collector = leaving_team()
    collector.collect(algorithm)
    rows = cut_into_fragments(rollout, 5)
    assert not rows["active"].all()
    parameters, discriminator = algorithm.value.learnt, algorithm.discriminator_optimiser.parameter

    def loss_of(change: float) -> float:
        changed = dict(rows)
        away = ~rows["active"].unsqueeze(-1)
        changed["observations.0"] = rows["observations.0"] + change * away
        batch = algorithm.prepare(changed)
        learnt = algorithm.value.utilities(parameters, batch)
        returns = algorithm.value.lambda_returns(batch, learnt)
        loss, _ = algorithm.loss(parameters, discriminator, batch, rows["extras.latent"], learnt, returns)
        return float(loss.detach())

    assert loss_of(0.0) == loss_of(3.0)


def test_illegal_actions_are_neither_best_nor_explored() -> None:
    """The environment itself refuses illegal actions."""
    for epsilon in (0.0, 1.0):
        algorithm, rollout, collector = maven(steps=40, epsilon_start=epsilon)
        collector.collect(algorithm)
        actions, masks = rollout.actions[0], rollout.action_masks[0]
        assert masks is not None
        assert masks.gather(-1, actions.unsqueeze(-1)).all()
        counts = torch.bincount(actions.flatten(), minlength=4)
        if epsilon == 1.0:
            assert counts.min() > 0.5 * counts.max(), "exploration is uniform"
        batch = algorithm.prepare(cut_into_fragments(rollout, 40))
        best = algorithm.value.utilities([p.theta for p in algorithm.policies], batch)[0].mode()
        assert batch.masks[0] is not None
        assert batch.masks[0].gather(-1, best.flatten(1, 2).unsqueeze(-1)).all()


def test_a_gradient_step_moves_the_targets_by_their_rate() -> None:
    algorithm, rollout, collector = maven(gradient_steps=1, target_rate=0.25)
    before = [target.clone() for target in algorithm.value.targets]
    collector.collect(algorithm)
    algorithm.update(rollout, 0.0)
    learnt = algorithm.value.thetas
    for old, target, theta in zip(before, algorithm.value.targets, learnt, strict=True):
        assert not torch.equal(old, theta)
        torch.testing.assert_close(target, 0.75 * old + 0.25 * theta)


def test_broken_rewards_never_reach_the_buffer() -> None:
    algorithm, rollout, collector = maven("toy_environments:poisoned")
    for _ in range(4):
        collector.collect(algorithm)
        algorithm.update(rollout, 0.0)
    assert rollout.rewards.isnan().all()
    assert len(algorithm.fragments.replay) > 0
    assert all(torch.isfinite(rows).all() for rows in algorithm.fragments.replay.state_dict().values())


# --- the latent ---------------------------------------------------------------------------------------------------


def test_a_latent_holds_from_an_episodes_first_step_to_its_last() -> None:
    algorithm, rollout, collector = maven(steps=7)
    latents, ended = [], []
    for _ in range(6):
        collector.collect(algorithm)
        latents.append(rollout.extras["latent"].clone())
        ended.append(rollout.ended.clone())
        algorithm.update(rollout, 0.0)
    latent, goes_on = torch.cat(latents), ~torch.cat(ended)[:-1]
    assert torch.equal(latent[1:][goes_on], latent[:-1][goes_on])
    assert set(latent.flatten().tolist()) == {0, 1, 2, 3}


def test_episode_returns_reach_across_rollouts() -> None:
    """Episodes of five steps, rollouts of three: what the latents' policy is told are whole episodes' returns."""
    algorithm, rollout, collector = maven(steps=3)
    told, rewards, ended = [], [], []
    learn = algorithm.latent_policy.learn
    algorithm.latent_policy.learn = lambda *args: told.append(args[2]) or learn(*args)
    for _ in range(7):
        collector.collect(algorithm)
        rewards.append(rollout.team_rewards.clone())
        ended.append(rollout.ended.clone())
        algorithm.update(rollout, 0.0)
    sums = torch.cat(rewards)[:20].unflatten(0, (4, 5)).sum(1)
    assert torch.cat(ended)[4::5].all()
    torch.testing.assert_close(torch.cat([t for t in told if len(t)]), sums.flatten())


def test_a_rollout_that_is_passed_over_counts_for_the_episodes_that_go_on() -> None:
    """Episodes of five steps, rollouts of three; one reward of the first rollout is not a number."""
    algorithm, rollout, collector = maven(steps=3)
    told: list[Any] = []
    learn = algorithm.latent_policy.learn
    algorithm.latent_policy.learn = lambda *args: told.append(args[2]) or learn(*args)
    collector.collect(algorithm)
    rollout.team_rewards[1, 0] = float("nan")
    first = rollout.team_rewards.sum(0)
    algorithm.pass_over(rollout)
    collector.collect(algorithm)
    algorithm.update(rollout, 0.0)
    torch.testing.assert_close(told[0], (first + rollout.team_rewards[:2].sum(0))[1:])


def test_the_policy_gradients_loss_by_hand() -> None:
    """All-zero parameters: uniform, baseline 0."""
    policy = LatentPolicy(2, 4, (3,), AlgorithmSettings(), 0.01, 0.5, torch.Generator().manual_seed(0), CPU)
    returns = torch.tensor([2.0, -1.0])
    loss = policy.loss(torch.zeros_like(policy.theta), torch.ones(2, 2), torch.tensor([0, 3]), returns)
    expected = 0.5 * math.log(4) - 0.5 * math.log(4) + 0.5 * (4 + 1) / 2
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_latents_policy_prefers_what_returns_more_and_its_mean_follows() -> None:
    generator = torch.Generator().manual_seed(0)
    policy = LatentPolicy(2, 3, (8,), AlgorithmSettings(), 0.01, 0.01, generator, CPU)
    for _ in range(200):
        states, latents = torch.randn(32, 2, generator=generator), torch.randint(3, (32,), generator=generator)
        policy.learn(states, latents, (latents == 2).float() * 10, 1.0)
    assert policy.distribution(torch.zeros(1, 2)).log_probs.exp()[0, 2] > 0.9
    assert policy.mean[2] > 0.9
    assert float(policy.mean.sum()) == pytest.approx(1.0, abs=1e-4)


def test_the_discriminator_averages_over_valid_steps() -> None:
    """Identity network, K = 2: logits (1, 0) and (3, 0) average to (2, 0); the padded step says nothing."""
    network = Mlp(2, (), 2)
    theta = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    behaviour = torch.tensor([1.0, 3.0, 50.0]).view(3, 1, 1)
    states = torch.zeros(3, 1, 1)
    valid = torch.tensor([[1.0], [1.0], [0.0]])
    found = latent_log_likelihood(network, theta, behaviour, states, valid, torch.tensor([0]))
    assert float(found) == pytest.approx(-math.log1p(math.exp(-2.0)), rel=1e-5)


def test_the_mutual_information_bonus_makes_latents_tell() -> None:
    algorithm, rollout, collector = maven(
        mutual_information_coefficient=10.0, gradient_steps=60, learning_rate=0.01, latents=2
    )
    collector.collect(algorithm)
    algorithm.update(rollout, 0.0)
    likelihood = algorithm.update(rollout, 0.0)["latent_log_likelihood"]
    assert likelihood > 0.5 * math.log(0.5), "no better than half of guessing"


# --- experience ---------------------------------------------------------------------------------------------------


def test_the_buffer_forgets_the_oldest() -> None:
    replay, generator = Replay(3), torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="empty"):
        replay.sample(1, generator)
    replay.add({"x": torch.tensor([1.0, 2.0])})
    assert set(replay.sample(50, generator)["x"].tolist()) == {1.0, 2.0}
    replay.add({"x": torch.tensor([3.0, 4.0])})
    assert len(replay) == 3
    assert set(replay.sample(50, generator)["x"].tolist()) == {2.0, 3.0, 4.0}
    restored = Replay(3)
    restored.load_state_dict({"next": replay.state_dict()["next"], "rows": {"x": replay.state_dict()["rows.x"]}})
    for each in (replay, restored):
        each.add({"x": torch.tensor([5.0])})
        assert sorted(each.state_dict()["rows.x"].tolist()) == [3.0, 4.0, 5.0]
    replay.add({"x": torch.arange(10.0, 15.0)})
    assert sorted(replay.state_dict()["rows.x"].tolist()) == [12.0, 13.0, 14.0]


@pytest.mark.parametrize("chunk_length", [12, 4])
def test_fragments_are_pieces_of_single_episodes(chunk_length: int) -> None:
    """Episodes of five steps; odd seeds terminate, even ones are cut off."""
    algorithm, rollout, collector = maven(steps=12)
    collector.collect(algorithm)
    rows = cut_into_fragments(rollout, chunk_length)
    valid = rows["valid"]
    lengths = [5, 5, 2] if chunk_length == 12 else [4, 1, 3, 2, 2]
    assert sorted(valid.sum(1).tolist()) == sorted(lengths * 4)
    assert valid.shape[1] == min(chunk_length, 5)
    assert float(rows["rewards"][valid].sum()) == pytest.approx(float(rollout.team_rewards.sum()))
    assert rows["terminated"].sum() == rollout.terminated.sum() > 0
    final = rollout.final_observations(0)
    ends = torch.arange(len(valid)), valid.sum(1)
    followed = rows["observations.0"][ends]
    for observation in final:
        assert (followed == observation).flatten(1).all(1).any(), "what was seen last is not what followed"
    last = valid.sum(1)[:4]
    torch.testing.assert_close(rows["states"][0, : last[0]], rollout.states[: last[0], 0])


@pytest.mark.parametrize("chunk_length", [None, 4])
def test_replayed_fragments_say_what_the_agents_did(chunk_length: int | None) -> None:
    """Greedy recurrent agents acted as their utilities, recomputed from the stored memories, say."""
    algorithm, rollout, collector = maven(
        "mpe/simple_spread", 3, 16, recurrent=True, memory_size=6, epsilon_start=0.0, chunk_length=chunk_length
    )
    for policy in algorithm.policies:  # fresh networks hardly depend on what they remember
        policy.theta.mul_(3.0)
    ended = False
    for _ in range(3):
        collector.collect(algorithm)
        ended = ended or bool(rollout.ended.any())
        batch = algorithm.prepare(cut_into_fragments(rollout, chunk_length or 16))
        found = algorithm.value.utilities([policy.theta for policy in algorithm.policies], batch)[0].mode()[:, :-1]
        agree = (found == batch.actions[0])[:, batch.valid]
        assert agree.float().mean() > 0.99
    assert ended


# --- deployment ---------------------------------------------------------------------------------------------------


def test_the_deployed_latent_is_drawn_once_and_alike_for_all_agents() -> None:
    algorithm, _, _ = maven("mpe/simple_spread", latents=3)
    modules = [algorithm.deployable(agent) for agent in range(3)]
    seeds = np.arange(40)
    observations = torch.randn(5, 40, 18, generator=torch.Generator().manual_seed(0))
    chosen = []
    for module in modules:
        (noise,) = module.describe("").noises
        assert (noise.stream, noise.purpose) == ("common", "instruction")
        state = torch.tensor(module.states[0].reset).expand(40, -1)
        for step, observation in enumerate(observations):
            drawn = torch.from_numpy(noise_for(noise, module.agent.id, seeds, step))
            named = dict(zip(module.output_names, module(observation, state, drawn), strict=True))
            state = named["next_instruction_state"]
            chosen.append(named["instruction"])
            assert torch.equal(named["action"], named["action_logits"].argmax(-1)), "greedy given the latent"
    latents = torch.stack(chosen)
    assert (latents == latents[0]).all()
    assert set(latents[0].tolist()) == {0, 1, 2}


def test_a_latent_that_is_never_drawn_any_more_has_a_finite_logit() -> None:
    algorithm, _, _ = maven("mpe/simple_spread", latents=3)
    algorithm.latent_policy.mean.copy_(torch.tensor([0.0, 0.25, 0.75]))
    module = algorithm.deployable(0)
    state = torch.tensor(module.states[0].reset).expand(2, -1)
    outputs = module(torch.zeros(2, 18), state, torch.zeros(2, 3))
    named = dict(zip(module.output_names, outputs, strict=True))
    assert named["instruction"].tolist() == [2, 2]
    assert all(output.isfinite().all() for output in outputs)


def test_without_noise_the_likeliest_latent_is_served() -> None:
    algorithm, _, _ = maven("mpe/simple_spread", latents=3)
    algorithm.latent_policy.mean.copy_(torch.tensor([0.2, 0.5, 0.3]))
    module = algorithm.deployable(0)
    outputs = module(torch.zeros(1, 18), torch.zeros(1, 2), torch.zeros(1, 3))
    named = dict(zip(module.output_names, outputs, strict=True))
    assert int(named["instruction"]) == 1
    assert named["next_instruction_state"].tolist() == [[1.0, 1.0]]
    held = module(torch.zeros(1, 18), torch.tensor([[2.0, 1.0]]), torch.zeros(1, 3))
    assert int(dict(zip(module.output_names, held, strict=True))["instruction"]) == 2


@pytest.mark.parametrize("environment", ["toy_environments:multi_discrete", "toy_environments:leaving"])
def test_other_than_discrete_actions_are_refused(environment: str) -> None:
    with pytest.raises(UsageError, match=r"maven: agent '(brancher|arm)' .* expected Discrete"):
        maven(environment)
