"""Local conductors: distilled until it no longer helps, of one network or several, with their own last instruction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hmarl.runtime.noise import noise_for
from hmarl.sdk.environments import make
from hmarl.trainer.learning.imitation import distil_until_settled
from hmarl.trainer.learning.instructions import discrete_instructions
from hmarl.trainer.networks.distributions import Categorical
from hmarl.trainer.networks.flat import Mlp
from hmarl.trainer.networks.optimiser import FlatAdam
from hmarl.trainer.networks.policies import GroupPolicy
from training_runs import as_tensors, new_hcpo

pytestmark = pytest.mark.usefixtures("single_thread")


def students(rate: float) -> tuple[GroupPolicy, FlatAdam, torch.Tensor, Categorical]:
    """Two students who see two numbers, of which the first says what the teacher prefers."""
    network, head = Mlp(2, (8,), 2, "tanh"), discrete_instructions(2)
    theta = torch.stack([network.initialise(torch.Generator().manual_seed(seed)) for seed in (0, 1)])
    policy = GroupPolicy(network, head, theta, 2)
    seen = torch.randn(400, 2, generator=torch.Generator().manual_seed(2))
    teacher = Categorical(torch.stack([2.0 * seen[:, 0], -2.0 * seen[:, 0]], dim=-1))
    return policy, FlatAdam(policy.theta, rate, 10.0), seen.expand(2, -1, -1), teacher


def settle(
    rate: float, limit: int, patience: int, weight: torch.Tensor | None = None
) -> tuple[GroupPolicy, float, int]:
    policy, optimiser, inputs, teacher = students(rate)
    generator = torch.Generator().manual_seed(3)
    gap, passes = distil_until_settled(policy, optimiser, inputs, teacher, weight, generator, limit, 4, patience)
    return policy, gap, passes


def test_distillation_goes_on_while_it_helps() -> None:
    _, first, one = settle(1e-2, 1, 2)
    _, settled, passes = settle(1e-2, 500, 2)
    assert one == 1
    assert 5 < passes < 500
    assert settled < first / 5


def test_it_ends_after_as_many_passes_without_improvement_as_it_has_patience() -> None:
    policy, _, _, _ = students(0.0)
    settled, gap, passes = settle(0.0, 500, 3)
    assert passes == 3
    assert torch.equal(settled.theta, policy.theta)
    assert gap == pytest.approx(settle(0.0, 1, 3)[1])


def test_it_keeps_the_best_that_it_met() -> None:
    """Steps so large that they only do harm."""
    policy, _, _, _ = students(0.0)
    settled, gap, passes = settle(30.0, 500, 2)
    assert passes >= 2
    assert gap <= settle(0.0, 1, 1)[1]
    if gap == settle(0.0, 1, 1)[1]:
        assert torch.equal(settled.theta, policy.theta)


def test_who_was_not_there_is_not_counted() -> None:
    weight = torch.ones(2, 400)
    weight[1] = 0.0
    policy, _, _, _ = students(0.0)
    settled, gap, _ = settle(1e-2, 100, 2, weight)
    assert gap < 0.05
    assert torch.equal(settled.theta[1], policy.theta[1])
    assert not torch.equal(settled.theta[0], policy.theta[0])


def test_training_distils_until_it_is_settled() -> None:
    algorithm, rollout, collector = new_hcpo(
        distillation_patience=2, distillation_epochs=30, distillation_learning_rate=1e-2
    )
    collector.collect(algorithm)
    metrics = algorithm.update(rollout, 0.0)
    assert 2 <= metrics["distillation_epochs"] <= 30


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({}, 2),
        ({"share_local_conductors": True}, 1),
        ({"share_parameters": True}, 1),
        ({"share_parameters": True, "share_local_conductors": False}, 2),
    ],
)
def test_they_share_a_network_if_told_to(settings: dict[str, Any], rows: int) -> None:
    algorithm, _, _ = new_hcpo(**settings)
    assert algorithm.conductor.local is not None
    (policy,) = algorithm.conductor.local.policies
    assert policy.theta.shape[0] == rows
    assert policy.told_apart == (rows == 1)


@pytest.mark.parametrize("interval", [1, 2])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_they_are_distilled_on_the_instruction_before(share: float, interval: int) -> None:
    """In episodes of five steps, over two rollouts of twelve."""
    settings = {"local_conductors_remember": True, "local_share": share, "instruction_interval": interval}
    algorithm, rollout, collector = new_hcpo(instruction_scale=2.0, **settings)
    local = algorithm.conductor.local
    assert local is not None
    before = torch.zeros(6, 2, dtype=torch.int64)
    for update in range(2):
        collector.collect(algorithm)
        inputs = local.inputs(0, algorithm.features(rollout)[0], algorithm.conductor._last(rollout))
        shown = inputs.transpose(0, 1).reshape(12, 6, 2, -1)[..., 3:]
        for step in range(12):
            expected = 2.0 * torch.nn.functional.one_hot(before, 4).float() * ((12 * update + step) % 5 > 0)
            assert torch.equal(shown[step], expected)
            own = rollout.extras.get("own_instructions.0", rollout.extras["instruction"].unsqueeze(-1))[step]
            before = own.expand(6, 2).clone()
    assert algorithm.update(rollout, 0.0)["local_conductor_kl"] >= 0.0


@pytest.mark.parametrize("interval", [1, 2])
def test_deployed_they_remember_as_in_training(interval: int) -> None:
    """Along an episode under the same noise: the agents' graphs against local conductors that conduct all rollouts."""
    settings = {"local_conductors_remember": True, "local_share": 1.0, "instruction_interval": interval}
    algorithm, _, _ = new_hcpo(**settings)
    assert algorithm.conductor.local is not None
    assert algorithm.local_share is not None
    for policy in algorithm.conductor.local.policies:
        policy.theta.normal_(generator=torch.Generator().manual_seed(0))
    seeds, environment = np.array([5, 6]), make("toy_environments:masked_discrete", 2)
    observation = environment.reset(seeds)
    algorithm.begin_rollout(5, 2)
    modules = [algorithm.deployable(agent) for agent in range(2)]
    states = [{state.input: torch.tensor([state.reset] * 2) for state in module.states} for module in modules]
    noise_input = next(each for each in modules[0].describe("").noises if each.purpose == "instruction")
    for step in range(5):
        noise = torch.from_numpy(noise_for(noise_input, "any", seeds, step, stream="common"))
        algorithm.acting._noise[step] = algorithm.conductor.head.perturbation(noise)  # type: ignore[attr-defined]
        seen = as_tensors(observation)
        decision = algorithm.act(seen, step)
        own = decision.extras["own_instructions.0"]
        for agent, module in enumerate(modules):
            inputs = {
                "observation": seen.observations[0][:, agent],
                "action_mask": seen.action_masks[0][:, agent],
                "instruction_noise": noise,
                "action_noise": torch.zeros(2, module.head.output_size),
                "step": torch.full((2,), step),
                **states[agent],
            }
            computed = module(*(inputs[name] for name in module.input_names))
            outputs = dict(zip(module.output_names, computed, strict=True))
            states[agent] = {state.input: outputs[state.output] for state in module.states}
            assert torch.equal(outputs["instruction"], own[:, agent])
        observation = environment.step(tuple(each.numpy() for each in decision.environment_actions)).observation
