"""A conductor above MAGPO's guider and local policies: who sees the instruction, and what its ratio weighs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hmarl.sdk.environments import make
from hmarl.sdk.evaluation.closed_loop import evaluate
from hmarl.trainer.algorithms.guided_hcpo import GuidedHcpo
from hmarl.trainer.experience.rollout import Collector, Rollout
from training_runs import new_algorithm

pytestmark = pytest.mark.usefixtures("single_thread")

TOY = "toy_environments:masked_discrete"
SMALL: dict[str, Any] = {
    "conductor_hidden_sizes": (8,),
    "instructions": 3,
    "embedding_size": 8,
    "epochs": 2,
    "minibatches": 2,
}


def collected(**settings: Any) -> tuple[GuidedHcpo, Rollout, Collector]:
    """With one rollout of 10 steps in 8 environments."""
    algorithm, rollout, collector = new_algorithm("guided-hcpo", TOY, 8, 10, None, **{**SMALL, **settings})
    assert isinstance(algorithm, GuidedHcpo)
    collector.collect(algorithm)
    return algorithm, rollout, collector


@pytest.mark.parametrize("guider", ["mat", "sable", "factorised"])
@pytest.mark.parametrize("recurrent", [False, True])
@torch.no_grad()
def test_actions_depend_on_the_instruction_and_values_do_not(guider: str, recurrent: bool) -> None:
    algorithm, rollout, _ = collected(guider=guider, recurrent=recurrent)
    guider, order = algorithm.guider, torch.arange(len(algorithm.spec.agents))
    instruction = algorithm.conductor.seen_of(rollout.extras["instruction"])
    estimate = guider.estimate(rollout, algorithm.guided.remembered())
    batch = guider.batch(rollout, estimate, algorithm.guided.order, instruction)
    assert batch.view.instruction is not None
    # Sequences of one step where no agent remembers, else the whole rollout.
    expected = instruction if guider.remembers else instruction.flatten(0, 1).unsqueeze(0)
    assert torch.equal(batch.view.instruction, expected)
    # Weights near zero hide what the policies see.
    theta = guider.theta + 0.5
    judged = guider.judge(batch, order, theta)
    batch.view.instruction.copy_(batch.view.instruction.roll(1, -1))
    otherwise = guider.judge(batch, order, theta)
    assert torch.equal(judged.values, otherwise.values)
    assert not torch.equal(batch.log_prob(judged.distributions), batch.log_prob(otherwise.distributions))


def test_the_conductors_ratio_weighs_every_step_in_both_surrogates(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, rollout, _ = collected()
    before = log_probs(algorithm, rollout)
    seen: list[Tensor] = []
    batch_of, given = algorithm.guider.batch, list[Any]()
    monkeypatch.setattr(
        algorithm.guider, "batch", lambda *told: given.append(told[3]) or seen.append(batch_of(*told)) or seen[-1]
    )
    metrics = algorithm.update(rollout, 0.0)
    assert metrics["conductor_kl"] > 0
    ratio = (log_probs(algorithm, rollout, algorithm.conductor_states) - before).exp()
    weight = seen[0].weight
    assert torch.equal(given[0], algorithm.conductor.seen_of(rollout.extras["instruction"]))
    torch.testing.assert_close(weight.flatten(), ratio.flatten())
    assert weight.std() > 1e-3
    unweighted = (seen[0].advantages - seen[0].advantages.mean()) / seen[0].advantages.std(correction=0)
    for advantages in seen[0].normalised_advantages():
        torch.testing.assert_close(advantages, (unweighted * weight).flatten(), rtol=1e-4, atol=1e-5)


def log_probs(algorithm: GuidedHcpo, rollout: Rollout, states: Tensor | None = None) -> Tensor:
    """[T, B] log w(M|s); remembers the normalised states, for the update moves the normaliser."""
    if states is None:
        states = algorithm.conductor_states = algorithm.state_normaliser(rollout.states[:-1])
    with torch.no_grad():
        return algorithm.conductor.distribution(states).log_prob(rollout.extras["instruction"])


@torch.no_grad()
def test_the_guider_plays_under_instructions_that_hold_as_long_as_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, _, collector = collected(instruction_interval=3, instruction_space="continuous")
    team, seen, heard = algorithm.teams()["guider"], [], []
    inner = algorithm.guider.network.act
    monkeypatch.setattr(
        algorithm.guider.network, "act", lambda *given: heard.append(given[1].instruction) or inner(*given)
    )
    observation = collector.environment.reset(np.arange(8))
    for length in (5, 4):
        team.reset(np.arange(8))
        for step in range(length):
            running = np.ones(8, np.bool_)
            observation = collector.environment.step(team.act(observation, running)).observation
            seen.append(step)
    changes = [step for step, before, now in zip(seen[1:], heard, heard[1:], strict=False) if not before.equal(now)]
    assert changes == [3, 0, 3]


@pytest.mark.parametrize("name", ["local", "guider", "central", "random", "none"])
def test_all_ways_draw_where_actions_are_drawn(name: str) -> None:
    """In 200 episodes that begin alike untrained policies take either action, and take them again."""
    algorithm, _, _ = collected()
    environment, seeds, everywhere = make(TOY, 200), np.arange(200), np.ones(200, np.bool_)
    observation = environment.reset(np.zeros(200, np.int64))
    taken = []
    for sample in (False, True, True):
        team = algorithm.teams(sample)[name]
        team.reset(seeds)
        taken.append(team.act(observation, everywhere)[0])
    likeliest, drawn, again = taken
    assert name == "random" or (likeliest == likeliest[0]).all()
    assert (drawn != likeliest).any()
    np.testing.assert_array_equal(drawn, again)


def test_it_plays_in_all_ways_and_deploys_its_local_conductors() -> None:
    algorithm, rollout, _ = collected()
    algorithm.update(rollout, 0.0)
    environment = make(TOY, 4)
    played = algorithm.teams()
    assert list(played) == ["local", "guider", "central", "random", "none"]
    for team in played.values():
        assert np.isfinite(evaluate(environment, team, 4, seed=0).returns).all()
    module = algorithm.deployable(0)
    assert module.instructions == 3
    assert {"observation", "instruction_noise"} <= set(module.input_names)
