"""HCPO under a conductor that sees what is common knowledge: what it sees in training is what its copies see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hmarl.runtime.noise import noise_for
from hmarl.sdk.environments import make
from hmarl.sdk.errors import UsageError
from hmarl.trainer.algorithms.hcpo import Hcpo
from hmarl.trainer.contract.fixed import clock
from hmarl.trainer.experience.rollout import Collector, Rollout
from hmarl.trainer.networks.settings import validate
from hmarl.trainer.sequential.estimates import joint_estimate
from training_runs import as_tensors, new_algorithm, new_hcpo

pytestmark = pytest.mark.usefixtures("single_thread")

GAME = "coordsum/2x4-6"  # all that its agents observe is declared to be common; episodes of 100 steps
TOY = "toy_environments:masked_discrete"  # whose agents observe nothing in common; episodes of 5 steps


def collected(environment: str = GAME, updates: int = 1, **settings: Any) -> tuple[Hcpo, Rollout, Collector]:
    algorithm, rollout, collector = new_hcpo(environment, **{"conductor_sees": "common", **settings})
    for update in range(updates):
        if update:
            algorithm.update(rollout, 0.1)
        collector.collect(algorithm)
    return algorithm, rollout, collector


def seen_along(algorithm: Hcpo, rollout: Rollout) -> torch.Tensor:
    states = algorithm.state_normaliser(rollout.states[:-1]).flatten(0, 1)
    return algorithm.conductor.samples(rollout, states).inputs


def test_it_sees_what_all_observe_the_clock_and_its_last_instruction() -> None:
    """The second rollout of 12 steps goes on in the middle of episodes of 5: what was before it is remembered."""
    algorithm, rollout, collector = new_hcpo(TOY, conductor_sees="nothing", instruction_scale=3.0)
    before = torch.zeros(6, dtype=torch.int64)
    for update in range(2):
        collector.collect(algorithm)
        seen = seen_along(algorithm, rollout).view(12, 6, 1 + 4)
        for step in range(12):
            age = (12 * update + step) % 5
            torch.testing.assert_close(seen[step, :, 0], clock(torch.full((6,), age), 5))
            expected = 3.0 * torch.nn.functional.one_hot(before, 4).float() * (age > 0)
            assert torch.equal(seen[step, :, 1:], expected)
            before = rollout.extras["instruction"][step].clone()


def test_what_is_common_is_normalised_by_statistics_of_its_own() -> None:
    algorithm, rollout, _ = collected(updates=3)
    seen = seen_along(algorithm, rollout).view(12, 6, 2 + 1 + 4)
    raw = rollout.observations[0][:, :, 0]
    common = algorithm.conductor.common
    assert common is not None
    normaliser = common.components()["common_normaliser"]
    torch.testing.assert_close(seen[..., :2], (raw - normaliser.shift) * normaliser.scale)  # type: ignore[attr-defined]
    assert seen[..., 0].std() > 0.5


def test_nothing_is_seen_of_observations_until_they_are_found_to_be_common() -> None:
    algorithm, rollout, collector = new_hcpo("mpe/simple_spread", conductor_sees="common", common_search=2)
    common = algorithm.conductor.common
    assert common is not None
    features = len(common.common.features)
    assert features == 18
    for known in (0, 0, 4):  # two agents' words of two numbers each: silent, and so alike
        collector.collect(algorithm)
        assert int(common.common.known.sum()) == known
        assert int((seen_along(algorithm, rollout)[:, :features] != 0).any(0).sum()) == 0
        algorithm.update(rollout, 0.1)


def test_training_ends_where_agents_see_differently_what_was_common() -> None:
    algorithm, rollout, collector = collected("mpe/simple_spread", updates=2, common_search=1)
    collector.collect(algorithm)
    rollout.observations[0][3, 2, 1, -1] = 1.0
    with pytest.raises(
        UsageError, match=r"'other_agents_words\[3\]', which was common in the first rollouts, is 0 for"
    ):
        algorithm.update(rollout, 0.1)


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_deployed_agents_are_instructed_as_in_training(kind: str, interval: int) -> None:
    """Along an episode under the same noise: both agents' graphs against the level itself."""
    settings = {
        "instruction_scale": 2.5,
        "instruction_space": kind,
        "instruction_size": 3,
        "instruction_interval": interval,
    }
    algorithm, _, _ = collected(updates=3, **settings)
    level, seeds = algorithm.conductor, np.array([5, 6])
    modules = [algorithm.deployable(agent) for agent in range(2)]
    states = [{state.input: torch.tensor([state.reset] * 2) for state in module.states} for module in modules]
    model = modules[0].describe("")
    noise_input = next(noise for noise in model.noises if noise.purpose == "instruction")
    environment = make(GAME, 2)
    observation = environment.reset(seeds)
    in_force, seen = level.nothing_in_force(2), []
    for step in range(9):
        noise = torch.from_numpy(noise_for(noise_input, "any", seeds, step, stream="common"))
        for index, module in enumerate(modules):
            inputs = {
                "observation": torch.from_numpy(observation.observations[0][:, index].copy()),
                "step": torch.full((2,), step),
                "instruction_noise": noise,
                "action_noise": torch.zeros(2, 4),
                **states[index],
            }
            outputs = dict(
                zip(module.output_names, module(*(inputs[name] for name in module.input_names)), strict=True)
            )
            states[index] = {state.input: outputs[state.output] for state in module.states}
            seen.append(outputs["instruction"])
        in_force, record = level.instruct(as_tensors(observation), in_force, level.head.perturbation(noise))
        torch.testing.assert_close(seen[-1], record["instruction"])
        assert torch.equal(seen[-1], seen[-2])
        observation = environment.step((np.zeros((2, 2), np.int64),)).observation
    assert len(torch.stack(seen).flatten(0, 1).unique(dim=0)) > 1


def test_its_copies_are_the_old_local_conductors_of_the_papers_weights() -> None:
    algorithm, rollout, _ = collected(instruction_weight="paper")
    states = algorithm.state_normaliser(rollout.states[:-1]).flatten(0, 1)
    old = algorithm.conductor.samples(rollout, states).old_log_prob.exp()
    estimate = joint_estimate(rollout, algorithm.critic, algorithm.state_normaliser, algorithm.settings)
    improved = algorithm.conductor.improve(
        rollout, estimate.states, estimate.advantages, algorithm.features(rollout), algorithm.noise_generator
    )
    new = algorithm.conductor.samples(rollout, states).old_log_prob.exp()
    for agent in range(2):
        surrogate, kl = improved.weights.of(agent)
        torch.testing.assert_close(surrogate, new)
        assert kl is not None
        torch.testing.assert_close(kl, old)
    assert not any(name.startswith("local_conductor") for name in improved.metrics)


def test_nothing_follows_it_for_nothing_has_to() -> None:
    algorithm, _, _ = collected()
    assert algorithm.conductor.local is None
    assert algorithm.teacher() is None
    assert list(algorithm.teams()) == ["local", "random", "none"]
    assert set(algorithm.components()) >= {"conductor", "common_observations", "common_normaliser"}
    assert not any("local_conductor" in name for name in algorithm.components())


@pytest.mark.parametrize("settings", [{}, {"replay_rollouts": 1}, {"critic": "q", "instruction_interval": 2}])
def test_it_goes_with_the_other_settings(settings: dict[str, Any]) -> None:
    algorithm, rollout, _ = collected(updates=3, **settings)
    metrics = algorithm.update(rollout, 0.5)
    assert metrics["conductor_kl"] <= 0.01
    assert all(np.isfinite(value) for value in metrics.values())
    fresh, _, _ = new_hcpo(GAME, conductor_sees="common", **settings)
    for name, part in fresh.components().items():
        mine = algorithm.components()[name]
        part.copy_(mine) if isinstance(part, torch.Tensor) else part.load_state_dict(mine.state_dict())
    assert torch.equal(seen_along(fresh, rollout), seen_along(algorithm, rollout))


def test_guided_hcpo_may_have_such_a_conductor() -> None:
    small = {"embedding_size": 8, "conductor_hidden_sizes": (8,), "instructions": 3, "conductor_sees": "common"}
    algorithm, rollout, collector = new_algorithm("guided-hcpo", GAME, 4, 10, None, **small)
    for _ in range(2):
        collector.collect(algorithm)
        metrics = algorithm.update(rollout, 0.1)
    assert "local_conductor_kl" not in metrics
    assert list(algorithm.teams()) == ["local", "guider", "random", "none"]
    assert algorithm.deployable(0).describe("").instruction_choice == "common"


@pytest.mark.parametrize(
    "setting", [{"distillation_patience": 1}, {"share_local_conductors": True}, {"local_conductors_remember": True}]
)
def test_settings_of_local_conductors_are_refused_where_there_are_none(setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(UsageError, match=rf"algorithm\.{name}: got .* with conductor_sees=nothing"):
        validate(Hcpo.settings_class, {"conductor_sees": "nothing", **setting}, "algorithm")


def test_settings_say_what_is_possible() -> None:
    with pytest.raises(UsageError, match=r"algorithm\.conductor_sees: got 'all'"):
        validate(Hcpo.settings_class, {"conductor_sees": "all"}, "algorithm")
