"""Our batched MaMuJoCo and gymnasium-robotics' ``mamujoco_v1``, driven side by side by the same seeds and actions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mujoco")
pytest.importorskip("gymnasium_robotics")

import mujoco
from gymnasium_robotics import mamujoco_v1

from hmarl.sdk.environment import Observation
from hmarl.sdk.environments import make
from hmarl.sdk.environments.mamujoco import MamujocoEnvironment
from hmarl.sdk.team import sample_actions

SEEDS = np.array([0, 7, 2**31 - 1])
TASKS = [
    "HalfCheetah-2x3",
    "HalfCheetah-6x1",
    "Walker2d-2x3",
    "Walker2d-6x1",
    "Hopper-3x1",
    "Ant-2x4",
    "Ant-2x4d",
    "Ant-4x2",
    "ManySegmentSwimmer-2x1",
    "ManySegmentSwimmer-3x4",
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original writes a log into the working directory."""
    monkeypatch.chdir(tmp_path)


def make_original(task: str, agent_obsk: int, horizon: int) -> Any:
    robot, _, partition = task.partition("-")
    arguments: dict[str, Any] = {"agent_obsk": agent_obsk, "max_episode_steps": horizon}
    if task == "Walker2d-6x1":
        # It has no such partition but takes one: that of 2x3 with one joint an agent.
        parts, edges, roots = mamujoco_v1.get_parts_and_edges(robot, "2x3")
        single = [(joint,) for part in parts for joint in part]
        arguments["agent_factorization"] = {"partition": single, "edges": edges, "globals": roots}
    return mamujoco_v1.parallel_env(robot, partition, **arguments)


def row_of(ours: MamujocoEnvironment, blocks: tuple[np.ndarray, ...], row: int) -> dict[str, np.ndarray]:
    """One environment's part of one array per group, by agent."""
    return {
        ours.spec.agent_ids[agent]: block[row, place]
        for group, block in zip(ours.spec.groups, blocks, strict=True)
        for place, agent in enumerate(group.agents)
    }


def assert_seen(
    ours: MamujocoEnvironment, seen: Observation, row: int, original: Any, observations: dict[str, np.ndarray]
) -> None:
    for agent, observation in row_of(ours, seen.observations, row).items():
        np.testing.assert_array_equal(observation, observations[agent].astype(np.float32), err_msg=agent)
    np.testing.assert_array_equal(seen.state[row], original.state().astype(np.float32))


def assert_same_simulation(ours: MamujocoEnvironment, originals: list[Any]) -> None:
    """All that determines the future, in float64, to the last bit."""
    rows = ours.get_state()["physics"]
    for row, original in zip(rows, originals, strict=True):
        single, expected = original.single_agent_env.unwrapped, np.empty(len(row))
        mujoco.mj_getState(single.model, single.data, expected, mujoco.mjtState.mjSTATE_INTEGRATION.value)
        np.testing.assert_array_equal(row, expected)


def assert_equal_play(task: str, steps: int, agent_obsk: int = 1, horizon: int = 1000) -> None:
    ours = make(f"mamujoco/{task}", len(SEEDS), agent_obsk=agent_obsk, horizon=horizon)
    assert isinstance(ours, MamujocoEnvironment)
    originals = [make_original(task, agent_obsk, horizon) for _ in SEEDS]
    assert ours.spec.agent_ids == tuple(originals[0].possible_agents)
    for agent in ours.spec.agents:
        assert agent.action_space == originals[0].action_space(agent.id)
    generator = np.random.default_rng(3)
    first = ours.reset(SEEDS)
    for row, (original, seed) in enumerate(zip(originals, SEEDS.tolist(), strict=True)):
        assert_seen(ours, first, row, original, original.reset(seed=seed)[0])
    for _ in range(steps):
        actions = tuple(
            sample_actions(group.example.action_space, (len(SEEDS), len(group.agents)), None, generator)
            for group in ours.spec.groups
        )
        result = ours.step(actions)
        for row, original in enumerate(originals):
            observations, rewards, ends, cuts, _ = original.step(row_of(ours, actions, row))
            assert result.rewards[row].tolist() == [np.float32(rewards[agent]) for agent in ours.spec.agent_ids]
            terminated, truncated = ends["agent_0"], cuts["agent_0"] and not ends["agent_0"]
            assert (result.terminated[row], result.truncated[row]) == (terminated, truncated)
            assert_seen(ours, result.final or result.observation, row, original, observations)
            if terminated or truncated:
                assert_seen(ours, result.observation, row, original, original.reset()[0])
        assert_same_simulation(ours, originals)


@pytest.mark.parametrize("task", TASKS)
def test_play_equals_the_original(task: str) -> None:
    assert_equal_play(task, steps=60, horizon=25)


@pytest.mark.parametrize("agent_obsk", [0, 2, 9])
@pytest.mark.parametrize("task", ["HalfCheetah-6x1", "Walker2d-6x1", "Ant-4x2", "ManySegmentSwimmer-3x4"])
def test_near_and_far_neighbours_are_those_of_the_original(task: str, agent_obsk: int) -> None:
    assert_equal_play(task, steps=3, agent_obsk=agent_obsk)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_over_a_thousand_steps_play_equals_the_original_to_the_last_bit(task: str) -> None:
    assert_equal_play(task, steps=1100)
