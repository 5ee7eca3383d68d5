"""The conductor's level on its own, composed by an algorithm that is not HCPO."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.sdk.environments import make
from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.conductors.acting import ConductedActing
from hmarl.trainer.conductors.level import ConductorImprovement, ConductorLevel, InForce
from hmarl.trainer.conductors.settings import ConductorFields
from hmarl.trainer.contract.acting import LocalActing
from hmarl.trainer.contract.algorithm import Algorithm
from hmarl.trainer.contract.deployable import Instructing
from hmarl.trainer.contract.team_inputs import as_tensors
from hmarl.trainer.experience.rollout import Collector, Decision, Rollout
from hmarl.trainer.export.samples import example_inputs
from hmarl.trainer.networks.distributions import Categorical
from hmarl.trainer.networks.settings import AlgorithmSettings, validate
from hmarl.trainer.sequential.constrained_steps import TrustRegionFields
from hmarl.trainer.sequential.estimates import Estimate
from training_runs import CPU

pytestmark = pytest.mark.usefixtures("single_thread")

SMALL: dict[str, Any] = {"hidden_sizes": (8,), "conductor_hidden_sizes": (8,), "instructions": 3}
TOY = "toy_environments:masked_discrete"


class IdleSettings(ConductorFields, TrustRegionFields, AlgorithmSettings):
    """Of agents who learn nothing under a conductor who does."""


class Told(LocalActing):
    """Local policies that record what they are told."""

    def act_in_context(self, observation: Observation, step: int, context: Tensor | None) -> Decision:
        decision = super().act_in_context(observation, step, context)
        assert context is not None
        decision.extras["context"] = context
        return decision


class Idle(Algorithm):
    """Agents who learn nothing, under a conductor who does."""

    settings_class = IdleSettings
    settings: IdleSettings

    def __init__(
        self, spec: EnvironmentSpec, settings: IdleSettings, generator: torch.Generator, device: torch.device
    ) -> None:
        super().__init__(spec, settings, generator, device)
        self.conductor = ConductorLevel(spec, settings, self.state_normaliser, generator, device)
        told = Told(self.actors, None, self.noise_generator)
        self.acting = ConductedActing(told, self.conductor, self.noise_generator)

    @property
    def context_size(self) -> int:
        return self.settings.instruction_head.output_size

    def instructing(self, agent: int) -> Instructing:
        return self.conductor.instructing(agent, *self.position[agent])

    def states(self, rollout: Rollout) -> Tensor:
        return self.state_normaliser(rollout.states[:-1]).flatten(0, 1)

    def improve(self, rollout: Rollout, advantages: Tensor, **arguments: Any) -> ConductorImprovement:
        states, features = self.states(rollout), self.features(rollout)
        return self.conductor.improve(rollout, states, advantages, features, self.noise_generator, **arguments)


def conducted(environment: str = TOY, batch_size: int = 32, **settings: Any) -> tuple[Idle, Rollout, Collector]:
    """With one rollout of 10 steps collected; the toy's episodes last 5."""
    made = make(environment, batch_size)
    checked = validate(IdleSettings, {**SMALL, **settings}, "algorithm")
    algorithm = Idle(made.spec, checked, torch.Generator().manual_seed(3), CPU)
    rollout = Rollout(made.spec, 10, batch_size, CPU)
    collector = Collector(made, rollout, np.arange(batch_size, dtype=np.int64))
    collector.collect(algorithm)
    return algorithm, rollout, collector


def rewarded(rollout: Rollout, instruction: int = 2) -> Tensor:
    """[T, B] advantages of a task that wants one instruction."""
    return (rollout.extras["instruction"] == instruction).float()


def log_probs(algorithm: Idle, rollout: Rollout) -> Tensor:
    """[M] log w(M|s) of the instructions in force."""
    return algorithm.conductor.distribution(algorithm.states(rollout)).log_prob(
        rollout.extras["instruction"].flatten(0, 1)
    )


@pytest.mark.parametrize(
    ("settings", "width"), [({}, 3), ({"instruction_space": "continuous", "instruction_size": 2}, 2)]
)
def test_agents_see_the_instruction_in_force_until_it_has_run_out(settings: dict[str, Any], width: int) -> None:
    """Episodes of five steps: decisions at their steps 0 and 3."""
    algorithm, rollout, _ = conducted(instruction_interval=3, **settings)
    decided, held = rollout.extras["decided"], rollout.extras["instruction"]
    due = torch.tensor([step % 5 in (0, 3) for step in range(10)])
    assert torch.equal(decided, due.unsqueeze(-1).expand(10, 32))
    assert torch.equal(held[1:][~due[1:]], held[:-1][~due[1:]])
    assert rollout.extras["context"].shape == (10, 32, width)
    assert torch.equal(rollout.extras["context"], algorithm.conductor.seen_of(held))
    assert algorithm.policies[0].network.input_size == algorithm.spec.groups[0].example.observation_size + width


def test_the_conductor_learns_within_its_limit_and_local_conductors_follow() -> None:
    algorithm, rollout, collector = conducted(distillation_epochs=20, distillation_learning_rate=1e-2)
    shares, metrics = [], {}
    for _ in range(12):
        collector.collect(algorithm)
        shares.append(float(rewarded(rollout).mean()))
        improvement = algorithm.improve(rollout, rewarded(rollout))
        metrics = improvement.metrics
        assert metrics["conductor_accepted"] == 1.0
        assert float(improvement.kl.mean()) == pytest.approx(metrics["conductor_kl"], rel=1e-4)
        assert metrics["conductor_kl"] <= 0.01
    assert shares[-1] > shares[0] + 0.25, shares
    assert metrics["instruction_usage/2"] == pytest.approx(shares[-1])
    assert metrics["local_conductor_kl"] < 0.05
    assert algorithm.conductor.local is not None
    choices = algorithm.conductor.local.choices(0, algorithm.features(rollout)[0])
    assert isinstance(choices, Categorical)
    assert choices.log_probs[..., 2].exp().mean() > shares[0] + 0.2


@pytest.mark.parametrize("interval", [1, 3])
def test_ratio_weights_are_those_of_the_step_and_of_the_sample(interval: int) -> None:
    algorithm, rollout, _ = conducted(instruction_interval=interval)
    before = log_probs(algorithm, rollout)
    importance = torch.linspace(0.5, 1.5, 320)
    improvement = algorithm.improve(rollout, rewarded(rollout), weight=importance)
    ratio = (log_probs(algorithm, rollout) - before).exp().view(10, 32)
    if interval == 3:
        ratio = ratio[[0, 0, 0, 3, 3, 5, 5, 5, 8, 8]]
    assert ratio.std() > 0.01
    torch.testing.assert_close(improvement.ratio, ratio.flatten())
    assert len(improvement.kl) == int(rollout.extras["decided"].sum())
    for agent in range(2):
        surrogate, kl = improvement.weights.of(agent)
        torch.testing.assert_close(surrogate, ratio.flatten() * importance)
        assert kl is None


def test_the_papers_weights_are_the_new_conductor_and_the_old_local_conductors() -> None:
    algorithm, rollout, _ = conducted(instruction_weight="paper", distillation_learning_rate=1e-2)
    assert algorithm.conductor.local is not None
    local = algorithm.conductor.local.choices(0, algorithm.features(rollout)[0])
    old = local.log_prob(rollout.extras["instruction"].flatten().expand(2, -1)).exp()
    improvement = algorithm.improve(rollout, rewarded(rollout))
    for agent in range(2):
        surrogate, kl = improvement.weights.of(agent)
        torch.testing.assert_close(surrogate, log_probs(algorithm, rollout).exp())
        torch.testing.assert_close(kl, old[algorithm.position[agent][1]])


def test_metrics_count_the_instructions_of_the_fresh_part_alone() -> None:
    algorithm, rollout, _ = conducted()
    fresh = Rollout(rollout.spec, 1, 4, CPU)
    fresh.extras = {"instruction": torch.tensor([[0, 0, 0, 1]])}
    metrics = algorithm.improve(rollout, rewarded(rollout), fresh=fresh).metrics
    assert [metrics[f"instruction_usage/{k}"] for k in range(3)] == [0.75, 0.25, 0.0]


def test_advantages_run_from_decision_to_decision() -> None:
    """γ = ½, λ = 0: A = r₀ + ½ r₁ + ¼ V(s₂) − V(s₀) = 1 + 1 + 1 − 3 = 0 over a window of two steps."""
    algorithm, _, _ = conducted(instruction_interval=2, gamma=0.5)
    rollout = Rollout(algorithm.spec, 3, 1, CPU)
    rollout.team_rewards[:, 0] = torch.tensor([1.0, 2.0, 5.0])
    rollout.extras = {"decided": torch.tensor([[True], [False], [True]])}
    values, next_values = torch.tensor([[3.0], [9.0], [4.0]]), torch.tensor([[9.0], [4.0], [8.0]])
    joint = torch.full((3, 1), 7.0)
    estimate = Estimate(torch.zeros(3, 1), values, next_values, joint, joint)
    advantages = algorithm.conductor.decision_advantages(rollout, estimate, 0.0)
    assert advantages[[0, 2], 0].tolist() == pytest.approx([0.0, 5.0 + 4.0 - 4.0])
    everywhere, _, _ = conducted()
    assert torch.equal(everywhere.conductor.decision_advantages(rollout, estimate, 0.0), joint)


def test_a_copy_of_its_components_and_acting_state_goes_on_alike() -> None:
    algorithm, rollout, _ = conducted("toy_environments:leaving", 4, instruction_interval=7)
    algorithm.improve(rollout, rewarded(rollout))
    level, spec, settings = algorithm.conductor, algorithm.spec, algorithm.settings
    copy = ConductorLevel(spec, settings, algorithm.state_normaliser, torch.Generator().manual_seed(99), CPU)
    groups = range(len(spec.groups))
    expected = {"conductor", *(f"{part}.{g}" for g in groups for part in ("local_conductors", "distillers"))}
    assert set(level.components()) == set(copy.components()) == expected
    copy.policy.theta.copy_(level.policy.theta)
    seen = as_tensors(make("toy_environments:leaving", 4).reset(np.arange(4)), CPU)
    in_force = level.nothing_in_force(4)
    for _ in range(3):  # in the middle of an instruction
        in_force, _ = level.instruct(seen, in_force, None)
    acted = []
    for each, before in ((level, in_force), (copy, InForce.of_state(in_force.state()))):
        noise = each.draw_noise(5, 4, torch.Generator().manual_seed(1))
        now, records = before.ended(torch.tensor([True, False, False, True])), []
        for step in range(5):
            now, record = each.instruct(seen, now, noise[step])
            records.append(record)
        acted.append(records)
    for mine, other in zip(*acted, strict=True):
        assert torch.equal(mine["instruction"], other["instruction"])
        assert torch.equal(mine["decided"], other["decided"])
    decided = torch.stack([record["decided"] for record in acted[0]])
    assert decided.nonzero().tolist() == [[0, 0], [0, 3], [4, 1], [4, 2]]


def test_a_batch_of_another_size_starts_with_nothing_in_force() -> None:
    algorithm, _, _ = conducted(instruction_interval=7)
    algorithm.begin_rollout(1, 2)
    algorithm.episodes_ended(torch.ones(32, dtype=torch.bool))  # of another batch: no matter
    decision = algorithm.act(as_tensors(make(TOY, 2).reset(np.arange(2)), CPU), 0)
    assert decision.extras["decided"].tolist() == [True, True]


def test_deployed_agents_are_instructed_by_their_local_conductor() -> None:
    algorithm, _, _ = conducted(instruction_interval=4)
    assert algorithm.conductor.local is not None
    local = algorithm.conductor.local.policies[0]
    local.theta.zero_()
    local.theta[:, -3:] = torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 5.0]])  # the last layer's biases
    for agent, chosen in ((0, 1), (1, 2)):
        module = algorithm.deployable(agent)
        inputs = example_inputs(module, 1, np.random.default_rng(0))
        inputs |= {name: torch.zeros_like(inputs[name]) for name in ("instruction_state", "instruction_noise")}
        outputs = dict(zip(module.output_names, module(*inputs.values()), strict=True))
        assert outputs["instruction"].tolist() == [chosen]
        assert outputs["next_instruction_state"].tolist() == [[chosen, 1.0]]


def test_vectors_have_no_weights_as_printed() -> None:
    settings = {"instruction_space": "continuous", "instruction_weight": "paper"}
    expected = "algorithm.instruction_weight: got 'paper', expected 'ratio' with instruction_space=continuous"
    with pytest.raises(UsageError, match=expected):
        validate(IdleSettings, settings, "algorithm")
