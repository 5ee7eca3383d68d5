"""What a hierarchy tells of itself equals what it decided."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from hmarl.sdk.evaluation.annotation import Explains, TeamAnnotation
from hmarl.sdk.reports.video import record_episode
from hmarl.sdk.spaces import AgentSpec
from hmarl.trainer.algorithms.himpo import Himpo
from hmarl.trainer.hierarchy.settings import HierarchySettings
from hmarl.trainer.hierarchy.teams import HierarchyTeam
from hmarl.trainer.networks.settings import validate
from toy_environments import LENGTH, ToyEnvironment
from training_runs import CPU

pytestmark = pytest.mark.usefixtures("single_thread")

BATCH, AGENTS = 3, 4
SMALL = {"embedding_size": 8, "goal_size": 3, "goal_interval": 2, "manager_interval": 2, "radius": 1.0}


def toy() -> ToyEnvironment:
    """Agents anew at random places at every step; the last one leaves after two of five."""
    layout = (("position", 2), ("rest", 1))
    agents = tuple(AgentSpec(f"agent_{agent}", 3, spaces.Discrete(4), True, layout) for agent in range(AGENTS))
    return ToyEnvironment("toy/wanderers", agents, BATCH, leaves={AGENTS - 1: 2})


def team(**settings: Any) -> HierarchyTeam:
    checked = validate(HierarchySettings, {**SMALL, **settings}, "algorithm")
    algorithm = Himpo(toy().spec, checked, torch.Generator().manual_seed(3), CPU)
    return HierarchyTeam(algorithm.together, sample=True)


def episode(**settings: Any) -> list[TeamAnnotation]:
    return record_episode(toy(), team(**settings), seed=5).annotations


def test_before_the_first_step_there_is_nothing_to_tell() -> None:
    played, environment = team(), toy()
    assert isinstance(played, Explains)
    seen = environment.reset(np.arange(BATCH))
    played.reset(np.arange(BATCH))
    assert played.explain() is None
    played.act(seen, np.ones(BATCH, bool))
    assert played.explain() is not None
    played.reset(np.arange(BATCH))
    assert played.explain() is None


@pytest.mark.parametrize("goal_space", ["continuous", "discrete"])
def test_each_environments_messages_clusters_and_goals_are_those_decided(goal_space: str) -> None:
    played, environment = team(goal_space=goal_space, graph="nearest", neighbours=1), toy()
    seen = environment.reset(np.arange(BATCH))
    played.reset(np.arange(BATCH))
    for _ in range(3):
        seen = environment.step(played.act(seen, np.ones(BATCH, bool))).observation
        assert played.last is not None
        record = played.last.record
        for index in range(BATCH):
            told = played.explain(index)
            assert told is not None
            heard = {(i, j) for i in range(AGENTS) for j in range(AGENTS) if record["edges"][index, i, j]}
            assert heard == set(map(tuple, told.edges.tolist()))
            assert heard
            assert told.cluster is not None
            assert told.cluster.tolist() == record["cluster"][index].tolist()
            for name, goals in (("goal", told.goals), ("sub_goal", told.sub_goals)):
                assert goals is not None
                decided = record[name][index].numpy()
                np.testing.assert_array_equal(goals.argmax(-1) if goal_space == "discrete" else goals, decided)
            assert told.discrete == (goal_space == "discrete")


def test_goals_change_where_they_are_set_and_those_who_have_left_are_told_of() -> None:
    told = episode()
    assert len(told) == LENGTH
    assert [each.active.tolist() for each in told] == [[True] * 4] * 2 + [[True, True, True, False]] * 3
    assert [bool(each.goals_set.all()) for each in told] == [True, False, True, False, True]  # type: ignore[union-attr]
    assert [bool(each.sub_goals_set.all()) for each in told] == [True, False, False, False, True]  # type: ignore[union-attr]
    for before, after in pairwise(told):
        for name in ("goals", "sub_goals"):
            changed = (getattr(before, name) != getattr(after, name)).all(-1)
            np.testing.assert_array_equal(changed, getattr(after, f"{name}_set"))


def test_nothing_is_told_of_levels_and_messages_that_there_are_not() -> None:
    flat = episode(levels=1)[0]
    assert len(flat.edges)
    assert flat.cluster is None
    assert flat.goals is flat.goals_set is flat.sub_goals is None
    assert not len(episode(levels=1, message_rounds=0)[0].edges)
    two = episode(levels=2)[0]
    assert two.cluster is not None
    assert two.goals is not None
    assert two.sub_goals is None
