"""HCPO: instructions and their intervals, the two levels' advantages, distillation, trust regions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from hmarl.trainer.algorithms.hcpo import Hcpo, disturbed
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.learning.imitation import distil
from hmarl.trainer.learning.returns import normalise_advantages
from hmarl.trainer.networks.distributions import ActionHead, Categorical
from hmarl.trainer.networks.optimiser import FlatAdam
from hmarl.trainer.networks.policies import GroupPolicy
from hmarl.trainer.networks.settings import AlgorithmSettings
from hmarl.trainer.sequential.estimates import Estimate, joint_estimate
from toy_environments import LENGTH
from training_runs import new_hcpo, team_samples

pytestmark = pytest.mark.usefixtures("single_thread")


def collected(**settings: Any) -> tuple[Hcpo, Rollout]:
    algorithm, rollout, collector = new_hcpo(**settings)
    collector.collect(algorithm)
    return algorithm, rollout


def estimate_of(algorithm: Hcpo, rollout: Rollout) -> Estimate:
    return joint_estimate(rollout, algorithm.critic, algorithm.state_normaliser, algorithm.settings)


def improve_conductor(algorithm: Hcpo, rollout: Rollout, estimate: Estimate) -> dict[str, float]:
    """The conductor's part of an update."""
    advantages, _ = algorithm.advantages(rollout, estimate)
    features = algorithm.features(rollout)
    return algorithm.conductor.improve(
        rollout, estimate.states, advantages, features, algorithm.noise_generator
    ).metrics


@pytest.mark.parametrize("sees", ["state", "nothing"])
def test_a_conductor_that_does_not_learn_stays_uniformly_random(sees: str) -> None:
    algorithm, rollout, collector = new_hcpo(batch_size=64, steps=50, conductor_learns=False, conductor_sees=sees)
    actors = [policy.theta.clone() for policy in algorithm.policies]
    for _ in range(2):
        collector.collect(algorithm)
        metrics = algorithm.update(rollout, 0.0)
        assert metrics["instruction_entropy"] == pytest.approx(math.log(4))
        assert metrics["conductor_kl"] == 0.0
    assert not algorithm.conductor.policy.theta.any()
    assert all(not torch.equal(old, policy.theta) for old, policy in zip(actors, algorithm.policies, strict=True))
    drawn = torch.bincount(rollout.extras["instruction"].flatten(), minlength=4) / (64 * 50)
    assert (drawn - 0.25).abs().max() < 0.04


def test_noise_on_advantages_is_of_the_size_that_was_asked_for() -> None:
    generator = torch.Generator().manual_seed(0)
    advantages = 3.0 * torch.randn((200, 100), generator=generator) + 1.0
    added = disturbed(advantages, 0.5, generator) - advantages
    assert float(added.std()) == pytest.approx(0.5 * 3.0, rel=0.02)
    assert abs(float(added.mean())) < 0.05
    assert abs(float(torch.corrcoef(torch.stack([added.flatten(), advantages.flatten()]))[0, 1])) < 0.03
    assert disturbed(advantages, 0.0, generator) is advantages


def test_updates_learn_from_disturbed_advantages() -> None:
    learnt = []
    for noise in (0.0, 2.0):
        algorithm, rollout = collected(advantage_noise=noise)
        algorithm.update(rollout, 0.0)
        learnt.append((algorithm.policies[0].theta, algorithm.conductor.policy.theta))
    assert not torch.equal(learnt[0][0], learnt[1][0])
    assert not torch.equal(learnt[0][1], learnt[1][1])


# --- instructions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [1, 3, 7])
def test_an_instruction_is_held_for_the_interval_and_renewed_at_an_episodes_end(interval: int) -> None:
    """Episodes last 5 steps; a rollout of 12 leaves off in the middle of one, and the next goes on there."""
    algorithm, rollout, collector = new_hcpo(instruction_interval=interval)
    held = torch.full((6,), -1)
    changed = 0
    for update in range(3):
        collector.collect(algorithm)
        for step in range(12):
            due = ((12 * update + step) % LENGTH) % interval == 0
            assert rollout.extras["decided"][step].eq(due).all(), (update, step)
            instruction = rollout.extras["instruction"][step]
            if not due:
                assert torch.equal(instruction, held)
            changed += int((instruction != held).sum())
            held = instruction.clone()
    assert changed > 6, "instructions never change"


def test_actors_see_the_instruction_in_force() -> None:
    algorithm, rollout = collected(instruction_interval=2)
    samples = team_samples(algorithm, rollout).of_agent(1)
    assert torch.equal(samples.inputs[:, -4:].argmax(-1), rollout.extras["instruction"].flatten())
    assert torch.equal(samples.inputs[:, -4:].sum(-1), torch.ones(72))


def test_instructions_are_drawn_from_the_conductor() -> None:
    algorithm, rollout, collector = new_hcpo(batch_size=512, steps=4)
    network = algorithm.conductor.policy.network
    algorithm.conductor.policy.theta.zero_()
    network.named(algorithm.conductor.policy.theta[0])["1.bias"].copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]).log())
    collector.collect(algorithm)
    shares = torch.bincount(rollout.extras["instruction"].flatten(), minlength=4) / 2048
    # Five standard deviations of a share are 0.055 at most.
    assert (shares - torch.tensor([0.1, 0.2, 0.3, 0.4])).abs().max() < 0.055, shares


def test_acting_state_carries_the_instruction_over_to_a_fresh_copy() -> None:
    algorithm, _ = collected(instruction_interval=7)
    fresh, _, _ = new_hcpo(instruction_interval=7)
    fresh.load_acting_state(algorithm.acting_state())
    for key, value in algorithm.acting_state().items():
        assert torch.equal(fresh.acting_state()[key], value)
    fresh.episodes_ended(torch.arange(6) == 2)
    assert fresh.acting_state()["remaining"][2] == 0
    assert algorithm.acting_state()["remaining"][2] > 0


def test_ended_episodes_are_no_matter_before_the_first_instruction() -> None:
    """A resumed run restarts its environments before it has acted."""
    rollouts = []
    for ended in (False, True):
        algorithm, rollout, collector = new_hcpo()
        if ended:
            algorithm.episodes_ended(torch.ones(6, dtype=torch.bool))
        collector.collect(algorithm)
        rollouts.append(rollout)
    first, second = rollouts
    assert second.extras["decided"][0].all()
    assert torch.equal(first.extras["instruction"], second.extras["instruction"])
    assert torch.equal(first.actions[0], second.actions[0])


# --- the conductor's level ------------------------------------------------------------------------------------------


def test_the_conductors_samples_are_its_decision_steps() -> None:
    algorithm, rollout = collected(instruction_interval=3)
    decided = rollout.extras["decided"]
    estimate = estimate_of(algorithm, rollout)
    samples = algorithm.conductor.samples(rollout, estimate.states)
    assert samples.active is not None
    assert torch.equal(samples.active.bool(), decided.flatten())
    numbers = torch.arange(72.0)
    assert samples.mean(numbers).item() == pytest.approx(numbers[decided.flatten()].mean().item())


def test_what_lies_between_decisions_does_not_move_the_conductor() -> None:
    """Instructions and states of the other steps may be anything; rewards count, they belong to the windows."""
    moved = []
    for spoil in (False, True):
        algorithm, rollout = collected(instruction_interval=3, curvature_fraction=1.0)
        estimate = estimate_of(algorithm, rollout)
        if spoil:
            between = ~rollout.extras["decided"]
            rollout.extras["instruction"][between] = 3 - rollout.extras["instruction"][between]
            estimate.states[between.flatten()] += 5.0
        before = algorithm.conductor.policy.theta.clone()
        improve_conductor(algorithm, rollout, estimate)
        assert not torch.equal(algorithm.conductor.policy.theta, before)
        moved.append(algorithm.conductor.policy.theta.clone())
    torch.testing.assert_close(moved[0], moved[1])


def test_the_conductor_learns_to_give_the_rewarded_instruction() -> None:
    algorithm, rollout = collected(gamma=0.0, batch_size=64)
    rewarded = rollout.extras["instruction"] == 2
    rollout.team_rewards = rewarded.float()
    estimate = estimate_of(algorithm, rollout)

    def probability() -> float:
        w = algorithm.conductor.distribution(estimate.states)
        assert isinstance(w, Categorical)
        return float(w.log_probs[:, 2].exp().mean())

    before = probability()
    metrics = improve_conductor(algorithm, rollout, estimate)
    assert metrics["conductor_accepted"] == 1.0
    assert probability() > before + 0.02


def test_with_critic_q_the_two_levels_advantages_add_up_to_the_joint_one() -> None:
    """Eq. 7: A(s, a) = A(M|s) + A(a|s, M), before normalisation; both halves are not trivial."""
    algorithm, rollout = collected(critic="q")
    algorithm.update(rollout, 0.0)  # a critic that has been trained
    estimate = estimate_of(algorithm, rollout)
    joint = estimate.returns - estimate.values
    of_instruction, of_actions = algorithm.advantages(rollout, estimate)
    assert algorithm.instruction_critic is not None
    instruction = rollout.extras["instruction"]
    q = algorithm.instruction_critic.values(estimate.states).view(12, 6, 4)
    picked = q.gather(-1, instruction.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(of_instruction, picked - estimate.values)  # Eq. 5
    torch.testing.assert_close(of_actions, joint - of_instruction)  # Eq. 7
    torch.testing.assert_close(of_actions, estimate.returns - picked)  # Eq. 6
    torch.testing.assert_close(joint, estimate.advantages)
    assert of_instruction.std() > 1e-4
    assert of_actions.std() > 1e-4


def test_with_critic_v_both_levels_use_the_joint_advantage() -> None:
    algorithm, rollout = collected()
    estimate = estimate_of(algorithm, rollout)
    for advantages in algorithm.advantages(rollout, estimate):
        assert torch.equal(advantages, estimate.advantages)


@pytest.mark.parametrize("critic", ["v", "q"])
def test_each_level_is_given_its_own_advantage(critic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The conductor as it is, the agents normalised; the first of them before any ratio."""
    algorithm, rollout = collected(critic=critic)
    algorithm.update(rollout, 0.0)  # a critic that has been trained
    expected = algorithm.advantages(rollout, estimate_of(algorithm, rollout))
    conductors, agents = [], []
    improve, step = algorithm.conductor.improve, algorithm._step
    monkeypatch.setattr(
        algorithm.conductor, "improve", lambda *given, **more: conductors.append(given[2]) or improve(*given, **more)
    )
    monkeypatch.setattr(algorithm, "_step", lambda turn: agents.append(turn) or step(turn))
    algorithm.update(rollout, 0.0)
    torch.testing.assert_close(conductors[0], expected[0])
    torch.testing.assert_close(agents[0].advantages, normalise_advantages(expected[1]).flatten())
    assert [turn.place for turn in agents] == [1, 2]


def test_q_regresses_the_drawn_instruction_only() -> None:
    algorithm, rollout = collected(critic="q", critic_epochs=60, critic_learning_rate=1e-2, normalise_values=False)
    critic = algorithm.instruction_critic
    assert critic is not None
    states = torch.ones(72, algorithm.spec.state_size)
    instruction = rollout.extras["instruction"].flatten() % 2  # 2 and 3 are never drawn
    critic.fit(states, 2.0 * instruction - 1.0, algorithm.noise_generator, chosen=instruction)
    values = critic.values(states[:1])[0]
    assert values[:2].tolist() == pytest.approx([-1.0, 1.0], abs=0.1)


@pytest.mark.parametrize("interval", [1, 3])
def test_weights_are_those_of_the_step_at_which_the_instruction_was_chosen(interval: int) -> None:
    """By hand for two environments; before the rollout's first decision nothing is known, the weight is 1."""
    algorithm, rollout = collected(instruction_interval=interval, batch_size=2, steps=4)
    rollout.extras["decided"] = torch.tensor([[True, False], [False, True], [False, False], [True, False]])
    weight = torch.tensor([[2.0, 9.0], [9.0, 3.0], [9.0, 9.0], [4.0, 9.0]])
    held = torch.tensor([[2.0, 1.0], [2.0, 3.0], [2.0, 3.0], [4.0, 3.0]])
    expected = weight if interval == 1 else held
    assert torch.equal(algorithm.conductor._since_decision(weight.flatten(), rollout), expected.flatten())


def test_printed_weights_before_the_first_decision_are_the_mean_of_the_others() -> None:
    """They are probabilities: with 1 there, those steps would weigh K times as much as all others."""
    algorithm, rollout, _ = new_hcpo(batch_size=2, steps=4, instruction_interval=3)
    rollout.extras["decided"] = torch.tensor([[True, False], [False, True], [False, False], [True, False]])
    probability = torch.tensor([[0.2, 0.9], [0.9, 0.3], [0.9, 0.9], [0.4, 0.9]])
    expected = torch.tensor([[0.2, 0.3], [0.2, 0.3], [0.2, 0.3], [0.4, 0.3]])
    found = algorithm.conductor._probability_since_decision(probability.flatten(), rollout)
    torch.testing.assert_close(found, expected.flatten())


def test_printed_weights_of_a_rollout_without_a_decision_are_one() -> None:
    """With the mean of none, 0, agents would learn nothing where an instruction outlasts a rollout."""
    algorithm, rollout, _ = new_hcpo(batch_size=2, steps=4, instruction_interval=9)
    rollout.extras["decided"] = torch.zeros(4, 2, dtype=torch.bool)
    found = algorithm.conductor._probability_since_decision(torch.full((8,), 0.25), rollout)
    assert found.tolist() == [1.0] * 8


@pytest.mark.parametrize("mode", ["ratio", "paper"])
@pytest.mark.parametrize("interval", [1, 3])
def test_both_levels_keep_their_limits_over_real_updates(mode: str, interval: int) -> None:
    algorithm, rollout, collector = new_hcpo(
        "mpe/simple_spread",
        16,
        25,
        instruction_weight=mode,
        instruction_interval=interval,
        kl_limit=0.003,
        conductor_kl_limit=0.008,
    )
    accepted: list[tuple[float, float]] = []
    for update in range(4):
        collector.collect(algorithm)
        states = algorithm.state_normaliser(rollout.states[:-1]).flatten(0, 1)
        old = algorithm.conductor.distribution(states)
        metrics = algorithm.update(rollout, update / 4)
        new = algorithm.conductor.distribution(states)
        kl = float(old.kl(new)[rollout.extras["decided"].flatten()].mean())
        assert kl == pytest.approx(metrics["conductor_kl"], abs=1e-6)
        assert kl <= 0.008 * (1 + 1e-4)
        assert metrics["agent_kl_max"] <= 0.003
        if mode == "ratio":
            assert metrics["agent_true_kl"] == pytest.approx(metrics["agent_kl"], abs=1e-7)
        accepted.append((metrics["conductor_accepted"], metrics["agent_accepted"]))
    assert max(conductor for conductor, _ in accepted) == 1.0
    assert max(agent for _, agent in accepted) == 1.0
    if mode == "paper":
        # Weights of about 1/K let the true KL grow beyond the constrained one.
        assert metrics["agent_true_kl"] > 1.5 * metrics["agent_kl"]


# --- distillation ---------------------------------------------------------------------------------------------------


def students_and_data() -> tuple[GroupPolicy, FlatAdam, Tensor, Tensor]:
    """Two students, whose observations [2, 400, 3] both determine the teacher's choice among three instructions."""
    generator = torch.Generator().manual_seed(0)
    settings = AlgorithmSettings(hidden_sizes=(32,))
    students = GroupPolicy.create(2, 3, ActionHead(spaces.Discrete(3)), settings, generator)
    observation = torch.randn(400, 3, generator=generator)
    # The second student sees the same in another order and sign.
    inputs = torch.stack([observation, -observation.flip(-1)])
    return students, FlatAdam(students.theta, 1e-2, 10.0), inputs, torch.log_softmax(6.0 * observation, dim=-1)


def agreement(students: GroupPolicy, inputs: Tensor, teacher: Tensor) -> float:
    return float((students.all_distributions(inputs).mode() == teacher.argmax(-1)).float().mean())


def test_local_conductors_come_to_agree_with_a_teacher_that_follows_from_their_observations() -> None:
    students, optimiser, inputs, teacher = students_and_data()
    generator = torch.Generator().manual_seed(1)
    first = distil(students, optimiser, inputs, Categorical(teacher), None, generator, epochs=1, minibatches=4)
    assert agreement(students, inputs, teacher) < 0.9
    last = distil(students, optimiser, inputs, Categorical(teacher), None, generator, epochs=60, minibatches=4)
    assert agreement(students, inputs, teacher) > 0.97
    assert 0.0 <= last < 0.1 * first


def test_absent_steps_teach_nothing_and_do_not_enter_the_reported_divergence() -> None:
    """The teacher's labels of the absent steps are the opposite of the truth."""
    students, optimiser, inputs, teacher = students_and_data()
    weight = (torch.arange(400) % 2 == 0).float().expand(2, -1)
    spoilt = torch.where(weight[0].unsqueeze(-1) > 0, teacher, teacher.flip(-1))
    generator = torch.Generator().manual_seed(1)
    divergence = distil(students, optimiser, inputs, Categorical(spoilt), weight, generator, epochs=60, minibatches=4)
    assert agreement(students, inputs, teacher) > 0.93
    assert 0.0 <= divergence < 0.05
    # With a step size of nothing the report is the divergence of the present steps, worked out here.
    frozen = FlatAdam(students.theta, 0.0, 10.0)
    reported = distil(students, frozen, inputs, Categorical(spoilt), weight, generator, epochs=1, minibatches=1)
    log_probs = students.all_distributions(inputs).log_probs  # type: ignore[attr-defined]
    exact = (spoilt.exp() * (spoilt - log_probs)).sum(-1)[weight > 0].mean()
    assert reported == pytest.approx(float(exact), abs=1e-5)


def test_distillation_follows_the_updated_conductor_in_training() -> None:
    """On the toy both agents' observations are part of the state, so the conductor can be imitated in part."""
    algorithm, rollout = collected(distillation_epochs=40, distillation_learning_rate=1e-2, batch_size=16)
    estimate = estimate_of(algorithm, rollout)
    network = algorithm.conductor.policy.network
    # A conductor that cares about the first agent's first number alone.
    algorithm.conductor.policy.theta.zero_()
    first, last = (network.named(algorithm.conductor.policy.theta[0])[name] for name in ("0.weight", "1.weight"))
    first[0, 0], first[1, 0], last[0, 0], last[1, 1] = 1.0, -1.0, 9.0, 9.0
    new = algorithm.conductor.distribution(estimate.states)
    features = algorithm.features(rollout)
    followers = algorithm.conductor.local
    assert followers is not None
    followers.follow(rollout, features, new, algorithm.noise_generator, 1.0)
    local = followers.choices(0, features[0]).mode().T.view(12, 16, 2)
    agreed = local == new.mode().view(12, 16, 1)
    assert agreed[:, :, 0].float().mean() > 0.9, "the first agent sees what the conductor looks at"
    assert agreed[:, :, 1].float().mean() < 0.8, "the second does not"
