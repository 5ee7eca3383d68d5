"""HAMDPO's step is mirror descent, HATRPO's stays in its region; three agents' surrogates are exact advantages."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec
from hmarl.trainer.algorithms.haa2c import policy_gradient_loss
from hmarl.trainer.algorithms.hamdpo import Hamdpo, HamdpoSettings, annealed_step_size, mirror_descent_loss
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.networks.distributions import (
    ActionHead,
    Categorical,
    DiagonalGaussian,
    Distribution,
    MultiCategorical,
)
from hmarl.trainer.networks.policies import GroupPolicy
from hmarl.trainer.networks.settings import AlgorithmSettings
from hmarl.trainer.sequential.samples import AgentSamples, TeamSamples
from hmarl.trainer.sequential.turns import Improvement, Turn, one_after_the_other
from training_runs import CPU, new_algorithm, team_samples, turn_of

pytestmark = pytest.mark.usefixtures("single_thread")

LINEAR: dict[str, Any] = {
    "hidden_sizes": (),
    "critic_hidden_sizes": (),
    "normalise_observations": False,
    "entropy_coefficient": 0.0,
    "step_size_schedule": "linear",
}
STATES, CHOICES = 3, 3
# In quarters, per state; ¼ · ¼ makes 48 rows of (s, a, b) exact.
OLD = torch.tensor([[1.0, 1.0, 2.0], [2.0, 1.0, 1.0], [1.0, 2.0, 1.0]]) / 4
OTHER = torch.tensor([[2.0, 1.0, 1.0], [1.0, 1.0, 2.0], [1.0, 2.0, 1.0]]) / 4
ADVANTAGES = torch.tensor([[1.0, -0.5, -0.25], [0.0, 2.0, -2.0], [-1.0, 0.25, 0.5]])  # A(s, a)


def spec(agents: int, choices: int, observation_size: int) -> EnvironmentSpec:
    specs = tuple(AgentSpec(f"agent_{i}", observation_size, spaces.Discrete(choices)) for i in range(agents))
    return EnvironmentSpec("toy/table", specs, state_size=1, horizon=1, team_reward="shared")


def tabular(**settings: Any) -> Hamdpo:
    """One agent whose policy is a table over one-hot states, set to ``OLD``."""
    checked = HamdpoSettings(**{**LINEAR, "learning_rate": 0.05, "epochs": 400, **settings})
    algorithm = Hamdpo(spec(1, CHOICES, STATES), checked, torch.Generator().manual_seed(0), CPU)
    algorithm.policies[0].theta.copy_(torch.cat([OLD.log().T.flatten(), torch.zeros(CHOICES)]))
    return algorithm


def enumerated() -> tuple[Tensor, Tensor, Tensor]:
    """[48] states, the agent's actions and another agent's, each as often as its probability says."""
    rows = []
    for s, a, b in itertools.product(range(STATES), range(CHOICES), range(CHOICES)):
        count = float(16 * OLD[s, a] * OTHER[s, b])
        assert count == int(count)
        rows += [(s, a, b)] * int(count)
    assert len(rows) == 48
    states, actions, others = torch.tensor(rows).T
    return states, actions, others


def improve(algorithm: Hamdpo, advantages: Tensor) -> tuple[Tensor, dict[str, float]]:
    """[S, A] the new table, and the update's metrics."""
    states, actions, _ = enumerated()
    policy, inputs = algorithm.policies[0], torch.eye(STATES)[states]
    old = Categorical(OLD.log()[states])
    samples = AgentSamples(inputs, None, None, actions, None, None, None, old, old.log_prob(actions))
    metrics = algorithm.improve(turn_of(algorithm, 0, samples, advantages)).metrics
    new = policy.distribution(policy.row(0), torch.eye(STATES))
    assert isinstance(new, Categorical)
    return new.log_probs.exp(), metrics


def exact_step(advantages: Tensor, size: float) -> Tensor:
    """[S, A] π_old · exp(η A), normalised."""
    unnormalised = OLD * (size * advantages).exp()
    return unnormalised / unnormalised.sum(-1, keepdim=True)


@pytest.mark.parametrize("size", [0.3, 1.0])
def test_enough_gradient_steps_are_the_exact_mirror_descent_update(size: float) -> None:
    """π_new(a|s) ∝ π_old(a|s) · exp(η A(s, a)), which needs KL(new ‖ old); the other direction ends elsewhere."""
    states, actions, _ = enumerated()
    new, metrics = improve(tabular(step_size=size), ADVANTAGES[states, actions])
    exact = exact_step(ADVANTAGES, size)
    torch.testing.assert_close(new, exact, atol=1e-3, rtol=0.0)
    assert (exact - OLD).abs().max() > 0.1
    divergence = (exact * (exact / OLD).log()).sum(-1).mean()
    assert metrics["agent_reverse_kl"] == pytest.approx(float(divergence), rel=0.02)


def test_with_an_agent_before_the_step_follows_the_mean_of_the_weighted_advantage() -> None:
    """F·Â depends on another agent's action b: A(s, a) is its mean over b ∼ π_old(b|s)."""
    states, actions, others = enumerated()
    ratio = torch.tensor([[1.5, 0.5, 0.5], [0.4, 1.2, 1.2], [1.0, 0.8, 1.4]])  # F(s, b), 1 on average
    torch.testing.assert_close((OTHER * ratio).sum(-1), torch.ones(STATES))
    joint = torch.randn(STATES, CHOICES, CHOICES, generator=torch.Generator().manual_seed(4))
    weighted = torch.einsum("sb,sb,sab->sa", OTHER, ratio, joint)
    new, _ = improve(tabular(step_size=0.7), ratio[states, others] * joint[states, actions, others])
    torch.testing.assert_close(new, exact_step(weighted, 0.7), atol=1e-3, rtol=0.0)


def loss_at(algorithm: Hamdpo, progress: float = 0.0) -> float:
    """Of one sample whose π goes from (½, ½) to (¾, ¼), action 0, F·Â = 2."""
    old = Categorical(torch.zeros(1, 2))
    action = torch.zeros(1, dtype=torch.int64)
    samples = AgentSamples(torch.zeros(1, 1), None, None, action, None, None, None, old, old.log_prob(action))
    turn = turn_of(algorithm, 0, samples, torch.tensor([2.0]), progress=progress)
    new, step_size = Categorical(torch.tensor([[3.0, 1.0]]).log()), annealed_step_size(algorithm.settings, progress)
    return float(mirror_descent_loss(new, turn, algorithm.settings, step_size))


def test_the_loss_by_hand_while_the_step_size_anneals() -> None:
    """−1.5·2 + KL(new ‖ old)/η with KL = ¾ ln(3/2) + ¼ ln(1/2); η = 0.5 · max(1 − k/K, 0.2)."""
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert divergence != pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2), rel=0.05), "the directions differ"
    algorithm = tabular(step_size=0.5, step_size_floor=0.2)
    for progress, expected in ((0.0, 0.5), (0.25, 0.375), (0.8, 0.1), (0.95, 0.1)):
        assert annealed_step_size(algorithm.settings, progress) == pytest.approx(expected)
        assert loss_at(algorithm, progress) == pytest.approx(-3.0 + divergence / expected, rel=1e-5)
    assert loss_at(tabular(kl_regularisation=False)) == pytest.approx(-3.0)


def test_an_update_takes_the_step_size_of_its_progress() -> None:
    algorithm, rollout, collector = new_algorithm(
        "hamdpo", "toy_environments:masked_discrete", 4, 10, step_size=2.0, step_size_schedule="linear"
    )
    for progress, expected in ((0.0, 2.0), (0.5, 1.0), (0.99, 0.1)):
        collector.collect(algorithm)
        assert algorithm.update(rollout, progress)["step_size"] == pytest.approx(expected)


# --- three agents in an enumerated game -----------------------------------------------------------------------------

FIRST_OLD = (0.25, 0.5, 0.75)  # π^i(0)
FIRST_NEW = (0.6, 0.1, 0.85)
Q = torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
TRIPLES = list(itertools.product(range(2), repeat=3))


def probability(first: tuple[float, ...], agent: int, action: int) -> float:
    return first[agent] if action == 0 else 1.0 - first[agent]


def expected_value(new: set[int]) -> float:
    """E[Q] when the agents ``new`` play their new policies and the others their old ones."""
    total = 0.0
    for joint in TRIPLES:
        weights = [probability(FIRST_NEW if i in new else FIRST_OLD, i, joint[i]) for i in range(3)]
        total += math.prod(weights) * float(Q[joint])
    return total


class ThreeAgents:
    """Agents in a given order whose policies are set to ``FIRST_NEW`` instead of being improved."""

    def __init__(self, order: tuple[int, ...]) -> None:
        self.order, self.gains = order, dict[int, float]()
        head = ActionHead(spaces.Discrete(2))
        self.policy = GroupPolicy.create(3, 1, head, AlgorithmSettings(hidden_sizes=()), torch.Generator())
        for agent in range(3):
            self.set_policy(agent, FIRST_OLD)

    def set_policy(self, agent: int, first: tuple[float, ...]) -> None:
        logits = [math.log(probability(first, agent, action)) for action in range(2)]
        self.policy.row(agent).copy_(torch.tensor([0.0, 0.0, *logits]))

    def update(self, rollout: Rollout) -> None:
        """On the exact A(a) = Q(a) − E[Q], not normalised."""
        exact = Q[rollout.actions[0].view(-1, 3).unbind(-1)] - expected_value(set())
        team = TeamSamples(rollout, [self.policy], rollout.observations)
        one_after_the_other(team, self._next, lambda _, factor: factor * exact.float(), self._improve)

    def _next(self, remaining: Sequence[int], factor: Tensor) -> int:
        return self.order[3 - len(remaining)]

    def _improve(self, turn: Turn) -> Improvement:
        self.set_policy(turn.agent, FIRST_NEW)
        new = turn.samples.under(turn.policy, turn.policy.row(turn.member))
        gain = policy_gradient_loss(turn.samples.old, turn, 0.0) - policy_gradient_loss(new, turn, 0.0)
        self.gains[turn.agent] = float(gain)
        return Improvement(new, {"agent_kl": 0.0})


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_three_agents_surrogates_are_exact_and_add_up(order: tuple[int, ...]) -> None:
    """With F the product of two ratios: E[A^{i_l}] of HCPO Eq. 17, and their sum, Eq. 12."""
    counts = [math.prod(4 * probability(FIRST_OLD, i, joint[i]) for i in range(3)) for joint in TRIPLES]
    rows = [joint for joint, count in zip(TRIPLES, counts, strict=True) for _ in range(int(count))]
    assert len(rows) == sum(counts) == 64
    rollout = Rollout(spec(3, 2, 1), 1, 64, CPU)
    rollout.actions = [torch.tensor(rows).view(1, 64, 3)]
    rollout.terminated[:] = True
    algorithm = ThreeAgents(order)
    algorithm.update(rollout)
    for place, agent in enumerate(order):
        exact = expected_value(set(order[: place + 1])) - expected_value(set(order[:place]))
        assert abs(exact) > 1e-3
        assert algorithm.gains[agent] == pytest.approx(exact, abs=1e-5)
    joint = expected_value({0, 1, 2}) - expected_value(set())
    assert sum(algorithm.gains.values()) == pytest.approx(joint, abs=1e-5)


# --- trust region and distributions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("environment", ["toy_environments:masked_discrete", "toy_environments:leaving"])
def test_the_trust_region_holds_with_masks_memory_and_leaving_agents(environment: str, recurrent: bool) -> None:
    limit, accepted = 0.004, 0.0
    algorithm, rollout, collector = new_algorithm(
        "hatrpo", environment, 8, 20, kl_limit=limit, recurrent=recurrent, chunk_length=5
    )
    for _ in range(3):
        collector.collect(algorithm)
        before = [team_samples(algorithm, rollout).of_agent(agent) for agent in algorithm.position]
        metrics = algorithm.update(rollout, 0.0)
        accepted += metrics["agent_accepted"]
        for (agent, (group, member)), samples in zip(algorithm.position.items(), before, strict=True):
            policy = algorithm.policies[group]
            new = policy.distribution(policy.row(member), samples.inputs, samples.mask, samples.memory)
            divergence = samples.old.kl(new)
            present = rollout.active[:, :, agent].flatten()
            kl = float(divergence[present].mean())
            assert kl <= limit * (1 + 1e-4)
            assert kl == pytest.approx(metrics[f"agent_kl/{algorithm.spec.agents[agent].id}"], abs=1e-6)
    assert accepted > 2.0


def distributions() -> list[tuple[Distribution, Tensor, Tensor]]:
    """Every kind at six rows, with actions and the tensor that ``score`` differentiates by."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, generator=generator).requires_grad_(True)
    mask = torch.rand(6, 5, generator=generator) < 0.6
    actions = torch.stack([torch.randint(3, (6,), generator=generator), torch.randint(2, (6,), generator=generator)], 1)
    mask[torch.arange(6), actions[:, 0]] = mask[torch.arange(6), 3 + actions[:, 1]] = True
    log_std = torch.randn(5, generator=generator)
    return [
        (Categorical(logits), actions[:, 0], logits),
        (Categorical(logits, mask), actions[:, 0], logits),
        (MultiCategorical(logits, (3, 2), mask), actions, logits),
        (DiagonalGaussian(logits, log_std), torch.randn(6, 5, generator=generator), logits),
    ]


@pytest.mark.parametrize("kind", range(4))
def test_score_is_the_gradient_of_the_log_probability(kind: int) -> None:
    distribution, actions, parameters = distributions()[kind]
    (gradient,) = torch.autograd.grad(distribution.log_prob(actions).sum(), parameters)
    assert gradient.abs().max() > 0.1
    torch.testing.assert_close(distribution.score(actions).detach(), gradient)


@pytest.mark.parametrize("kind", range(4))
def test_taken_rows_are_the_distributions_of_those_rows(kind: int) -> None:
    distribution, actions, _ = distributions()[kind]
    rows = torch.tensor([4, 1, 1])
    part = distribution.take(rows)
    other = distribution.take(rows.flip(0))
    torch.testing.assert_close(part.log_prob(actions[rows]), distribution.log_prob(actions)[rows])
    torch.testing.assert_close(part.entropy(), distribution.entropy()[rows])
    torch.testing.assert_close(part.mode(), distribution.mode()[rows])
    torch.testing.assert_close(part.score(actions[rows]), distribution.score(actions)[rows])
    assert part.kl(part).abs().max() < 1e-6
    assert part.kl(other)[0] > 1e-3
