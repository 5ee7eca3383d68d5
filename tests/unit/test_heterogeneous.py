"""The sequential update in an enumerated game: the code's surrogates equal the exact expectations of the papers.

One state, two agents with 2 and 3 actions, K = 2 instructions. All probabilities of the old policies are quarters, so
that a rollout in which every (M, a¹, a²) occurs in proportion to its probability is exact: means over it are
expectations.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec
from hmarl.trainer.algorithms import hcpo
from hmarl.trainer.algorithms.happo import Happo, HappoSettings
from hmarl.trainer.algorithms.hcpo import Hcpo, HcpoSettings
from hmarl.trainer.conductors.level import ConductorImprovement
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.learning.returns import normalise_advantages
from hmarl.trainer.networks.distributions import Categorical
from hmarl.trainer.networks.policies import GroupPolicy
from hmarl.trainer.sequential.constrained_steps import surrogate
from hmarl.trainer.sequential.estimates import Estimate, joint_estimate
from hmarl.trainer.sequential.gradient_steps import clipped_loss, clipped_surrogate
from hmarl.trainer.sequential.samples import AgentSamples
from hmarl.trainer.sequential.turns import Improvement
from training_runs import CPU, new_algorithm, team_samples, turn_of

pytestmark = pytest.mark.usefixtures("single_thread")

Probabilities = npt.NDArray[np.float64]
ACTIONS = (2, 3)
# In quarters: w(M), π¹(a|M), π²(a|M).
OLD_CONDUCTOR = np.array([1, 3]) / 4
OLD: tuple[Probabilities, Probabilities] = (
    np.array([[1, 3], [2, 2]]) / 4,
    np.array([[1, 1, 2], [2, 1, 1]]) / 4,
)
NEW_CONDUCTOR = np.array([0.6, 0.4])
NEW: tuple[Probabilities, Probabilities] = (
    np.array([[0.7, 0.3], [0.1, 0.9]]),
    np.array([[0.2, 0.5, 0.3], [0.3, 0.3, 0.4]]),
)
# Q(s, a): does not depend on M, as in the paper.
Q = np.array([[3.0, -1.0, 0.5], [2.0, 4.0, -6.0]])
LINEAR: dict[str, Any] = {
    "hidden_sizes": (),
    "conductor_hidden_sizes": (),
    "critic_hidden_sizes": (4,),
    "instructions": 2,
    "normalise_observations": False,
}
SPEC = EnvironmentSpec(
    "toy/matrix-game",
    tuple(AgentSpec(f"agent_{i}", 1, spaces.Discrete(n)) for i, n in enumerate(ACTIONS)),
    state_size=1,
    horizon=1,
    team_reward="shared",
)


def conditional_value(instruction: int) -> float:
    """Q(M|s) = E_{a∼π_old(·|M)} Q(s, a)."""
    return float(OLD[0][instruction] @ Q @ OLD[1][instruction])


def value_of_first(agents: tuple[int, ...], actions: tuple[int, ...], instruction: int) -> float:
    """Q^{i_1:l}(a^{i_1:l}|s, M): the agents' actions are given, the others play their old policies (Eq. 8)."""
    chosen = dict(zip(agents, actions, strict=True))
    total = 0.0
    for joint in itertools.product(*(range(n) for n in ACTIONS)):
        if all(joint[agent] == action for agent, action in chosen.items()):
            others = [OLD[i][instruction, joint[i]] for i in range(2) if i not in chosen]
            total += float(np.prod(others)) * Q[joint]
    return total


def exact_advantage(order: tuple[int, ...], position: int, instruction: int) -> float:
    """E of A^{i_l}(a^{i_1:l−1}, a^{i_l}|s, M) over the agents up to l, all with their new policies (Eqs. 11 and 17)."""
    agents = order[: position + 1]
    total = 0.0
    for actions in itertools.product(*(range(ACTIONS[agent]) for agent in agents)):
        probability = np.prod([NEW[agent][instruction, a] for agent, a in zip(agents, actions, strict=True)])
        before = value_of_first(agents[:-1], actions[:-1], instruction)
        total += float(probability) * (value_of_first(agents, actions, instruction) - before)
    return total


class Recording(Hcpo):
    """HCPO in the matrix game whose agents' policies are set to ``NEW`` instead of being improved."""

    def __init__(self, settings: HcpoSettings, seed: int) -> None:
        super().__init__(SPEC, settings, torch.Generator().manual_seed(seed), CPU)
        self.records: list[tuple[int, AgentSamples, Tensor]] = []
        set_table(self.conductor.policy.theta[0], np.log(OLD_CONDUCTOR)[None], inputs=1)
        for agent in range(2):
            set_policy(self, agent, OLD[agent])

    def update(self, rollout: Rollout, progress: float) -> dict[str, float]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.conductor, "improve", self._conducted)
            patch.setattr(hcpo, "improve_by_trust_region", self._improved)
            patch.setattr(hcpo, "normalise_each", lambda advantages, _: advantages)
            return super().update(rollout, progress)

    def _conducted(
        self, rollout: Rollout, states: Tensor, advantages: Tensor, features: list[Tensor], *_: Any, **__: Any
    ) -> ConductorImprovement:
        samples = self.conductor.samples(rollout, states)
        set_table(self.conductor.policy.theta[0], np.log(NEW_CONDUCTOR)[None], inputs=1)
        new = self.conductor.distribution(samples.inputs)
        assert isinstance(new, Categorical)
        weights = self.conductor.agents_weights(rollout, features, samples, new)
        return ConductorImprovement(samples.ratio(new), samples.old.kl(new), weights, {})

    def advantages(self, rollout: Rollout, estimate: Estimate) -> tuple[Tensor, Tensor]:
        """The exact A(a|s, M) = Q(s, a) − Q(M|s), Eq. 6, not normalised."""
        return estimate.advantages, self.exact_advantages(rollout)

    def exact_advantages(self, rollout: Rollout) -> Tensor:
        instruction = rollout.extras["instruction"].flatten().tolist()
        joint = zip(*(rollout.actions[agent].flatten().tolist() for agent in range(2)), strict=True)
        exact = [Q[a] - conditional_value(m) for m, a in zip(instruction, joint, strict=True)]
        return torch.tensor(exact, dtype=torch.float32).view_as(rollout.team_rewards)

    def _improved(
        self, policy: GroupPolicy, member: int, samples: AgentSamples, advantages: Tensor, *_: Any, **__: Any
    ) -> Improvement:
        group = next(g for g, each in enumerate(self.policies) if each is policy)
        agent = self.spec.groups[group].agents[member]
        self.records.append((agent, samples, advantages))
        set_policy(self, agent, NEW[agent])
        return Improvement(samples.under(policy, policy.row(member)), {"agent_kl": 0.0})


def set_table(theta: Tensor, logits: Probabilities, inputs: int) -> None:
    """Write a linear network's parameters: ``inputs`` ignored features, then one column of weights a context."""
    contexts, outputs = logits.shape
    weight = np.zeros((outputs, inputs + contexts - 1 + (contexts > 1)))
    if contexts > 1:
        weight[:, inputs:] = logits.T
        bias = np.zeros(outputs)
    else:
        bias = logits[0]
    theta.copy_(torch.from_numpy(np.concatenate([weight.ravel(), bias])))


def set_policy(algorithm: Hcpo, agent: int, table: Probabilities) -> None:
    group, member = algorithm.position[agent]
    set_table(algorithm.policies[group].row(member), np.log(table), inputs=1)


def enumerated_rollout() -> Rollout:
    """One step in 64 environments; (M, a¹, a²) occurs 64 · w(M) π¹(a¹|M) π²(a²|M) times."""
    rows = []
    for m, a, b in itertools.product(range(2), range(ACTIONS[0]), range(ACTIONS[1])):
        count = 64 * OLD_CONDUCTOR[m] * OLD[0][m, a] * OLD[1][m, b]
        assert count == int(count)
        rows += [(m, a, b)] * int(count)
    assert len(rows) == 64
    instruction, first, second = torch.tensor(rows).T
    rollout = Rollout(SPEC, 1, 64, CPU)
    rollout.actions = [first.view(1, 64, 1), second.view(1, 64, 1)]
    rollout.extras = {"instruction": instruction.view(1, 64), "decided": torch.ones(1, 64, dtype=torch.bool)}
    rollout.terminated[:] = True
    return rollout


def updated(seed: int = 0, rollout: Rollout | None = None, **settings: Any) -> Recording:
    """The game after one update with ``NEW`` policies."""
    algorithm = Recording(HcpoSettings(**LINEAR, **settings), seed)
    algorithm.update(rollout or enumerated_rollout(), 0.0)
    return algorithm


def surrogate_gain(algorithm: Recording, position: int) -> float:
    """surrogate(π_new) − surrogate(π_old) of the agent updated at ``position``, by the code."""
    agent, samples, advantages = algorithm.records[position]
    group, member = algorithm.position[agent]
    policy = algorithm.policies[group]
    new = policy.distribution(policy.row(member), samples.inputs, samples.mask)
    return float(surrogate(new, samples, advantages) - surrogate(samples.old, samples, advantages))


def updated_first(agent: int) -> Recording:
    """The same with a seed under which this agent is the first in order."""
    return next(game for game in map(updated, range(20)) if game.records[0][0] == agent)


@pytest.mark.parametrize("first", [0, 1])
def test_surrogate_is_the_exact_expectation_of_the_agents_advantage(first: int) -> None:
    """HCPO Eq. 17 (HATRPO's sequential surrogate): Σ_M w_{k+1}(M) E[A^{i_l}(a^{i_1:l−1}, a^{i_l}|s, M)]."""
    algorithm = updated_first(first)
    order = tuple(agent for agent, _, _ in algorithm.records)
    for position in range(2):
        exact = sum(NEW_CONDUCTOR[m] * exact_advantage(order, position, m) for m in range(2))
        assert surrogate_gain(algorithm, position) == pytest.approx(exact, abs=1e-5)


@pytest.mark.parametrize("first", [0, 1])
def test_the_agents_terms_add_up_to_the_joint_advantage(first: int) -> None:
    """Eq. 12 in expectation: Σ_l E[A^{i_l}] = E_{M∼w_{k+1}, a∼π_{k+1}}[A(a|s, M)]."""
    joint = sum(NEW_CONDUCTOR[m] * (NEW[0][m] @ Q @ NEW[1][m] - conditional_value(m)) for m in range(2))
    algorithm = updated_first(first)
    assert abs(joint) > 0.1
    assert surrogate_gain(algorithm, 0) + surrogate_gain(algorithm, 1) == pytest.approx(joint, abs=1e-5)


def test_factor_is_the_product_of_the_earlier_agents_ratios() -> None:
    algorithm = updated()
    (first, samples, advantages), (_, _, weighted) = algorithm.records
    torch.testing.assert_close(advantages, algorithm.exact_advantages(enumerated_rollout()).flatten())
    instruction = samples.inputs[:, 1:].argmax(-1).tolist()
    chosen = samples.actions.tolist()
    ratio = [NEW[first][m, a] / OLD[first][m, a] for m, a in zip(instruction, chosen, strict=True)]
    torch.testing.assert_close(weighted, advantages * torch.tensor(ratio, dtype=torch.float32), rtol=1e-4, atol=1e-5)


def test_ratio_weights_are_unbiased_for_the_sum_over_instructions_and_the_papers_are_not() -> None:
    """Samples' instructions are drawn from w_k; the ratio turns their mean into Σ_M w_{k+1}(M) f(M)."""
    instruction = enumerated_rollout().extras["instruction"].flatten()
    f = torch.tensor([10.0, -4.0])
    exact = float(NEW_CONDUCTOR @ f.double().numpy())
    for mode in ("ratio", "paper"):
        samples = updated(instruction_weight=mode).records[0][1]
        mean = float(samples.mean(f[instruction], samples.surrogate_weight))
        if mode == "ratio":
            assert mean == pytest.approx(exact, rel=1e-5)
            assert samples.kl_weight is None
        else:
            # Algorithm 3 as printed: Σ_M w_k(M) w_{k+1}(M) f(M).
            printed = float((OLD_CONDUCTOR * NEW_CONDUCTOR) @ f.double().numpy())
            assert mean == pytest.approx(printed, rel=1e-5)
            assert abs(mean - exact) > 1.0


def test_the_papers_kl_weight_is_the_agents_own_local_conductor() -> None:
    algorithm = updated(instruction_weight="paper")
    for agent, samples, _ in algorithm.records:
        group, member = algorithm.position[agent]
        assert algorithm.conductor.local is not None
        local = algorithm.conductor.local.policies[group]
        distribution = local.distribution(local.row(member), torch.zeros(1, 1))
        assert isinstance(distribution, Categorical)
        instruction = samples.inputs[:, 1:].argmax(-1)
        assert samples.kl_weight is not None
        torch.testing.assert_close(samples.kl_weight, distribution.log_probs[0].exp()[instruction])


def test_absent_agents_count_with_ratio_one_and_leave_every_mean() -> None:
    rollout = enumerated_rollout()
    gone = torch.arange(64) % 3 == 0
    rollout.active[0, gone, :] = False
    rollout.active[0, ~gone, :] = True
    rollout.all_active = False
    algorithm = updated(rollout=rollout)
    (_, samples, advantages), (_, _, weighted) = algorithm.records
    torch.testing.assert_close(weighted[gone], advantages[gone])
    assert not torch.allclose(weighted[~gone], advantages[~gone])
    numbers = torch.arange(64.0)
    assert samples.mean(numbers).item() == pytest.approx(numbers[~gone].mean().item())
    weights = torch.linspace(0.0, 2.0, 64)
    assert samples.mean(numbers, weights).item() == pytest.approx((numbers * weights)[~gone].mean().item(), rel=1e-5)
    changed = advantages.clone()
    changed[gone] = 1e6
    new = Categorical(torch.randn(64, ACTIONS[algorithm.records[0][0]], generator=torch.Generator().manual_seed(0)))
    assert surrogate(new, samples, changed).item() == pytest.approx(surrogate(new, samples, advantages).item())


def test_an_agent_that_is_never_there_is_left_as_it_was() -> None:
    """Nothing may be divided by zero, and its policy may not move."""
    for name in ("hatrpo", "happo", "hcpo"):
        algorithm, rollout, collector = new_algorithm(name, "toy_environments:leaving", 4, 6, entropy_coefficient=0.0)
        collector.collect(algorithm)
        assert not rollout.all_active, "the toy's agents leave"
        rollout.active[:, :, 0] = False
        before = [policy.theta.clone() for policy in algorithm.policies]
        metrics = algorithm.update(rollout, 0.0)
        assert all(np.isfinite(value) for value in metrics.values()), name
        assert torch.equal(before[0], algorithm.policies[0].theta), name
        assert not torch.equal(before[1], algorithm.policies[1].theta), name


def test_observations_of_absent_agents_do_not_enter_the_normaliser() -> None:
    algorithm, rollout, collector = new_algorithm("hatrpo", "toy_environments:leaving", 4, 10)
    collector.collect(algorithm)
    algorithm.update(rollout, 0.0)
    scout = algorithm.observation_normalisers[0]
    # The scout is there for two of an episode's five steps; its observations are zero afterwards.
    seen = rollout.observations[0][:, :, 0][rollout.active[:, :, 0]].double()
    assert scout.count.flatten()[0].item() == len(seen) == 16
    torch.testing.assert_close(scout.mean[0], seen.mean(0))


def test_the_order_of_the_agents_is_drawn_anew_at_every_update() -> None:
    algorithm = Recording(HcpoSettings(**LINEAR), 0)
    firsts = set()
    for _ in range(12):
        algorithm.records.clear()
        algorithm.update(enumerated_rollout(), 0.0)
        firsts.add(algorithm.records[0][0])
        assert len(algorithm.records) == 2
    assert firsts == {0, 1}


def test_clipped_surrogate_by_hand_and_its_gradient_in_the_clipped_branch() -> None:
    ratio = torch.tensor([0.5, 0.5, 1.0, 1.5, 1.5], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 3.0, 2.0, -2.0])
    value = clipped_surrogate(ratio, advantages, 0.2)
    # min(r·A, clip(r, 0.8, 1.2)·A)
    torch.testing.assert_close(value.detach(), torch.tensor([0.5, -0.8, 3.0, 2.4, -3.0]))
    (gradient,) = torch.autograd.grad(value.sum(), ratio)
    assert gradient.tolist() == [1.0, 0.0, 3.0, 0.0, -2.0]


def test_happo_does_not_move_a_policy_whose_samples_are_all_clipped() -> None:
    """Every ratio lies beyond the clip on the side of its advantage, and no entropy bonus pulls."""
    settings = HappoSettings(hidden_sizes=(), epochs=1, entropy_coefficient=0.0, normalise_observations=False)
    algorithm = Happo(SPEC, settings, torch.Generator().manual_seed(0), CPU)
    inputs, actions = torch.ones(8, 1), torch.arange(8) % 2
    old = algorithm.policies[0].distribution(algorithm.policies[0].row(0), inputs)
    now = old.log_prob(actions).detach()
    for shift, moves in ((np.log(1.5), False), (np.log(1.1), True)):
        samples = AgentSamples(inputs, None, None, actions, None, None, None, old, now - float(shift))
        before = algorithm.policies[0].theta.clone()
        loss = partial(clipped_loss, clip=settings.clip, entropy_coefficient=0.0)
        algorithm.steps.descend(turn_of(algorithm, 0, samples, torch.linspace(1.0, 2.0, 8)), loss)
        assert torch.equal(before, algorithm.policies[0].theta) is not moves


@pytest.mark.parametrize("minibatches", [1, 3])
def test_happo_climbs_its_surrogate(minibatches: int) -> None:
    algorithm, rollout, collector = new_algorithm(
        "happo", "toy_environments:masked_discrete", 16, 10, minibatches=minibatches, learning_rate=3e-3
    )
    collector.collect(algorithm)
    samples, settings = team_samples(algorithm, rollout).of_agent(1), algorithm.settings
    estimate = joint_estimate(rollout, algorithm.critic, algorithm.state_normaliser, settings)
    advantages = normalise_advantages(estimate.advantages).flatten()
    policy = algorithm.policies[0]
    loss = partial(clipped_loss, clip=settings.clip, entropy_coefficient=settings.entropy_coefficient)
    algorithm.steps.descend(turn_of(algorithm, 1, samples, advantages), loss)
    new = policy.distribution(policy.row(1), samples.inputs, samples.mask)
    assert surrogate(new, samples, advantages) > surrogate(samples.old, samples, advantages) + 1e-3
