import subprocess
import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mujoco")

from hmarl.sdk.environments import make, tasks
from hmarl.sdk.environments.conformance import check_environment
from hmarl.sdk.environments.mamujoco import MamujocoEnvironment
from hmarl.sdk.environments.mamujoco.robots import ROBOTS
from hmarl.sdk.errors import UsageError
from hmarl.sdk.team import sample_actions

TASKS = ["HalfCheetah-2x3", "HalfCheetah-6x1", "Walker2d-2x3", "Walker2d-6x1", "Hopper-3x1", "Ant-4x2"]
SWIMMER = "ManySegmentSwimmer-3x2"


def make_robot(task: str, batch_size: int, **arguments: Any) -> MamujocoEnvironment:
    environment = make(f"mamujoco/{task}", batch_size, **arguments)
    assert isinstance(environment, MamujocoEnvironment)
    return environment


def random_actions(environment: MamujocoEnvironment, generator: np.random.Generator) -> tuple[np.ndarray, ...]:
    return tuple(
        sample_actions(group.example.action_space, (environment.batch_size, len(group.agents)), None, generator)
        for group in environment.spec.groups
    )


def idle(environment: MamujocoEnvironment) -> tuple[np.ndarray, ...]:
    return tuple(
        np.zeros((environment.batch_size, len(group.agents), *group.example.action_shape), np.float32)
        for group in environment.spec.groups
    )


def test_tasks_are_listed() -> None:
    assert {*TASKS, "ManySegmentSwimmer-NxM"} <= set(tasks("mamujoco"))


@pytest.mark.parametrize("task", [*TASKS, SWIMMER])
def test_every_task_keeps_the_contract(task: str) -> None:
    results = check_environment(lambda batch: make_robot(task, batch, horizon=12))
    assert [result for result in results if not result.passed] == []


def test_walker_6x1_has_an_agent_a_joint_and_shows_neighbours() -> None:
    names = [[name for name, _ in agent.observation_layout] for agent in make_robot("Walker2d-6x1", 1).spec.agents]
    root = ["root.positions", "root.velocities"]
    assert names == [
        ["foot_joint.position", "foot_joint.velocity", "leg_joint.position", *root],
        ["leg_joint.position", "leg_joint.velocity", "foot_joint.position", "thigh_joint.position", *root],
        ["thigh_joint.position", "thigh_joint.velocity", "leg_joint.position", "thigh_left_joint.position", *root],
        ["foot_left_joint.position", "foot_left_joint.velocity", "leg_left_joint.position", *root],
        [
            "leg_left_joint.position",
            "leg_left_joint.velocity",
            "foot_left_joint.position",
            "thigh_left_joint.position",
            *root,
        ],
        [
            "thigh_left_joint.position",
            "thigh_left_joint.velocity",
            "leg_left_joint.position",
            "thigh_joint.position",
            *root,
        ],
    ]


def test_each_agent_drives_the_actuator_of_its_own_joint() -> None:
    environment = make_robot("Walker2d-6x1", 1)
    environment.reset(np.array([0]))
    strengths = np.arange(1, 7, dtype=np.float32) / 8
    environment.step(tuple(strengths[None, list(group.agents), None] for group in environment.spec.groups))
    # MuJoCo's state: time, 9 positions, 9 velocities, 9 warm-start accelerations, then the controls, thighs first.
    controls = environment.get_state()["physics"][0, 28:34]
    np.testing.assert_array_equal(controls, strengths[[2, 1, 0, 5, 4, 3]])


def test_all_agents_receive_the_robots_reward() -> None:
    environment = make_robot("HalfCheetah-6x1", 4)
    environment.reset(np.arange(4))
    result = environment.step(random_actions(environment, np.random.default_rng(0)))
    assert (result.rewards == result.rewards[:, :1]).all()
    np.testing.assert_array_equal(environment.spec.team_rewards(result.rewards), result.rewards[:, 0])


def test_reward_is_speed_less_control_cost_as_worked_out_by_hand() -> None:
    environment = make_robot("HalfCheetah-2x3", 1)
    environment.reset(np.array([3]))
    before = environment.get_state()["forward_positions"][0]
    result = environment.step((np.array([[[1.0, 0.5, 0.0], [-1.0, 0.0, 0.5]]], np.float32),))
    speed = (environment.get_state()["forward_positions"][0] - before) / 0.05
    np.testing.assert_allclose(result.rewards, speed - 0.1 * (1 + 0.25 + 1 + 0.25), rtol=1e-6)


@pytest.mark.parametrize(
    ("robot", "entry", "inside", "outside"),
    [
        ("Walker2d", 1, [0.81, 1.99], [0.8, 2.0, np.nan]),
        ("Walker2d", 2, [-0.99, 0.99], [-1.0, 1.0, np.nan]),
        ("Walker2d", 9, [1e3], []),
        ("Hopper", 1, [0.71, 50.0], [0.7, np.nan]),
        ("Hopper", 2, [-0.19, 0.19], [-0.2, 0.2]),
        ("Hopper", 3, [-99.0, 99.0], [-100.0, 100.0]),
        ("Hopper", 6, [-99.0, 99.0], [-100.0, 100.0]),
        ("Ant", 2, [0.2, 1.0], [0.19, 1.01, np.nan]),
        ("Ant", 7, [1e3], [np.inf]),
        ("Ant", 15, [1e3], [np.nan]),
    ],
)
def test_a_robot_is_up_within_gymnasiums_bounds(
    robot: str, entry: int, inside: list[float], outside: list[float]
) -> None:
    healthy, model = ROBOTS[robot].healthy, ROBOTS[robot].load()
    assert healthy is not None
    numbers = np.tile(np.concatenate([model.qpos0, np.zeros(model.nv)]), (len(inside + outside), 1))
    numbers[:, entry] = inside + outside
    up = healthy(numbers[:, : model.nq], numbers[:, model.nq :])
    assert up.tolist() == [True] * len(inside) + [False] * len(outside)


def test_a_fallen_robot_ends_its_episode_alone_and_keeps_its_final_observation() -> None:
    environment = make_robot("Hopper-3x1", 2)
    environment.reset(np.array([0, 1]))
    state = environment.get_state()
    height = 1 + 1  # MuJoCo's state starts with the time, then x, z
    state["physics"][0, height] = 0.6
    environment.set_state(state)
    result = environment.step(idle(environment))
    assert result.terminated.tolist() == [True, False]
    assert not result.truncated.any()
    assert result.final is not None
    assert result.final.state[0, 0] < 0.7 < result.observation.state[0, 0]
    np.testing.assert_array_equal(result.final.state[1], result.observation.state[1])
    assert environment.get_state()["steps"].tolist() == [0, 1]


def test_truncation_comes_at_the_horizon() -> None:
    environment = make_robot("HalfCheetah-2x3", 2, horizon=3)
    environment.reset(np.array([1, 2]))
    results = [environment.step(idle(environment)) for _ in range(6)]
    assert [bool(result.truncated.all()) for result in results] == [False, False, True] * 2
    assert [result.final is None for result in results] == [True, True, False] * 2
    assert not any(result.terminated.any() for result in results)


@pytest.mark.parametrize("task", ["HalfCheetah-2x3", "Walker2d-6x1", "Hopper-3x1", "Ant-4x2", SWIMMER])
def test_a_restored_state_continues_bit_for_bit_over_resets(task: str) -> None:
    environment, other = (make_robot(task, 4, horizon=30) for _ in range(2))
    generator = np.random.default_rng(0)
    environment.reset(np.arange(4))
    for _ in range(20):
        seen = environment.step(random_actions(environment, generator)).observation
    restored = other.set_state(environment.get_state())
    np.testing.assert_array_equal(restored.state, seen.state)
    for one, two in zip(restored.observations, seen.observations, strict=True):
        np.testing.assert_array_equal(one, two)
    for _ in range(40):
        actions = random_actions(environment, generator)
        one, two = environment.step(actions), other.step(actions)
        np.testing.assert_array_equal(one.observation.state, two.observation.state)
        np.testing.assert_array_equal(one.rewards, two.rewards)
    for name, array in environment.get_state().items():
        np.testing.assert_array_equal(array, other.get_state()[name], err_msg=name)


@pytest.mark.parametrize("task", ["HalfCheetah-2x3", "Ant-4x2"])
def test_an_episode_depends_neither_on_the_batch_nor_on_the_threads(task: str) -> None:
    alone, among = make_robot(task, 1, threads=1), make_robot(task, 19, threads=3)
    alone.reset(np.array([11]))
    among.reset(np.arange(19))
    generator = np.random.default_rng(0)
    for _ in range(30):
        actions = random_actions(among, generator)
        many, single = among.step(actions), alone.step(tuple(block[11:12] for block in actions))
        np.testing.assert_array_equal(many.rewards[11], single.rewards[0])
    for name, array in alone.get_state().items():
        np.testing.assert_array_equal(among.get_state()[name][11], array[0], err_msg=name)


@pytest.mark.parametrize("task", [*TASKS, SWIMMER])
def test_pictures_show_every_agents_limbs(task: str) -> None:
    environment = make_robot(task, 2)
    environment.reset(np.array([0, 1]))
    picture = environment.render(1)
    assert (picture.shape, picture.dtype) == ((400, 400, 3), np.uint8)
    bodies = picture[(picture.max(axis=2) - picture.min(axis=2)) > 60]
    # The walker's left leg hides the right one.
    hidden = 3 if task == "Walker2d-6x1" else 1 if task == "Walker2d-2x3" else 0
    assert len(np.unique(bodies, axis=0)) >= len(environment.spec.agents) - hidden


def test_a_picture_changes_nothing() -> None:
    environment = make_robot("Ant-4x2", 2)
    environment.reset(np.array([0, 1]))
    before = environment.get_state()
    environment.render(0)
    for name, array in environment.get_state().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_the_swimmer_has_two_names() -> None:
    one, two = make_robot("ManySegmentSwimmer-2x3", 1), make_robot("ManyAgentSwimmer-2x3", 1)
    np.testing.assert_array_equal(one.reset(np.array([4])).state, two.reset(np.array([4])).state)


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("HalfCheetah-2x4", {}, "unknown mamujoco task 'HalfCheetah-2x4'; did you mean 'HalfCheetah-"),
        ("HalfCheetah", {}, "unknown mamujoco task 'HalfCheetah'"),
        ("ManySegmentSwimmer-1x1", {}, "ManySegmentSwimmer-1x1: got 1 joints, expected 2 to 90"),
        ("ManySegmentSwimmer-9999x9999", {}, "got 99980001 joints, expected 2 to 90"),
        ("Ant-4x2", {"agent_obsk": -1}, "agent_obsk: got -1, expected an integer of at least 0 .*takes agent_obsk=1"),
        ("Ant-4x2", {"agent_obsk": None}, "agent_obsk: got None"),
        ("Ant-4x2", {"horizon": 0}, "horizon: got 0, expected an integer of at least 1"),
        ("Ant-4x2", {"threads": True}, "threads: got True"),
        ("Ant-4x2", {"obsk": 1}, "unknown argument of mamujoco/Ant-4x2 'obsk'; did you mean|known: agent_obsk"),
    ],
)
def test_wrong_names_and_arguments_are_named(task: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(f"mamujoco/{task}", 1, **arguments)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ((), "got 0 arrays, expected 1"),
        ((np.zeros((2, 2, 2), np.float32),), r"got float32 \[2, 2, 2\], expected float32 \[2, 2, 3\]"),
        ((np.full((2, 2, 3), np.nan, np.float32),), "'agent_0': got NaN"),
    ],
)
def test_wrong_actions_change_nothing(actions: tuple[np.ndarray, ...], message: str) -> None:
    environment = make_robot("HalfCheetah-2x3", 2)
    environment.reset(np.array([0, 1]))
    before = environment.get_state()
    with pytest.raises(UsageError, match=message):
        environment.step(actions)
    for name, array in environment.get_state().items():
        np.testing.assert_array_equal(array, before[name])


def test_actions_are_clipped_to_the_actuators_range() -> None:
    one, two = make_robot("HalfCheetah-2x3", 1), make_robot("HalfCheetah-2x3", 1)
    for environment in (one, two):
        environment.reset(np.array([0]))
    beyond, most = one.step((np.full((1, 2, 3), 7.0, np.float32),)), two.step((np.ones((1, 2, 3), np.float32),))
    np.testing.assert_array_equal(beyond.observation.state, most.observation.state)
    np.testing.assert_array_equal(beyond.rewards, most.rewards)


def test_wrong_seeds_states_and_order_of_calls_are_named() -> None:
    environment = make_robot("Hopper-3x1", 2)
    with pytest.raises(UsageError, match="call reset"):
        environment.step(idle(environment))
    with pytest.raises(UsageError, match="call reset"):
        environment.get_state()
    with pytest.raises(UsageError, match=r"seeds: got int64 \[3\], expected integers \[2\]"):
        environment.reset(np.arange(3))
    environment.reset(np.array([0, 1]))
    state = environment.get_state()
    with pytest.raises(UsageError, match="'physics': got float64"):
        environment.set_state({**state, "physics": state["physics"][:, :-1]})
    with pytest.raises(UsageError, match="got the arrays"):
        environment.set_state({name: array for name, array in state.items() if name != "steps"})


def test_neither_the_original_nor_a_log_file_is_needed(tmp_path: Any) -> None:
    code = (
        "import sys, numpy\n"
        "from hmarl.sdk.environments import make\n"
        "make('mamujoco/HalfCheetah-2x3').reset(numpy.array([0]))\n"
        "assert not {'gymnasium_robotics', 'pettingzoo', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
