"""Losses of the heterogeneous-agent family by hand, who sees whose update, and what must not matter to them."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from hmarl.sdk.environment import Observation, StepResult
from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec
from hmarl.trainer.algorithms import find_algorithm, mappo
from hmarl.trainer.algorithms.a2po import A2po, clip_of, corrected_advantages, explained_advantage, joint_ratio
from hmarl.trainer.experience.rollout import Decision, Rollout
from hmarl.trainer.learning.returns import normalise_advantages
from hmarl.trainer.networks.distributions import Categorical, Distribution
from hmarl.trainer.sequential.constrained_steps import surrogate
from hmarl.trainer.sequential.estimates import Estimate, joint_estimate
from hmarl.trainer.sequential.gradient_steps import Enough, Loss, Report, clipped_loss, no_report
from hmarl.trainer.sequential.samples import AgentSamples
from hmarl.trainer.sequential.turns import Improvement, Turn
from training_runs import CPU, new_algorithm, team_samples, turn_of

pytestmark = pytest.mark.usefixtures("single_thread")

GRADIENT_ALGORITHMS = ["happo", "haa2c", "hamdpo", "a2po", "mappo", "ippo"]
TOY = "toy_environments:masked_discrete"
# Four samples; the ratios of the actions are 1.5, 1, 0.2 and 0.5.
OLD = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.5, 0.5], [0.8, 0.2]])
NEW = torch.tensor([[0.75, 0.25], [0.25, 0.75], [0.9, 0.1], [0.4, 0.6]])
ACTIONS = torch.tensor([0, 1, 1, 0])
ADVANTAGES = torch.tensor([2.0, -1.0, -3.0, 4.0])  # F · Â


def game(agents: int) -> EnvironmentSpec:
    """Alike agents with two actions, who see one number."""
    specs = tuple(AgentSpec(f"agent_{i}", 1, spaces.Discrete(2)) for i in range(agents))
    return EnvironmentSpec("toy/game", specs, state_size=1, horizon=None, team_reward="shared")


def new_player(name: str, agents: int = 2, **settings: Any) -> Any:
    """An algorithm in ``game`` with linear networks, nothing normalised, no entropy bonus."""
    algorithm_class = find_algorithm(name)
    linear = {"hidden_sizes": (), "critic_hidden_sizes": (), "normalise_observations": False, "normalise_values": False}
    checked = algorithm_class.settings_class(**{**linear, "entropy_coefficient": 0.0, **settings})
    return algorithm_class(game(agents), checked, torch.Generator().manual_seed(0), CPU)


def descended(algorithm: Any) -> Loss:
    """The loss that the algorithm's update hands to its gradient steps."""
    agents, found = len(algorithm.spec.agents), []
    rollout = Rollout(algorithm.spec, 2, 1, CPU)
    rollout.actions = [torch.zeros(2, 1, agents, dtype=torch.int64)]
    present = torch.ones(1, agents, dtype=torch.bool)
    rollout.finish(Observation((torch.zeros(1, agents, 1),), (None,), torch.zeros(1, 1), present))

    def descend(turn: Turn, loss: Loss, report: Report = no_report, enough: Enough | None = None) -> Improvement:
        found.append(loss)
        return Improvement(turn.samples.old, {"agent_kl": 0.0})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(algorithm.steps, "descend", descend)
        algorithm.update(rollout, 0.0)
    return found[0]


def four_samples(active: Tensor | None = None, surrogate_weight: Tensor | None = None) -> AgentSamples:
    old = Categorical(OLD.log())
    return AgentSamples(
        torch.zeros(4, 1), None, None, ACTIONS, active, surrogate_weight, None, old, old.log_prob(ACTIONS)
    )


def loss_of(algorithm: Any, samples: AgentSamples | None = None, **known: Any) -> float:
    turn = turn_of(algorithm, 0, samples or four_samples(), ADVANTAGES, **known)
    return float(descended(algorithm)(Categorical(NEW.log()), turn))


# --- the losses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["happo", "mappo", "ippo"])
def test_clipped_loss_by_hand(name: str) -> None:
    """min(r·A, clip(r, 0.8, 1.2)·A): 1.2·2, −1, 0.8·(−3), 0.5·4."""
    algorithm = new_player(name)
    assert loss_of(algorithm) == pytest.approx(-(2.4 - 1.0 - 2.4 + 2.0) / 4)
    # The agent was away at the third sample; the second one counts three times.
    weighted = four_samples(torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([1.0, 3.0, 1.0, 1.0]))
    assert loss_of(algorithm, weighted) == pytest.approx(-(2.4 - 3.0 + 2.0) / 3)


def test_unclipped_loss_by_hand() -> None:
    """r·A: 3, −1, −0.6, 2."""
    assert loss_of(new_player("haa2c")) == pytest.approx(-3.4 / 4)


@pytest.mark.parametrize("name", GRADIENT_ALGORITHMS)
def test_entropy_bonus_by_hand(name: str) -> None:
    """c times the mean entropy of the new policy, over the steps at which the agent was there."""
    active, ones = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.ones(4)
    samples = four_samples(active, ones)
    bonus = loss_of(new_player(name, entropy_coefficient=0.3), samples) - loss_of(new_player(name), samples)
    # Both rows are (¾, ¼) in some order: H = 2 ln 2 − ¾ ln 3.
    assert bonus == pytest.approx(-0.3 * (2 * math.log(2) - 0.75 * math.log(3)), rel=1e-5)


def test_at_ratio_one_haa2c_follows_the_policy_gradient_and_happo_with_it() -> None:
    """−E[F·Â·∇log π], whose derivative by the logits is −F·Â·(1[a] − π)/M."""
    logits = OLD.log().requires_grad_(True)
    by_hand = -(torch.eye(2)[ACTIONS] - OLD) * ADVANTAGES.unsqueeze(-1) / 4
    for name in ("haa2c", "happo", "hamdpo"):
        algorithm = new_player(name)
        loss = descended(algorithm)(Categorical(logits), turn_of(algorithm, 0, four_samples(), ADVANTAGES))
        torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], by_hand, msg=name)


class Recording(A2po):
    """A2PO in ``game`` whose agents' policies become (¾, ¼) instead of being improved."""

    updated: list[Turn]

    def update_with(self, rollout: Rollout, estimate: Estimate) -> dict[str, float]:
        """An update in which the critic makes this of the rollout."""
        self.updated = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("hmarl.trainer.algorithms.a2po.joint_estimate", lambda *_: estimate)
            patch.setattr(self.steps, "descend", self._descend)
            return self.update(rollout, 0.0)

    def _descend(self, turn: Turn, loss: Loss, report: Report) -> Improvement:
        self.updated.append(turn)
        set_probabilities(self, turn.member, 0.75)
        return Improvement(turn.samples.under(turn.policy, turn.policy.row(turn.member)), {"agent_kl": 0.0})


def set_probabilities(algorithm: Any, member: int, first: float) -> None:
    """π(0) = ``first`` whatever is seen."""
    algorithm.policies[0].row(member).copy_(torch.tensor([0.0, 0.0, math.log(first), math.log(1 - first)]))


def recording(agents: int, **settings: Any) -> Recording:
    """All agents begin with (½, ½)."""
    algorithm = Recording(game(agents), new_player("a2po", agents, **settings).settings, torch.Generator(), CPU)
    for member in range(agents):
        set_probabilities(algorithm, member, 0.5)
    return algorithm


def trajectory() -> tuple[Rollout, Estimate]:
    """Four steps; the episode terminates at the second. δ = 1, −2, −2, 12 for γ = 0.5."""
    rollout = Rollout(game(2), 4, 1, CPU)
    rollout.team_rewards = torch.tensor([[1.0], [2.0], [4.0], [8.0]])
    rollout.terminated[1] = True
    values, following = torch.tensor([[2.0], [4.0], [8.0], [4.0]]), torch.tensor([[4.0], [0.0], [4.0], [16.0]])
    return rollout, Estimate(torch.zeros(4, 1), values, following, torch.zeros(4, 1), torch.zeros(4, 1))


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        # γλ = ¼ and no correction: 1 − 2/4, −2, −2 + 12/4, 12; nothing flows over the end.
        ([1.0, 1.0, 1.0, 1.0], [0.5, -2.0, 1.0, 12.0]),
        # A step takes min(1, F) of what follows: F = 2 counts as 1, F = ½ halves the 3; the first F is no agent's.
        ([0.1, 2.0, 3.0, 0.5], [0.5, -2.0, -0.5, 12.0]),
        ([9.0, 0.2, 0.1, 0.0], [0.9, -2.0, -2.0, 12.0]),
    ],
)
def test_a2po_corrects_the_advantage_for_those_before(factor: list[float], expected: list[float]) -> None:
    """Wang et al. 2023, Eq. 4, on four steps with an episode's end; then mean 0 and standard deviation 1."""
    algorithm = new_player("a2po", gamma=0.5, gae_lambda=0.5)
    rollout, estimate = trajectory()
    corrected = corrected_advantages(rollout, estimate, 0, torch.tensor(factor), algorithm.settings)
    mean = sum(expected) / 4
    deviation = math.sqrt(sum((x - mean) ** 2 for x in expected) / 4)
    torch.testing.assert_close(corrected, torch.tensor([(x - mean) / deviation for x in expected]))


def test_a2po_clips_the_joint_ratio_by_place() -> None:
    """clip(F, 0.9, 1.1) · r = 1.65, 1, 0.18, 0.525, then cut to 1 ± 0.15 for the first of two agents, ± 0.2 after."""
    algorithm = new_player("a2po", 2, clip=0.2, first_clip_share=0.5, semi_greedy=False)
    factor = torch.tensor([1.3, 1.0, 0.2, 1.05])
    turns = [turn_of(algorithm, 0, four_samples(), ADVANTAGES, factor=factor, place=place) for place in (1, 2)]
    assert [clip_of(turn, algorithm.settings) for turn in turns] == pytest.approx([0.15, 0.2])
    first, second = (loss_of(algorithm, factor=factor, place=place) for place in (1, 2))
    assert first == pytest.approx(-(1.15 * 2 - 1 - 0.85 * 3 + 0.525 * 4) / 4)
    assert second == pytest.approx(-(1.2 * 2 - 1 - 0.8 * 3 + 0.525 * 4) / 4)


def test_a2po_hands_the_product_of_ratios_on() -> None:
    """(½, ½) → (¾, ¼) is F = 1.5 for action 0 and 0.5 for action 1; the second agent sees it cut to 1 ± 0.1."""
    algorithm = recording(3, gamma=0.5, gae_lambda=0.5, semi_greedy=False)
    rollout, estimate = trajectory()
    rollout.spec = game(3)
    chosen = torch.tensor([[0, 0, 0], [1, 1, 1], [0, 0, 0], [1, 1, 1]])
    rollout.actions = [chosen.view(4, 1, 3)]
    rollout.observations = [torch.zeros(4, 1, 3, 1)]
    metrics = algorithm.update_with(rollout, estimate)
    assert sorted(turn.member for turn in algorithm.updated) == [0, 1, 2]
    weights = [joint_ratio(turn.samples.old, turn, 0.2) for turn in algorithm.updated]  # times r = 1
    torch.testing.assert_close(torch.stack(weights), torch.tensor([[1.0] * 4] + [[1.1, 0.9, 1.1, 0.9]] * 2))
    clips = [clip_of(turn, algorithm.settings) for turn in algorithm.updated]
    assert clips == pytest.approx([0.2 * (0.5 + 0.5 * k / 3) for k in (1, 2, 3)])
    assert metrics["sequential_factor_max"] == pytest.approx(1.5**2)
    # The third's advantage: F = 2.25 and 0.25, so ¼ of the 3 at the third step and of the −½ at the first.
    raw = torch.tensor([1 - 0.125, -2.0, -2 + 0.75, 12.0])
    torch.testing.assert_close(algorithm.updated[2].advantages, (raw - raw.mean()) / raw.std(correction=0))


def test_a2po_takes_the_agent_whose_action_explains_most_at_every_other_place() -> None:
    """Â = ±2 ±1 ±4 ±½ by the four agents' actions, all equally likely: E[A^i²] = 4, 1, 16, ¼."""
    share = torch.tensor([2.0, 1.0, 4.0, 0.5])
    chosen = torch.cartesian_prod(*[torch.tensor([0, 1])] * 4)
    joint = ((1.0 - 2.0 * chosen) * share).sum(-1)
    for agent in range(4):
        score = Categorical(torch.zeros(16, 2)).score(chosen[:, agent])
        assert explained_advantage(score, joint) == pytest.approx(float(share[agent]) ** 2, rel=1e-4)
    rollout = Rollout(game(4), 1, 16, CPU)
    rollout.actions, rollout.team_rewards = [chosen.view(1, 16, 4)], joint.view(1, 16)
    rollout.terminated[:] = True
    zeros = torch.zeros(1, 16)
    estimate = Estimate(torch.zeros(16, 1), zeros, zeros, joint.view(1, 16), joint.view(1, 16))
    seconds = set()
    algorithm = recording(4)
    for _ in range(25):
        for member in range(4):
            set_probabilities(algorithm, member, 0.5)
        algorithm.update_with(rollout, estimate)
        first, second, third, fourth = (turn.member for turn in algorithm.updated)
        assert first == 2
        seconds.add(second)
        assert share[third] > share[fourth]
    assert seconds == {0, 1, 3}


# --- simultaneous updates -------------------------------------------------------------------------------------------


def updated_with_haste(name: str, hasty: int | None) -> Tensor:
    """[N, P] policies after one update in which one agent's step size was a hundred times larger."""
    algorithm, rollout, collector = new_algorithm(name, TOY, 8, 10, {"agents": 3}, share_parameters=False)
    if hasty is not None:
        algorithm.steps.optimisers[0][hasty].learning_rate *= 100
    collector.collect(algorithm)
    algorithm.update(rollout, 0.0)
    return algorithm.policies[0].theta


@pytest.mark.parametrize("name", ["mappo", "ippo", "happo"])
def test_only_the_sequential_algorithms_let_an_agent_know_of_the_others_updates(name: str) -> None:
    calm, touched = updated_with_haste(name, None), 0
    for hasty in range(3):
        same = [torch.equal(a, b) for a, b in zip(calm, updated_with_haste(name, hasty), strict=True)]
        assert not same[hasty]
        touched += 2 - sum(same)
    assert touched == (3 if name == "happo" else 0), "pairs of an agent and one updated before it"


@pytest.mark.parametrize("recurrent", [False, True])
def test_agents_who_share_parameters_form_one_loss(recurrent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One gradient step on the mean over all agents' samples, and the normalised joint advantage for each."""
    algorithm, rollout, collector = new_algorithm(
        "mappo", TOY, 4, 12, {"agents": 3}, epochs=1, recurrent=recurrent, chunk_length=4
    )
    collector.collect(algorithm)
    rollout.active[3:, 1, 0] = rollout.active[5:, :, 2] = False
    rollout.all_active = False
    calls: list[tuple[Turn, dict[str, float]]] = []
    estimate = joint_estimate(rollout, algorithm.critic, algorithm.state_normaliser, algorithm.settings)
    joint = normalise_advantages(estimate.advantages)
    alone = [team_samples(algorithm, rollout).of_members(0, slice(i, i + 1)) for i in range(3)]
    monkeypatch.setattr(
        mappo, "clipped_loss", lambda new, turn, **told: calls.append((turn, told)) or clipped_loss(new, turn, **told)
    )
    algorithm.update(rollout, 0.0)
    ((turn, told),) = calls
    together, advantages = turn.samples, turn.advantages
    assert len(together.inputs) == 12 * 4 * 3
    torch.testing.assert_close(advantages, joint.flatten().repeat_interleave(3))
    # The same member by member, weighted by the steps at which each was there.
    policy, total = algorithm.policies[0], 0.0
    for member, samples in enumerate(alone):
        assert (samples.inputs[:, -3:].argmax(-1) == member).all(), "the identity is appended"
        mine = replace(turn, samples=samples, advantages=joint.flatten())
        loss = clipped_loss(samples.under(policy, policy.theta[0]), mine, **told)
        total += int(rollout.active[:, :, member].sum()) * float(loss)
    pooled = clipped_loss(together.under(policy, policy.theta[0]), turn, **told)
    assert float(pooled) == pytest.approx(total / int(rollout.active.sum()), rel=1e-4)


# --- IPPO's own values ----------------------------------------------------------------------------------------------


def seen(*values: tuple[float, float]) -> Observation:
    """Observations of two agents in two environments whose values V(o, i) = o + 10·i are these."""
    numbers = torch.tensor(values) - torch.tensor([0.0, 10.0])
    present = torch.ones(2, 2, dtype=torch.bool)
    return Observation((numbers.unsqueeze(-1),), (None,), torch.full((2, 1), math.nan), present)


def two_agents_rollout() -> Rollout:
    """Three steps; at the second, environment 0 terminates and environment 1 is cut off."""
    rollout = Rollout(game(2), 3, 2, CPU)
    observed = [seen((2, 4), (2, 4)), seen((4, 8), (4, 8)), seen((8, 2), (8, 2)), seen((16, 4), (16, 4))]
    rewards = [[1, 3], [2, 1], [4, 6]]
    nothing, decision = np.zeros(2, np.bool_), Decision((torch.zeros(2, 2, dtype=torch.int64),), ())
    for step in range(3):
        paid = np.array([rewards[step]] * 2, np.float32)
        result = StepResult(observed[step + 1], paid, nothing, nothing, None)
        if step == 1:
            ends = np.array([True, False])
            result = StepResult(observed[2], paid, ends, ~ends, seen((6, 6), (6, 2)))
        rollout.record(step, observed[step], decision, result)
    rollout.finish(observed[3])
    return rollout


def test_ippo_estimates_every_agents_own_advantage_by_hand() -> None:
    """γλ = ¼; the bootstrap is 0 after termination and the agent's own final observation's value at the cut."""
    algorithm = new_player("ippo", gamma=0.5, gae_lambda=0.5)
    algorithm.critics.critics[0].theta.copy_(torch.tensor([1.0, 0.0, 10.0, 0.0]))
    estimate = algorithm.critics.estimate(two_agents_rollout(), algorithm.settings)
    assert estimate.values.shape == estimate.advantages.shape == (3, 2, 2)
    torch.testing.assert_close(estimate.values[:, 0], torch.tensor([[2.0, 4.0], [4.0, 8.0], [8.0, 2.0]]))
    # Terminated: δ = 1+2−2, 2−4, 4+8−8 and 3+4−4, 1−8, 6+2−2.
    torch.testing.assert_close(estimate.advantages[:, 0], torch.tensor([[0.5, 1.25], [-2.0, -7.0], [4.0, 6.0]]))
    # Cut off at V = 6 and V = 2: δ₁ = 2+3−4 and 1+1−8.
    torch.testing.assert_close(estimate.advantages[:, 1], torch.tensor([[1.25, 1.5], [1.0, -6.0], [4.0, 6.0]]))
    torch.testing.assert_close(estimate.returns, estimate.advantages + estimate.values)
    torch.testing.assert_close(estimate.next_values[1], torch.tensor([[0.0, 0.0], [6.0, 2.0]]))


def test_ippo_normalises_over_the_agents_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, rollout = new_player("ippo"), two_agents_rollout()
    advantages = torch.tensor([[[1.0, 9e9], [3.0, 9e9]], [[1.0, 3.0], [3.0, 1.0]], [[-9e9, 3.0], [1.0, 9e9]]])
    rollout.active, rollout.all_active = advantages.abs() < 9, False
    estimate = replace(algorithm.critics.estimate(rollout, algorithm.settings), advantages=advantages)
    turns: list[Turn] = []
    monkeypatch.setattr(algorithm.critics, "estimate", lambda *_: estimate)
    monkeypatch.setattr(
        algorithm.steps,
        "descend",
        lambda turn, *_: turns.append(turn) or Improvement(turn.samples.old, {"agent_kl": 0.0}),
    )
    algorithm.update(rollout, 0.0)
    (turn,) = turns
    normalised = turn.advantages.view(rollout.active.shape)[rollout.active]
    # Of 1, 3, 1, 3, 3, 1, 3, 1: mean 2, standard deviation 1.
    torch.testing.assert_close(normalised, torch.tensor([-1.0, 1.0, -1.0, 1.0, 1.0, -1.0, 1.0, -1.0]))


# --- what must not matter -------------------------------------------------------------------------------------------


def shuffled(rollout: Rollout, order: Tensor) -> Rollout:
    """The same with its environments in another order, as far as an agent's samples go."""
    other = copy.copy(rollout)
    for name in ("rewards", "team_rewards", "terminated", "truncated", "active"):
        setattr(other, name, getattr(rollout, name)[:, order])
    other.observations = [block[:, order] for block in rollout.observations]
    other.action_masks = [None if mask is None else mask[:, order] for mask in rollout.action_masks]
    other.actions = [block[:, order] for block in rollout.actions]
    other.memories = [tuple(memory[:, order] for memory in recorded) for recorded in rollout.memories]
    return other


def moved(algorithm: Any, agent: int, samples: AgentSamples) -> Distribution:
    """The agent's policy a little off the old one."""
    group, member = algorithm.position[agent]
    theta = algorithm.policies[group].row(member)
    noise = torch.randn(theta.shape, generator=torch.Generator().manual_seed(5))
    return samples.under(algorithm.policies[group], theta + 0.3 * noise)


def losses(algorithm: Any, agent: int, samples: AgentSamples, advantages: Tensor, loss: Loss | None) -> list[float]:
    """The loss (HATRPO: its surrogate) and the divergence."""
    new = moved(algorithm, agent, samples)
    if loss is not None:
        weight = torch.linspace(0.9, 1.1, 7)[(advantages * 1e3).long() % 7]
        turn = turn_of(algorithm, agent, replace(samples, surrogate_weight=weight), advantages, factor=weight)
        value = loss(new, turn)
    else:
        value = surrogate(new, samples, advantages, 0.1)
    return [float(value), float(samples.mean(samples.old.kl(new)))]


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("name", ["hatrpo", *GRADIENT_ALGORITHMS])
def test_the_order_of_samples_and_environments_does_not_matter(name: str, recurrent: bool) -> None:
    algorithm, rollout, collector = new_algorithm(
        name, "toy_environments:leaving", 6, 12, recurrent=recurrent, chunk_length=4
    )
    collector.collect(algorithm)
    assert rollout.ended.any()
    assert not rollout.all_active
    loss = None if name == "hatrpo" else descended(new_player(name, entropy_coefficient=0.01))
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(6, generator=generator)
    other = shuffled(rollout, order)
    drawn = torch.randn(12, 6, generator=generator)
    for agent in range(3):
        samples = team_samples(algorithm, rollout).of_agent(agent)
        expected = losses(algorithm, agent, samples, drawn.flatten(), loss)
        assert expected[1] > 1e-4
        units = torch.randperm(samples.units, generator=generator)
        parted = losses(algorithm, agent, samples.take(units), drawn.flatten()[samples.rows(units)], loss)
        assert parted == pytest.approx(expected, rel=1e-4, abs=1e-6)
        elsewhere = team_samples(algorithm, other).of_agent(agent)
        assert losses(algorithm, agent, elsewhere, drawn[:, order].flatten(), loss) == pytest.approx(
            expected, rel=1e-4, abs=1e-6
        )


@pytest.mark.parametrize("name", ["hatrpo", *GRADIENT_ALGORITHMS])
def test_what_absent_agents_see_and_do_has_no_influence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two updates, alike but for the observations, actions and masks at the steps of absence."""
    results = []
    for disturb in (False, True):
        algorithm, rollout, collector = new_algorithm(name, TOY, 6, 10, {"agents": 3})
        collector.collect(algorithm)
        rollout.active[2:5, :, 0] = rollout.active[7:, 3:, 2] = False
        rollout.all_active = False
        if name == "ippo":
            estimate = algorithm.critics.estimate(rollout, algorithm.settings)
            monkeypatch.setattr(algorithm.critics, "estimate", lambda *_, made=estimate: made)
        else:
            estimate = joint_estimate(rollout, algorithm.critic, algorithm.state_normaliser, algorithm.settings)
            place = f"hmarl.trainer.algorithms.{name}.joint_estimate"
            monkeypatch.setattr(place, lambda *_, made=estimate: made)
        if disturb:
            gone = ~rollout.active
            rollout.observations[0][gone], rollout.actions[0][gone] = 7.0, 3
            rollout.action_masks[0][gone] = True
            if name == "ippo":
                estimate.advantages[gone] = 1e4
        metrics = algorithm.update(rollout, 0.0)
        results.append((algorithm.policies[0].theta, metrics))
    (calm, expected), (disturbed, metrics) = results
    torch.testing.assert_close(disturbed, calm, rtol=1e-4, atol=1e-6)
    assert metrics == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert metrics["agent_kl"] > 0


def test_what_an_absent_agent_sees_or_would_earn_does_not_reach_ippos_critic() -> None:
    fitted = []
    for seen, junk in ((0.0, 0.0), (7.0, 50.0)):
        algorithm, rollout, collector = new_algorithm(
            "ippo", "toy_environments:masked_discrete", 6, 10, {"agents": 3}, normalise_observations=False
        )
        collector.collect(algorithm)
        rollout.active[2:5, :, 0], rollout.all_active = False, False
        rollout.rewards[~rollout.active] = 0.0
        rollout.observations[0][~rollout.active] = seen
        estimate = algorithm.critics.estimate(rollout, algorithm.settings)
        estimate.returns[~rollout.active] = junk
        algorithm.critics.fit(rollout, estimate.returns, algorithm.noise_generator)
        fitted.append((estimate.advantages[rollout.active], algorithm.components()["critics.0"].theta.clone()))
    assert torch.equal(fitted[0][0], fitted[1][0])
    assert torch.equal(fitted[0][1], fitted[1][1])
