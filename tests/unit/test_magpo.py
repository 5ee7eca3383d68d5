"""MAGPO by hand: the double clip, what draws the guider back, what the local policies follow, and its ablations."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec
from hmarl.trainer.algorithms import find_algorithm
from hmarl.trainer.guiders import following, trained
from hmarl.trainer.guiders.batch import TeamBatch
from hmarl.trainer.guiders.following import Bond, doubly_clipped_surrogate, guide_and_follow, outside
from hmarl.trainer.guiders.guider import Judged, TeamView
from hmarl.trainer.guiders.trained import Minibatch, clipped_value_loss
from hmarl.trainer.learning.imitation import distil, imitation_loss
from hmarl.trainer.networks.distributions import ActionHead, Categorical
from hmarl.trainer.networks.flat import Mlp
from hmarl.trainer.networks.optimiser import FlatAdam
from hmarl.trainer.networks.policies import GroupPolicy
from hmarl.trainer.sequential.gradient_steps import clipped_surrogate
from training_runs import CPU, new_algorithm, of_use

pytestmark = pytest.mark.usefixtures("single_thread")

TOY = "toy_environments:masked_discrete"
# Two agents at three steps, two actions each: [N, M, 2]. μ/π of the actions taken is 1.5, 1, ½ and 1.25, 0.4, 1.
GUIDER = torch.tensor([[[0.75, 0.25], [0.5, 0.5], [0.6, 0.4]], [[0.5, 0.5], [0.9, 0.1], [0.3, 0.7]]])
LOCAL = torch.tensor([[[0.5, 0.5], [0.5, 0.5], [0.2, 0.8]], [[0.4, 0.6], [0.75, 0.25], [0.3, 0.7]]])
OLD = torch.tensor([[[0.6, 0.4], [0.4, 0.6], [0.5, 0.5]], [[0.5, 0.5], [0.8, 0.2], [0.2, 0.8]]])
ACTIONS = torch.tensor([[0, 0, 1], [0, 1, 1]])  # [N, M]
ADVANTAGES = torch.tensor([1.0, -2.0, 3.0])


class RecordingOptimiser:
    """Takes a loss, but no step."""

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter
        self.losses: list[Tensor] = []

    def step(self, loss: Tensor, schedule: float = 1.0) -> Tensor:
        self.losses.append(loss)
        return torch.zeros(())


def new_player(name: str = "magpo", agents: int = 2, **settings: Any) -> Any:
    """In a game of two actions in which all agents see one number; nothing is normalised, no entropy bonus."""
    algorithm_class = find_algorithm(name)
    specs = tuple(AgentSpec(f"agent_{i}", 1, spaces.Discrete(2)) for i in range(agents))
    game = EnvironmentSpec("toy/game", specs, state_size=1, horizon=None, team_reward="shared")
    plain = {"normalise_observations": False, "normalise_values": False, "recurrent": False, "entropy_coefficient": 0.0}
    checked = algorithm_class.settings_class(
        **of_use(name, {"hidden_sizes": (), "embedding_size": 4, **plain, **settings})
    )
    return algorithm_class(game, checked, torch.Generator().manual_seed(0), CPU)


def recording(name: str = "magpo", agents: int = 2, **settings: Any) -> Any:
    """The same, but its losses are recorded instead of descended."""
    algorithm = new_player(name, agents, **settings)
    algorithm.guider.optimiser = RecordingOptimiser(algorithm.guider.optimiser.parameter)
    if algorithm.policies:
        followers = algorithm.guidance.followers
        followers.optimisers = [RecordingOptimiser(each.parameter) for each in followers.optimisers]
    return algorithm


def bond_of(algorithm: Any) -> Bond:
    """What binds its guider and local policies in an update."""
    return Bond.of(algorithm.settings, float(algorithm.guidance.delta.value), algorithm.guider)


def batch_of(actions: Tensor, active: Tensor | None = None, values: Tensor | None = None) -> TeamBatch:
    """Steps of one sequence each, with these actions [N, M], at each of which the agents see another number."""
    agents, steps = actions.shape
    seen = torch.linspace(-1.0, 1.0, agents * steps).view(1, steps, agents, 1)
    zeros = torch.zeros(1, steps)
    return TeamBatch(
        view=TeamView([seen], [None]),
        actions=[actions.T.view(1, steps, agents)],
        active=active,
        begins=zeros.bool(),
        advantages=zeros,
        acting_order=tuple(range(agents)),
        acting_log_prob=torch.zeros(agents, steps),
        targets=zeros,
        values=zeros if values is None else values,
        guider_memory=torch.zeros(steps, 0),
        memories=[torch.zeros(agents, steps, 0)],
    )


def of_taken(probabilities: Tensor, actions: Tensor = ACTIONS) -> Tensor:
    """[N, M] log-probabilities of the actions."""
    return probabilities.gather(-1, actions.unsqueeze(-1)).squeeze(-1).log()


def guide(
    algorithm: Any,
    advantages: Tensor = ADVANTAGES,
    active: Tensor | None = None,
    copies: int = 1,
) -> tuple[float, Tensor, dict[str, Tensor]]:
    """The guider's loss, its gradient by the guider's logits [N, M, 2], and the metrics; agents ``copies`` times."""
    guider, local, old, actions = (x.repeat(copies, 1, 1) for x in (GUIDER, LOCAL, OLD, ACTIONS.unsqueeze(-1)))
    actions = actions.squeeze(-1)
    logits = guider.log().requires_grad_(True)
    part = batch_of(actions, None if active is None else active.repeat(copies, 1))
    judged = Judged([Categorical(logits)], torch.zeros(1, 3))
    metrics = following.guide(
        algorithm.guider,
        following.Moment(part, of_taken(old, actions), advantages),
        judged,
        [Categorical(local.log())],
        bond_of(algorithm),
        1.0,
    )
    (loss,) = algorithm.guider.optimiser.losses
    algorithm.guider.optimiser.losses = []
    return float(loss.detach()), torch.autograd.grad(loss, logits)[0], metrics


def follow(
    algorithm: Any, advantages: Tensor = ADVANTAGES, active: Tensor | None = None, copies: int = 1
) -> tuple[float, Tensor]:
    """The local policies' loss, and its gradient by their logits [N, M, 2]."""
    guider, local, old, actions = (x.repeat(copies, 1, 1) for x in (GUIDER, LOCAL, OLD, ACTIONS.unsqueeze(-1)))
    actions = actions.squeeze(-1)
    logits = local.log().requires_grad_(True)
    part = batch_of(actions, None if active is None else active.repeat(copies, 1))
    following.follow(
        algorithm.guidance.followers,
        following.Moment(part, of_taken(old, actions), advantages),
        [Categorical(guider.log())],
        [Categorical(logits)],
        bond_of(algorithm),
        1.0,
    )
    (loss,) = algorithm.guidance.followers.optimisers[0].losses
    algorithm.guidance.followers.optimisers[0].losses = []
    return float(loss.detach()), torch.autograd.grad(loss, logits)[0]


def divergence(first: float, second: float) -> float:
    """KL between (first, 1 − first) and (second, 1 − second)."""
    return first * math.log(first / second) + (1 - first) * math.log((1 - first) / (1 - second))


# --- the double clip ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guider", "old", "local", "advantage", "value", "gradient"),
    [
        # Within δ = 1.5: PPO's surrogate with ε = 0.2; r = 1.1, then r = 1.4 and r = 0.6 on both sides of zero.
        (0.55, 0.5, 0.5, 2.0, 2.2, 2.2),
        (0.7, 0.5, 0.6, 1.0, 1.2, 0.0),
        (0.7, 0.5, 0.6, -1.0, -1.4, -1.4),
        (0.3, 0.5, 0.4, 1.0, 0.6, 0.6),
        (0.3, 0.5, 0.4, -1.0, -0.8, 0.0),
        # μ/π = 2.25: held at 0.3, r' = ⅔, which ε cuts to 0.8, though r = 1.
        (0.45, 0.45, 0.2, 1.0, 0.8, 0.0),
        (0.45, 0.45, 0.2, -1.0, -1.0, -1.0),
        # μ/π = 2: held at 0.375, r' = 1 while r = 4/3.
        (0.5, 0.375, 0.25, 2.0, 2.0, 0.0),
        (0.5, 0.375, 0.25, -3.0, -4.0, -4.0),
        # μ/π = ⅓: held at 0.4, r' = 2, which ε cuts to 1.2, though r = 1.
        (0.2, 0.2, 0.6, 1.0, 1.0, 1.0),
        (0.2, 0.2, 0.6, -1.0, -1.2, 0.0),
        # μ/π = ½: held at 0.4, r' = 1 while r = ¾.
        (0.3, 0.4, 0.6, 1.0, 0.75, 0.75),
        (0.3, 0.4, 0.6, -1.0, -1.0, 0.0),
    ],
)
def test_the_double_clip_by_hand(
    guider: float, old: float, local: float, advantage: float, value: float, gradient: float
) -> None:
    """Eq. 8; where a clip binds there is no gradient by log μ at all, and else it is r · A."""
    log_prob = torch.tensor([[guider]], dtype=torch.float64).log().requires_grad_(True)
    behaviour, imitator = (torch.tensor([[p]], dtype=torch.float64).log() for p in (old, local))
    objective = doubly_clipped_surrogate(log_prob, behaviour, imitator, torch.tensor([advantage]), 0.2, 1.5)
    assert float(objective.detach()) == pytest.approx(value)
    (got,) = torch.autograd.grad(objective.sum(), log_prob)
    assert float(got) == (0.0 if gradient == 0.0 else pytest.approx(gradient))


def test_outside_are_ratios_of_delta_and_beyond() -> None:
    ratios = torch.tensor([[1.0, 1.49, 1.51, 4.0], [0.68, 0.66, 0.01, 0.99]])
    expected = [[False, False, True, True], [False, True, True, False]]
    assert outside(ratios.log(), torch.zeros(2, 4), 1.5).tolist() == expected


# --- the guider's loss ----------------------------------------------------------------------------------------------


def test_the_guiders_loss_by_hand() -> None:
    """−E[surrogate] + E[KL(μ ‖ π) · 1[outside]], averaged over both agents and three steps, δ = 1.4, ε = 0.2.

    Agent 0: r = 1.25, 1.25, 0.8; μ/π = 1.5 (held at 0.7, r' = 7/6), 1, ½ (held at 4/7, r' = 8/7). Agent 1: r = 1, ½,
    ⅞; μ/π = 1.25, 0.4 (held at 5/28, r' = 25/28), 1.
    """
    loss, _, metrics = guide(recording(delta=1.4))
    surrogate = [7 / 6 * 1, 1.25 * -2, 0.8 * 3, 1.0 * 1, 25 / 28 * -2, 7 / 8 * 3]
    apart = [divergence(0.75, 0.5), divergence(0.6, 0.2), divergence(0.9, 0.75)]
    assert loss == pytest.approx(-sum(surrogate) / 6 + sum(apart) / 6, rel=1e-5)
    assert float(metrics["outside_share"]) == pytest.approx(0.5)
    everywhere = sum(apart) + divergence(0.5, 0.4)
    assert float(metrics["imitation_kl"]) == pytest.approx(everywhere / 6, rel=1e-5)


def test_an_absent_agents_steps_leave_the_guiders_loss() -> None:
    active = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    loss, gradient, metrics = guide(recording(delta=1.4), active=active)
    surrogate = [7 / 6 * 1, 1.25 * -2, 25 / 28 * -2, 7 / 8 * 3]
    apart = [divergence(0.75, 0.5), divergence(0.9, 0.75)]
    assert loss == pytest.approx(-sum(surrogate) / 4 + sum(apart) / 4, rel=1e-5)
    assert float(metrics["outside_share"]) == pytest.approx(0.5)
    assert not gradient[active == 0].any()


def test_outside_the_guider_is_drawn_to_the_local_policies_and_inside_it_is_free() -> None:
    """∂KL/∂logits = μ · (log μ/π − KL), a step against which moves the logits towards π's; nothing earns anything."""
    _, gradient, _ = guide(recording(delta=1.4), torch.zeros(3))
    apart = (of_taken(GUIDER) - of_taken(LOCAL)).abs() >= math.log(1.4)
    assert apart.tolist() == [[True, False, True], [False, True, False]]
    kl = Categorical(GUIDER.log()).kl(Categorical(LOCAL.log())).unsqueeze(-1)
    by_hand = GUIDER * ((GUIDER / LOCAL).log() - kl) / 6
    torch.testing.assert_close(gradient[apart], by_hand[apart])
    assert not gradient[~apart].any()
    way = (LOCAL.log() - GUIDER.log())[apart]
    way = way - way.mean(-1, keepdim=True)  # logits are the same up to a constant
    assert (-(gradient[apart] * way).sum(-1) > 0).all()


@pytest.mark.parametrize("backtracking", [True, False])
def test_without_a_surrogate_repeated_steps_bring_the_guider_back_within_delta(backtracking: bool) -> None:
    algorithm = new_player(learning_rate=3e-3, backtracking=backtracking)
    algorithm.guider.theta += 2.0 * torch.randn(
        algorithm.guider.network.size, generator=torch.Generator().manual_seed(3)
    )
    part = batch_of((torch.rand(2, 32, generator=torch.Generator().manual_seed(2)) < 0.5).long())
    local = [each.detach() for each in algorithm.guidance.followers.distributions(part)]
    order, shares = torch.tensor([1, 0]), []
    for _ in range(150):
        judged = algorithm.guider.judge(part, order)
        # Values that are what they should be pull at nothing.
        part = replace(part, values=judged.values.detach(), targets=judged.values.detach())
        moment = following.Moment(part, part.log_prob(judged.distributions).detach(), torch.zeros(32))
        metrics = following.guide(algorithm.guider, moment, judged, local, bond_of(algorithm), 1.0)
        shares.append(float(metrics["outside_share"]))
    assert shares[0] > 0.3
    assert shares[-1] == (0.0 if backtracking else shares[0])


# --- the local policies' loss ---------------------------------------------------------------------------------------

# min(r_π·A, clip(r_π, 0.8, 1.2)·A) with r_π = π/μ_old = 5/6, 5/4, 8/5 and 4/5, 5/4, 7/8.
SURROGATE = [[5 / 6, -2 * 5 / 4, 3 * 1.2], [4 / 5, -2 * 5 / 4, 3 * 7 / 8]]
IMITATION = [[divergence(0.75, 0.5), 0.0, divergence(0.6, 0.2)], [divergence(0.5, 0.4), divergence(0.9, 0.75), 0.0]]


@pytest.mark.parametrize("share_parameters", [False, True])
@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_the_local_policies_loss_by_hand(weight: float, share_parameters: bool) -> None:
    """E[KL(μ ‖ π)] − λ · E[surrogate] of every agent: the sum over networks, the mean over those who share one."""
    algorithm = recording(reinforcement_weight=weight, share_parameters=share_parameters)
    loss, gradient = follow(algorithm)
    each = [(sum(IMITATION[i]) - weight * sum(SURROGATE[i])) / 3 for i in range(2)]
    assert loss == pytest.approx(sum(each) / (2 if share_parameters else 1), rel=1e-5)
    if weight == 0:
        torch.testing.assert_close(gradient, (LOCAL - GUIDER) / (6 if share_parameters else 3))


def test_the_local_policies_gradient_by_hand() -> None:
    """π − μ of the imitation, and −λ·r·A·(1[a] − π) of the surrogate where no clip binds: not at agent 0's third."""
    _, gradient = follow(recording(reinforcement_weight=2.0))
    ratio = torch.tensor([[5 / 6, 5 / 4, 0.0], [4 / 5, 5 / 4, 7 / 8]]).unsqueeze(-1)
    score = torch.eye(2)[ACTIONS] - LOCAL
    by_hand = LOCAL - GUIDER - 2.0 * ratio * ADVANTAGES.view(1, 3, 1) * score
    torch.testing.assert_close(gradient, by_hand / 3)


@pytest.mark.parametrize("share_parameters", [False, True])
def test_an_absent_agents_steps_leave_the_local_policies_loss(share_parameters: bool) -> None:
    active = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    algorithm = recording(share_parameters=share_parameters)
    loss, gradient = follow(algorithm, active=active)
    there = sum(IMITATION[i][t] - SURROGATE[i][t] for i, t in ((0, 0), (0, 2), (1, 1)))
    assert loss == pytest.approx(there / (6 if share_parameters else 3), rel=1e-5)
    assert not gradient[active == 0].any()
    assert gradient[active == 1].any()


def test_guider_and_local_policies_are_each_held_fixed_in_the_others_loss() -> None:
    algorithm = recording(entropy_coefficient=0.01)
    part = replace(batch_of(ACTIONS), advantages=ADVANTAGES.view(1, 3), targets=ADVANTAGES.view(1, 3))
    order = torch.tensor([0, 1])
    minibatch = Minibatch(part, order, of_taken(OLD))
    metrics = guide_and_follow(algorithm.guider, algorithm.guidance.followers, minibatch, bond_of(algorithm), 1.0)
    assert float(metrics["imitation_kl"]) > 0
    guider, local = algorithm.guider.optimiser, algorithm.guidance.followers.optimisers[0]
    for own, other in ((guider, local), (local, guider)):
        (loss,) = own.losses
        of_own, of_other = torch.autograd.grad(
            loss, [own.parameter, other.parameter], allow_unused=True, retain_graph=True
        )
        assert of_own.any()
        assert of_other is None


def test_a_learning_rate_of_their_own() -> None:
    assert [each.learning_rate for each in new_player(learning_rate=1e-3).guidance.followers.optimisers] == [1e-3]
    apart = new_player(learning_rate=1e-3, learner_learning_rate=2e-3)
    assert (apart.guider.optimiser.learning_rate, apart.guidance.followers.optimisers[0].learning_rate) == (1e-3, 2e-3)


# --- what must not matter -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("active", [None, torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])])
def test_twice_as_many_alike_agents_have_the_same_losses(active: Tensor | None) -> None:
    """Ratios, clips and divergences are an agent's own: what δ allows does not depend on how many there are."""
    two, four = (recording(agents=n, delta=1.4, share_parameters=True) for n in (2, 4))
    loss, gradient, metrics = guide(two, active=active)
    again, of_copies, more = guide(four, active=active, copies=2)
    assert again == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(of_copies[:2] + of_copies[2:], gradient)
    assert {key: float(value) for key, value in more.items()} == pytest.approx(
        {key: float(value) for key, value in metrics.items()}, rel=1e-5
    )
    assert follow(four, active=active, copies=2)[0] == pytest.approx(follow(two, active=active)[0], rel=1e-5)
    alone = [follow(recording(agents=n), active=active, copies=n // 2)[1][:2] for n in (2, 4)]
    torch.testing.assert_close(alone[0], alone[1])


# --- values, entropy, advantages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["magpo", "mat"])
def test_the_value_loss_by_hand(name: str) -> None:
    """max( (V − R)², (clip(V, V_old ± 0.2) − R)² ): too far a step on the way gains nothing, one away costs all."""
    algorithm = recording(name)
    part = replace(
        batch_of(torch.zeros(2, 5, dtype=torch.int64)),
        targets=torch.tensor([[2.0, 2.0, 0.0, 1.2, 1.0]]),
        values=torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0]]),
    )
    values = torch.tensor([[1.5, 0.9, 2.0, 1.5, 1.1]], requires_grad=True)
    loss = clipped_value_loss(values, part.values, part.targets, 0.2)
    assert float(loss.detach()) == pytest.approx((0.8**2 + 1.1**2 + 2.0**2 + 0.3**2 + 0.1**2) / 5, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, values)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, -2.2, 4.0, 0.6, 0.2]]) / 5)
    judged = Judged([Categorical(GUIDER.log().repeat(1, 2, 1)[:, :5].requires_grad_(True))], values)
    algorithm.guider.descend(part, judged, torch.zeros(2, 5), None, 1.0)
    assert float(algorithm.guider.optimiser.losses[0].detach()) == pytest.approx(0.5 * float(loss.detach()), rel=1e-5)


def test_without_a_clip_the_value_learns_from_every_error() -> None:
    targets, values = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.5, 2.0]], requires_grad=True)
    part = replace(batch_of(torch.zeros(2, 2, dtype=torch.int64)), targets=targets, values=torch.ones(1, 2))
    judged = Judged([Categorical(GUIDER.log().repeat(1, 2, 1)[:, :2].requires_grad_(True))], values)
    losses = {}
    for clip in (True, False):
        algorithm = recording("mat", value_clip=clip)
        losses[clip] = float(algorithm.guider.descend(part, judged, torch.zeros(2, 2), None, 1.0)["critic_loss"])
    assert losses == pytest.approx({True: (0.8**2 + 2.0**2) / 2, False: (0.5**2 + 2.0**2) / 2}, rel=1e-5)


@pytest.mark.parametrize("name", ["magpo", "mat"])
def test_values_are_clipped_about_what_the_network_said_in_whatever_units(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a network has moved nothing is clipped, also when the new targets have just moved the units."""
    algorithm, rollout, collector = new_algorithm(name, TOY, 4, 10, epochs=1, minibatches=1)
    said: list[tuple[Tensor, Tensor]] = []
    monkeypatch.setattr(
        trained,
        "clipped_value_loss",
        lambda values, old, *rest: said.append((old, values)) or clipped_value_loss(values, old, *rest),
    )
    for _ in range(2):
        collector.collect(algorithm)
        rollout.team_rewards += 50.0
        algorithm.update(rollout, 0.0)
        (old, new), *_ = said
        torch.testing.assert_close(new.detach(), old, rtol=0.0, atol=1e-5)
        said.clear()


@pytest.mark.parametrize("name", ["magpo", "mat"])
def test_the_entropy_bonus_by_hand(name: str) -> None:
    """c times the mean entropy of the guider, over the steps at which each agent was there."""
    active = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    losses = []
    for coefficient in (0.0, 0.3):
        algorithm = recording(name, entropy_coefficient=coefficient)
        judged = Judged([Categorical(GUIDER.log())], torch.zeros(1, 3))
        metrics = algorithm.guider.descend(batch_of(ACTIONS, active), judged, torch.ones(2, 3), None, 1.0)
        losses.append(float(algorithm.guider.optimiser.losses[0].detach()))
    entropies = [-p * math.log(p) - (1 - p) * math.log(1 - p) for p in (0.75, 0.9)]
    assert losses == pytest.approx([-1.0, -1.0 - 0.3 * sum(entropies) / 2], rel=1e-5)
    assert float(metrics["agent_entropy"]) == pytest.approx(sum(entropies) / 2, rel=1e-5)


def test_every_minibatch_has_normalised_advantages(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, rollout, collector = new_algorithm("magpo", TOY, 6, 10, recurrent=False, epochs=2, minibatches=3)
    seen: list[list[Tensor]] = [[], []]
    for log, name in zip(seen, ("guide", "follow"), strict=True):
        inner = getattr(following, name)

        def spy(*arguments: Any, inner: Any = inner, log: list[Tensor] = log) -> Any:
            log.append(arguments[1].advantages)
            return inner(*arguments)

        monkeypatch.setattr(following, name, spy)
    collector.collect(algorithm)
    algorithm.update(rollout, 0.0)
    assert len(seen[0]) == len(seen[1]) == 6
    for guided, followed in zip(*seen, strict=True):
        assert torch.equal(guided, followed)
        assert guided.shape == (2, 20)
        assert torch.equal(guided[0], guided[1])
        assert float(guided.mean()) == pytest.approx(0.0, abs=1e-5)
        assert float(guided.std(correction=0)) == pytest.approx(1.0, rel=1e-4)


# --- the adaptive bound and the ablations ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gap", "factor"), [(0.001, 1.1), (0.0132, 1.1), (0.0134, 1.0), (0.02, 1.0), (0.0299, 1.0), (0.031, 1 / 1.1)]
)
def test_delta_follows_the_imitation_gap(gap: float, factor: float) -> None:
    """log δ grows by a tenth below ⅔ of the limit, and shrinks above 1½ of it."""
    algorithm = new_player(delta="auto", imitation_gap=0.02)
    algorithm.guidance.delta.adapt(gap)
    assert float(algorithm.guidance.delta.value.log()) == pytest.approx(math.log(1.5) * factor)


def test_delta_stays_within_its_bounds_and_a_number_stays_what_it_is() -> None:
    algorithm = new_player(delta="auto")
    for gap, bound in ((9.0, 1.05), (0.0, 4.0)):
        for _ in range(100):
            algorithm.guidance.delta.adapt(gap)
        assert float(algorithm.guidance.delta.value) == pytest.approx(bound)
    algorithm.guidance.delta.adapt(math.nan)
    assert float(algorithm.guidance.delta.value) == pytest.approx(4.0)
    for delta, moves in (("auto", True), (1.5, False)):
        algorithm, rollout, collector = new_algorithm("magpo", TOY, 4, 10, delta=delta, imitation_gap=1e-6, epochs=1)
        used = []
        for _ in range(3):
            collector.collect(algorithm)
            used.append(algorithm.update(rollout, 0.0)["delta"])
        assert used[0] == 1.5
        assert (used[2] < used[1] < used[0]) if moves else used == [1.5] * 3


def test_without_the_double_clip_the_surrogate_is_ppos() -> None:
    loss, _, _ = guide(recording(delta=1.4, double_clip=False))
    ratio = (of_taken(GUIDER) - of_taken(OLD)).exp()
    penalty = divergence(0.75, 0.5) + divergence(0.6, 0.2) + divergence(0.9, 0.75)
    assert loss == pytest.approx(penalty / 6 - float(clipped_surrogate(ratio, ADVANTAGES, 0.2).mean()), rel=1e-5)


def test_without_backtracking_the_penalty_alone_is_gone() -> None:
    loss, _, metrics = guide(recording(delta=1.4))
    free, _, same = guide(recording(delta=1.4, backtracking=False))
    penalty = divergence(0.75, 0.5) + divergence(0.6, 0.2) + divergence(0.9, 0.75)
    assert loss - free == pytest.approx(penalty / 6, rel=1e-5)
    assert metrics == same


def test_a_guider_that_becomes_what_the_local_policies_are_is_not_penalised_as_well() -> None:
    held, _, same = guide(recording(delta=1.4, guider="factorised"))
    free, _, metrics = guide(recording(delta=1.4, backtracking=False))
    assert held == free
    assert metrics == same
    assert float(metrics["outside_share"]) > 0


def test_the_teacher_of_ctds_is_mat_and_its_students_only_imitate() -> None:
    """After two updates on the same rollouts the teacher is MAT's network to the last bit."""
    settings = {"embedding_size": 8, "epochs": 2, "minibatches": 2}
    mat, *its_own = new_algorithm("mat", TOY, 4, 10, **settings)
    ctds, *students_own = new_algorithm("ctds", TOY, 4, 10, recurrent=False, delta=1.001, **settings)
    magpo, *learners_own = new_algorithm("magpo", TOY, 4, 10, recurrent=False, delta=1.001, **settings)
    students = [policy.theta.clone() for policy in ctds.policies]
    for other in (ctds, magpo):
        other.guider.theta.copy_(mat.guider.theta)
        other.generator.set_state(mat.generator.get_state())
        other.noise_generator.set_state(mat.noise_generator.get_state())
    for _ in range(2):
        for algorithm, (rollout, collector) in ((mat, its_own), (ctds, students_own), (magpo, learners_own)):
            collector.collect(algorithm)
            algorithm.update(rollout, 0.0)
    assert torch.equal(ctds.guider.theta, mat.guider.theta)
    assert not torch.equal(magpo.guider.theta, mat.guider.theta)
    assert not torch.equal(ctds.policies[0].theta, students[0])
    loss, gradient = follow(recording("ctds"))
    assert loss == pytest.approx((sum(IMITATION[0]) + sum(IMITATION[1])) / 3, rel=1e-5)
    torch.testing.assert_close(gradient, (LOCAL - GUIDER) / 3)


# --- distillation ---------------------------------------------------------------------------------------------------


def test_the_imitation_loss_by_hand() -> None:
    """KL(teacher ‖ student), the teacher first; weighted by 0 or 1 over all samples."""
    teacher, students = Categorical(GUIDER.log()), Categorical(LOCAL.log())
    by_hand = torch.tensor(IMITATION)
    torch.testing.assert_close(imitation_loss(teacher, students, None), by_hand.sum(1) / 3)
    weight = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    torch.testing.assert_close(imitation_loss(teacher, students, weight), (by_hand * weight).sum(1) / 3)
    # One teacher of all students.
    alone = imitation_loss(Categorical(GUIDER[0].log()), students, None)
    expected = [divergence(0.75, 0.4) + divergence(0.5, 0.75) + divergence(0.6, 0.3)]
    torch.testing.assert_close(alone, torch.tensor([sum(IMITATION[0]), *expected]) / 3)


def test_distilling_makes_every_student_the_teacher_where_it_was_there() -> None:
    """Students who see nothing but a bias end at the mean of what the teacher did at their own steps."""
    network = Mlp(1, (), 2)
    students = GroupPolicy(network, ActionHead(spaces.Discrete(2)), torch.zeros(2, network.size), members=2)
    weight = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    gap = distil(
        students,
        FlatAdam(students.theta, 0.02, 10.0),
        torch.zeros(2, 3, 1),
        Categorical(GUIDER[0].log()),
        weight,
        torch.Generator().manual_seed(0),
        epochs=400,
        minibatches=1,
    )
    probabilities = students.all_distributions(torch.zeros(2, 1, 1)).log_probs.exp()[:, 0, 0]  # type: ignore[attr-defined]
    torch.testing.assert_close(probabilities, torch.tensor([0.625, 0.55]), rtol=0.0, atol=1e-3)
    steps = [(0.75, 0.625), (0.5, 0.625), (0.5, 0.55), (0.6, 0.55)]
    assert gap == pytest.approx(sum(divergence(*pair) for pair in steps) / 4, rel=1e-2)
