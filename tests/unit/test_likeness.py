"""Agents who observe the same and share a policy that cannot tell them apart are found, and named in a warning."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from hmarl.trainer.learning.likeness import who_observe_the_same
from training_runs import new_algorithm, tiny_config, train

pytestmark = pytest.mark.usefixtures("single_thread")
SUMS = "coordsum/3x10-30"
WARNING = "agent_0, agent_1 and agent_2 observe the same"


def test_agents_who_all_see_the_target_alone() -> None:
    algorithm, rollout, collector = new_algorithm("mappo", SUMS, 4, 6)
    collector.collect(algorithm)
    assert [tuple(group.agents) for group in who_observe_the_same(rollout)] == [(0, 1, 2)]


@pytest.mark.parametrize("environment", ["mpe/simple_spread", "toy_environments:masked_discrete"])
def test_agents_who_see_the_world_from_where_they_are(environment: str) -> None:
    algorithm, rollout, collector = new_algorithm("mappo", environment, 4, 6)
    collector.collect(algorithm)
    assert who_observe_the_same(rollout) == []


def test_one_step_or_one_choice_that_differs_is_enough_unless_an_agent_had_left() -> None:
    algorithm, rollout, collector = new_algorithm("mappo", "toy_environments:masked_discrete", 4, 6)
    collector.collect(algorithm)
    mask = rollout.action_masks[0]
    assert mask is not None
    rollout.observations[0].zero_()
    mask.fill_(True)
    assert len(who_observe_the_same(rollout)) == 1
    rollout.observations[0][3, 2, 1, 0] = 1.0
    assert who_observe_the_same(rollout) == []
    rollout.active[3, 2, 1] = False
    assert len(who_observe_the_same(rollout)) == 1
    mask[5, 0, 0, 1] = False
    assert who_observe_the_same(rollout) == []


def test_who_is_always_alone_is_like_no_one() -> None:
    algorithm, rollout, collector = new_algorithm("mappo", SUMS, 4, 6)
    collector.collect(algorithm)
    rollout.active[..., 1:] = False
    assert who_observe_the_same(rollout) == []
    rollout.active[0, 0, 1] = True
    assert len(who_observe_the_same(rollout)) == 1


@pytest.mark.parametrize(("identity", "warnings"), [(False, 1), (True, 0)])
def test_training_says_so_once(identity: bool, warnings: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny_config("himpo", SUMS, {"agent_identity": identity})
    with caplog.at_level(logging.WARNING):
        train(config, tmp_path / "run")
    assert caplog.text.count(WARNING) == warnings
    if warnings:
        assert "algorithm.agent_identity=true" in caplog.text


def test_of_many_agents_a_few_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train(tiny_config("himpo", "coordsum/6x3-9"), tmp_path / "run")
    assert "agent_0, agent_1, agent_2 and 3 more observe the same" in caplog.text
