"""Agents who share a network that does not tell them apart: any of them acts as any other would."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec
from hmarl.trainer.algorithms import ALGORITHMS, find_algorithm
from hmarl.trainer.export.export import group_names
from hmarl.trainer.export.samples import example_inputs
from hmarl.trainer.networks.settings import validate
from training_runs import new_algorithm, of_use, tiny_config, tiny_networks

pytestmark = pytest.mark.usefixtures("single_thread")
TOY = "toy_environments:masked_discrete"


def alike(**settings: Any) -> dict[str, Any]:
    return {"share_parameters": True, "agent_identity": False, **settings}


def updated(name: str, **settings: Any) -> Any:
    """An algorithm that has learnt from two rollouts of three agents."""
    algorithm, rollout, collector = new_algorithm(name, TOY, 6, 10, {"agents": 3}, **settings)
    for progress in (0.0, 0.5):
        collector.collect(algorithm)
        algorithm.update(rollout, progress)
    return algorithm


def outputs(algorithm: Any, agent: int) -> list[torch.Tensor]:
    modules = [algorithm.deployable(number) for number in (0, agent)]
    inputs = example_inputs(modules[0], 40, np.random.default_rng(1))
    with torch.no_grad():
        return list(modules[1](*inputs.values()))


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("name", [name for name, algorithm in ALGORITHMS.items() if algorithm.exportable])
def test_every_agent_deploys_the_same_function(name: str, recurrent: bool) -> None:
    algorithm = updated(name, **alike(**of_use(name, {"recurrent": recurrent, "memory_size": 5})))
    first = outputs(algorithm, 0)
    for agent in (1, 2):
        for ours, theirs in zip(first, outputs(algorithm, agent), strict=True):
            assert torch.equal(ours, theirs)


def test_with_identity_they_differ() -> None:
    algorithm = updated("happo", share_parameters=True)
    assert not all(torch.equal(*pair) for pair in zip(outputs(algorithm, 0), outputs(algorithm, 1), strict=True))


def test_a_deployed_policy_is_what_acted_in_training() -> None:
    """The batched actor, with the pooled statistics, and the graph-to-be give the same actions to the same eyes."""
    algorithm = updated("hatrpo", **alike())
    environment = new_algorithm("hatrpo", TOY, 6, 10, {"agents": 3})[2].environment
    seen = environment.reset(np.arange(6) + 40)
    tensors = replace(
        seen,
        observations=tuple(torch.as_tensor(part) for part in seen.observations),
        action_masks=tuple(torch.as_tensor(part) for part in seen.action_masks),
    )
    decision, _ = algorithm.actors.decide(tensors, None, None, [])
    for agent in range(3):
        module = algorithm.deployable(agent)
        action = module(tensors.observations[0][:, agent], tensors.action_masks[0][:, agent], torch.zeros(6, 4))[0]
        assert torch.equal(action, decision.environment_actions[0][:, agent])


def test_no_identity_without_sharing_is_refused() -> None:
    for name in ALGORITHMS:
        settings = {**tiny_networks(name), "share_parameters": False, "agent_identity": False}
        with pytest.raises(UsageError, match=r"agent_identity: got False, expected True with share_parameters=False"):
            validate(find_algorithm(name).settings_class, settings, "algorithm")


def test_old_configurations_keep_their_identity() -> None:
    config = tiny_config("mappo", TOY)
    del config.algorithm_settings["agent_identity"]
    assert config.settings().agent_identity


def agents(*names: str, size: int = 2) -> tuple[AgentSpec, ...]:
    return tuple(AgentSpec(name, size, spaces.Discrete(2)) for name in names)


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        (agents("agent_0", "agent_1"), ["agent"]),
        (agents("red-1", "red-2") + agents("blue-1", size=3), ["red", "blue"]),
        (agents("speaker") + agents("listener", size=3), ["speaker", "listener"]),
        (agents("red_0", "blue_0"), ["group_0"]),
        (agents("0", "1") + agents("2", size=3), ["group_0", "group_1"]),
        (agents("a_0", "a_1") + agents("a_2", size=3), ["a", "group_0"]),
        (agents("a_0", "a_1") + agents("a", size=3), ["group_0", "a"]),
        (agents("group_0", "x") + agents("y_0", size=3), ["group_0", "y"]),
    ],
)
def test_files_of_groups_have_names_of_their_own(specs: tuple[AgentSpec, ...], expected: list[str]) -> None:
    assert group_names(EnvironmentSpec("toy/toy", specs, 1, None, "sum")) == expected
