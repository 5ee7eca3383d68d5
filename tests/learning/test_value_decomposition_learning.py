"""The game on which a sum of utilities and a monotone mixture differ, as QMIX's paper says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from training_runs import new_algorithm, of_use

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("single_thread")]
# All actions are random, so that every joint action is seen alike often, as in the paper.
SETTINGS: dict[str, Any] = {
    "hidden_sizes": (32,),
    "mixing_hidden_sizes": (32,),
    "mixing_embedding": 8,
    "epsilon_final": 1.0,
    "gradient_steps": 8,
    "td_lambda": 0.0,
    "learning_rate": 3e-3,
    "normalise_observations": False,
}


def greedy_return(name: str, seed: int) -> float:
    """What the greedy team earns after 120 rollouts."""
    algorithm, rollout, collector = new_algorithm(name, "two_step_game:make", 32, 4, None, **of_use(name, SETTINGS))
    algorithm.noise_generator.manual_seed(seed)
    for _ in range(120):
        collector.collect(algorithm)
        algorithm.update(rollout, 0.0)
    modules = [algorithm.deployable(agent) for agent in range(2)]

    def choose(game: int) -> list[int]:
        return [int(module(torch.eye(3)[game].unsqueeze(0))[0]) for module in modules]

    second = choose(1 + choose(0)[0])
    if choose(0)[0] == 0:
        return 7.0
    return [0.0, 1.0, 8.0][sum(second)]


@pytest.mark.parametrize(("name", "expected"), [("vdn", 7.0), ("qmix", 8.0)])
def test_the_two_step_game(name: str, expected: float) -> None:
    assert [greedy_return(name, seed) for seed in (1, 2, 3)] == [expected] * 3
