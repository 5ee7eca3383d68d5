"""What is said of fixed roles, held to numbers worked out by hand."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from gymnasium import spaces

from hmarl.sdk import UsageError
from hmarl.sdk.environment import Observation
from hmarl.sdk.spaces import AgentSpec
from scripts_loaded import load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("roles")


def test_a_team_that_keeps_an_assignment_has_fixed_roles(script: ModuleType) -> None:
    assert script.usual_share(np.array([[2, 0, 1]] * 5)) == 1.0


def test_one_episode_in_four_with_two_agents_changed(script: ModuleType) -> None:
    nearest = np.array([[0, 1, 2], [0, 1, 2], [0, 1, 2], [1, 0, 2]])
    # agents 0 and 1 are at their own in three of four, agent 2 always
    assert script.usual_share(nearest) == pytest.approx((0.75 + 0.75 + 1.0) / 3)


def test_all_assignments_alike_come_to_chance(script: ModuleType) -> None:
    nearest = np.array([[0, 1, 2], [1, 2, 0], [2, 0, 1]])
    assert script.usual_share(nearest) == pytest.approx(1 / 3)


def test_a_landmark_with_two_agents_leaves_one_uncovered(script: ModuleType) -> None:
    assert script.covered_share(np.array([[0, 1, 2], [2, 1, 0], [1, 1, 0], [2, 0, 1]])) == 0.75


class Still:
    """Does nothing."""

    name = "still"

    def reset(self, seeds: object) -> None:
        """Nothing."""

    def act(self, observation: object, running: object) -> tuple[()]:
        """No action."""
        return ()

    def close(self) -> None:
        """Nothing."""


def an_agent(*layout: tuple[str, int]) -> AgentSpec:
    return AgentSpec("agent_0", 8, spaces.Discrete(5), observation_layout=layout)


def test_landmarks_are_read_from_their_part_of_the_observation(script: ModuleType) -> None:
    team = script.Watched(Still(), an_agent(("velocity", 2), ("landmarks_relative", 4), ("other_agents_relative", 2)))
    # one episode, two agents; the first is next to landmark 1, the second to landmark 0
    seen = np.array([[[9, 9, 3, 4, 0, 1, 0, 0], [0, 0, -1, 0, 2, 2, 0, 0]]], np.float32)
    team.act(Observation((seen,), (None,), np.zeros((1, 0)), np.ones((1, 2), np.bool_)), np.ones(1, np.bool_))
    assert team.nearest.tolist() == [[1, 0]]


def test_a_task_without_landmarks_is_refused(script: ModuleType) -> None:
    with pytest.raises(UsageError, match="RUN: got a task whose agents observe no landmarks"):
        script.Watched(Still(), an_agent(("velocity", 8)))
