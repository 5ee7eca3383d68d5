import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from hmarl.sdk.environment import Observation
from hmarl.sdk.environments import make, tasks
from hmarl.sdk.environments.mpe import MpeEnvironment
from hmarl.sdk.errors import UsageError
from hmarl.sdk.team import sample_actions

TASKS = ["simple_spread", "simple_reference", "simple_speaker_listener"]


def make_mpe(task: str, batch_size: int, **arguments: Any) -> MpeEnvironment:
    environment = make(f"mpe/{task}", batch_size, **arguments)
    assert isinstance(environment, MpeEnvironment)
    return environment


def random_actions(environment: MpeEnvironment, generator: np.random.Generator) -> tuple[np.ndarray, ...]:
    return tuple(
        sample_actions(group.example.action_space, (environment.batch_size, len(group.agents)), None, generator)
        for group in environment.spec.groups
    )


def idle(environment: MpeEnvironment) -> tuple[np.ndarray, ...]:
    return tuple(
        np.zeros((environment.batch_size, len(group.agents), *group.example.action_shape), group.example.action_dtype)
        for group in environment.spec.groups
    )


def place(environment: MpeEnvironment, positions: list[list[float]], goals: list[int] | None = None) -> Observation:
    """Put every copy's agents, then landmarks, at ``positions`` at rest."""
    state = environment.get_state()
    state["positions"][:] = positions
    state["velocities"][:] = 0
    if goals is not None:
        state["goals"][:] = goals
    return environment.set_state(state)


def test_tasks_are_listed() -> None:
    assert tasks("mpe") == TASKS


def test_one_agent_accelerates_and_is_damped_as_worked_out_by_hand() -> None:
    environment = make_mpe("simple_spread", 1, N=1)
    environment.reset(np.array([0]))
    place(environment, [[0.2, -0.3], [0.5, 0.1]])
    right, up = np.array([[2]]), np.array([[4]])
    first = environment.step((right,)).observation.state[0]
    # The new velocity 5 · 0.1 moves the agent one step later.
    np.testing.assert_allclose(first, [0.5, 0, 0.2, -0.3, 0.3, 0.4], atol=1e-7)
    second = environment.step((up,)).observation.state[0]
    np.testing.assert_allclose(second, [0.375, 0.5, 0.25, -0.3, 0.25, 0.4], atol=1e-7)


def test_continuous_moves_are_differences_clipped_to_the_unit_interval() -> None:
    environment = make_mpe("simple_spread", 1, N=1, continuous_actions=True)
    environment.reset(np.array([0]))
    result = environment.step((np.array([[[0.9, 0.25, 0.75, 0.5, 3.0]]], dtype=np.float32),))
    np.testing.assert_allclose(result.observation.state[0, :2], [0.25, 0.25], atol=1e-7)


@pytest.mark.parametrize(
    ("local_ratio", "expected"), [(0.5, [-1.0, -1.0, -0.5]), (0.0, [-1.0] * 3), (1.0, [-1, -1, 0])]
)
def test_spread_rewards_worked_out_by_hand(local_ratio: float, expected: list[float]) -> None:
    environment = make_mpe("simple_spread", 1, local_ratio=local_ratio)
    environment.reset(np.array([0]))
    # Agents 0 and 1 overlap (0.25 < 0.3). Landmark distances to the nearest agent: 0.5, 0.25, 0.25.
    place(environment, [[0, 0], [0.25, 0], [1, 0], [0, 0.5], [0.5, 0], [1, 0.25]])
    result = environment.step(idle(environment))
    np.testing.assert_allclose(result.rewards[0], expected, atol=1e-6)
    np.testing.assert_allclose(environment.spec.team_rewards(result.rewards), [sum(expected)], atol=1e-6)


def test_overlapping_agents_push_each_other_apart_and_touch_no_landmark() -> None:
    environment = make_mpe("simple_spread", 1, N=2)
    environment.reset(np.array([0]))
    place(environment, [[0, 0], [0.2, 0], [0, 0], [0.2, 0]])
    velocities = environment.step(idle(environment)).observation.observations[0][0, :, :2]
    # Overlap 0.1, force 100 · 0.1, velocity 10 · 0.1.
    np.testing.assert_allclose(velocities, [[-1, 0], [1, 0]], atol=1e-6)


def test_agents_at_the_same_point_stay_finite() -> None:
    environment = make_mpe("simple_spread", 1, N=3)
    environment.reset(np.array([0]))
    place(environment, [[0.1, 0.1]] * 6)
    result = environment.step(idle(environment))
    assert np.isfinite(result.observation.state).all()
    np.testing.assert_allclose(result.rewards[0], [-1.0] * 3)


def test_success_means_every_landmark_within_a_tenth_and_terminates_only_when_asked() -> None:
    for terminates in (False, True):
        environment = make_mpe("simple_spread", 2, N=2, terminate_on_success=terminates)
        environment.reset(np.array([0, 1]))
        state = environment.get_state()
        state["positions"][0] = [[0, 0], [1, 0], [0.099, 0], [1, 0.099]]
        state["positions"][1] = [[0, 0], [1, 0], [0.099, 0], [1, 0.101]]
        environment.set_state(state)
        result = environment.step(idle(environment))
        assert result.success is not None
        assert result.success.tolist() == [True, False]
        assert result.terminated.tolist() == [terminates, False]
        assert not result.truncated.any()
        if terminates:
            assert result.final is not None
            np.testing.assert_array_equal(result.final.state[1], result.observation.state[1])
            assert (result.final.state[0] != result.observation.state[0]).any()
            assert environment.get_state()["steps"].tolist() == [0, 1]


def test_reference_rewards_words_and_goal_colours_worked_out_by_hand() -> None:
    environment = make_mpe("simple_reference", 1, local_ratio=0.5)
    environment.reset(np.array([0]))
    # Agent 0 knows that agent 1 must go to landmark 2 (distance 3); agent 1 that agent 0 must go to landmark 0 (1).
    place(environment, [[0, 0], [0, 1], [1, 0], [5, 5], [0, 4]], goals=[2, 0])
    result = environment.step((np.array([[0 + 5 * 7, 0 + 5 * 2]]),))
    np.testing.assert_allclose(result.rewards[0], [0.5 * -2 + 0.5 * -3, 0.5 * -2 + 0.5 * -1])
    first, second = result.observation.observations[0][0]
    np.testing.assert_allclose(first[8:11], [0.25, 0.25, 0.75])
    np.testing.assert_allclose(second[8:11], [0.75, 0.25, 0.25])
    assert (int(first[11:].argmax()), int(second[11:].argmax())) == (2, 7)  # each hears the other
    assert first[11:].sum() == second[11:].sum() == 1


def test_the_listener_hears_the_speaker_and_is_judged_by_squared_distance() -> None:
    environment = make_mpe("simple_speaker_listener", 1)
    environment.reset(np.array([0]))
    place(environment, [[9, 9], [0, 0], [1, 0], [0, 2], [3, 0]], goals=[1])
    result = environment.step((np.array([[2]]), np.array([[0]])))
    speaker, listener = (block[0, 0] for block in result.observation.observations)
    np.testing.assert_allclose(speaker, [0.15, 0.65, 0.15])
    np.testing.assert_allclose(listener[-3:], [0, 0, 1])
    np.testing.assert_allclose(result.rewards[0], [-4, -4])
    np.testing.assert_array_equal(result.observation.state[0], np.concatenate([speaker, listener]))


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_a_restored_state_continues_bit_for_bit_over_resets(task: str, continuous: bool) -> None:
    environment, other = (make_mpe(task, 5, continuous_actions=continuous) for _ in range(2))
    generator = np.random.default_rng(0)
    environment.reset(np.arange(5))
    for _ in range(30):
        environment.step(random_actions(environment, generator))
    other.set_state(environment.get_state())
    for _ in range(80):
        actions = random_actions(environment, generator)
        one, two = environment.step(actions), other.step(actions)
        np.testing.assert_array_equal(one.observation.state, two.observation.state)
        np.testing.assert_array_equal(one.rewards, two.rewards)
    for name, array in environment.get_state().items():
        np.testing.assert_array_equal(array, other.get_state()[name], err_msg=name)


@pytest.mark.parametrize(("task", "arguments"), [("simple_spread", {"N": 10}), *((task, {}) for task in TASKS[1:])])
def test_an_episode_does_not_depend_on_the_batch(task: str, arguments: dict[str, int]) -> None:
    alone, among = make_mpe(task, 1, **arguments), make_mpe(task, 33, **arguments)
    alone.reset(np.array([20]))
    among.reset(np.arange(33))
    generator = np.random.default_rng(0)
    for _ in range(60):
        actions = random_actions(among, generator)
        many, single = among.step(actions), alone.step(tuple(block[20:21] for block in actions))
        np.testing.assert_array_equal(many.rewards[20], single.rewards[0])
    for name, array in alone.get_state().items():
        np.testing.assert_array_equal(among.get_state()[name][20], array[0], err_msg=name)


@pytest.mark.parametrize("task", TASKS)
def test_what_was_handed_out_is_never_touched_again(task: str) -> None:
    environment = make_mpe(task, 3, max_cycles=4)
    generator = np.random.default_rng(0)
    environment.reset(np.arange(3))
    kept = []
    for _ in range(9):
        result = environment.step(random_actions(environment, generator))
        arrays = [*result.observation.observations, result.observation.state, result.rewards, result.truncated]
        kept.append((arrays, [array.copy() for array in arrays]))
    for arrays, copies in kept:
        for array, copy in zip(arrays, copies, strict=True):
            np.testing.assert_array_equal(array, copy)


def test_truncation_keeps_the_final_observation_and_starts_another_episode() -> None:
    environment = make_mpe("simple_spread", 2, max_cycles=3)
    environment.reset(np.array([1, 2]))
    results = [environment.step(idle(environment)) for _ in range(6)]
    assert [bool(result.truncated.all()) for result in results] == [False, False, True] * 2
    assert [result.final is None for result in results] == [True, True, False] * 2
    final = results[2].final
    assert final is not None
    assert (final.state != results[2].observation.state).any()


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("simple_spred", {}, "unknown mpe task 'simple_spred'; did you mean 'simple_spread'"),
        ("simple_spread", {"n": 3}, "unknown argument of mpe/simple_spread 'n'"),
        ("simple_spread", {"N": 0}, "N: got 0, expected an integer of at least 1 .*takes N=3, local_ratio=0.5"),
        ("simple_spread", {"N": True}, "N: got True"),
        ("simple_spread", {"local_ratio": 1.5}, r"local_ratio: got 1.5, expected a number in \[0, 1\]"),
        ("simple_spread", {"max_cycles": 2.5}, "max_cycles: got 2.5"),
        ("simple_reference", {"continuous_actions": "yes"}, "continuous_actions: got 'yes', expected true or false"),
        ("simple_speaker_listener", {"local_ratio": 0.5}, "known: backend, continuous_actions, device, max_cycles"),
    ],
)
def test_wrong_names_and_arguments_are_named(task: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(f"mpe/{task}", 1, **arguments)


@pytest.mark.parametrize(
    ("continuous", "actions", "message"),
    [
        (False, (), "got 0 arrays, expected 1"),
        (False, (np.zeros((2, 2), dtype=np.int64),), r"got int64 \[2, 2\], expected int64 \[2, 3\]"),
        (False, (np.zeros((2, 3)),), r"got float64 \[2, 3\], expected int64"),
        (False, (np.full((2, 3), 5),), "got 5 to 5, expected 0 to 4"),
        (False, (np.full((2, 3), -1),), "got -1 to -1, expected 0 to 4"),
        (True, (np.zeros((2, 3, 5), dtype=np.int64),), r"got int64 \[2, 3, 5\], expected float32"),
        (True, (np.full((2, 3, 5), np.nan, dtype=np.float32),), "'agent_0': got NaN"),
    ],
)
def test_wrong_actions_change_nothing(continuous: bool, actions: tuple[np.ndarray, ...], message: str) -> None:
    environment = make_mpe("simple_spread", 2, continuous_actions=continuous)
    environment.reset(np.array([0, 1]))
    before = environment.get_state()
    with pytest.raises(UsageError, match=message):
        environment.step(actions)
    for name, array in environment.get_state().items():
        np.testing.assert_array_equal(array, before[name])


def test_wrong_seeds_states_and_order_of_calls_are_named() -> None:
    environment = make_mpe("simple_reference", 2)
    with pytest.raises(UsageError, match="call reset"):
        environment.step(idle(environment))
    with pytest.raises(UsageError, match=r"seeds: got int64 \[3\], expected integers \[2\]"):
        environment.reset(np.arange(3))
    with pytest.raises(UsageError, match="seeds: got -1"):
        environment.reset(np.array([-1, 0]))
    environment.reset(np.array([0, 1]))
    state = environment.get_state()
    with pytest.raises(UsageError, match="goals"):
        environment.set_state({**state, "goals": state["goals"] + 3})
    with pytest.raises(UsageError, match=r"'positions': got float64 \[2, 4, 2\], expected float64 \[2, 5, 2\]"):
        environment.set_state({**state, "positions": state["positions"][:, :4]})
    with pytest.raises(UsageError, match="got the arrays"):
        environment.set_state({name: array for name, array in state.items() if name != "steps"})


@pytest.mark.parametrize("task", TASKS)
def test_render_shows_the_agents_where_they_are(task: str) -> None:
    environment = make_mpe(task, 2)
    environment.reset(np.array([0, 1]))
    agents = len(environment.spec.agents)
    positions = [[-0.65 + 0.65 * agent, 0.0] for agent in range(agents)]
    place(environment, positions + [[0.5, -0.9]] * (environment.get_state()["positions"].shape[1] - agents))
    picture = environment.render(1)
    assert (picture.shape, picture.dtype) == ((320, 320, 3), np.uint8)
    centres = [picture[160, 160 + round(160 * x / 1.3)] for x, _ in positions]
    rims = [picture[160 + 4, 160 + round(160 * x / 1.3)] for x, _ in positions]
    background = picture[-1, 0]
    assert all((centre != background).any() for centre in centres)
    assert (rims[0] != rims[1]).any()
    assert (picture[160 + round(160 * 0.9 / 1.3), 160 + round(160 * 0.5 / 1.3)] != background).any()


def test_render_shows_what_is_said_and_agents_that_wander_off() -> None:
    environment = make_mpe("simple_speaker_listener", 1)
    environment.reset(np.array([0]))
    silent = environment.render()
    environment.step((np.array([[1]]), np.array([[0]])))
    assert (environment.render() != silent).any()
    place(environment, [[30.0, 0.0], [0, 0], [0, 0], [0, 0], [0, 0]])
    assert (environment.render()[160, 250:] != environment.render()[-1, 0]).any()


def test_needs_neither_torch_nor_mpe2_nor_pettingzoo() -> None:
    program = (
        "import sys, numpy; from hmarl.sdk.environments import make; e = make('mpe/simple_spread', 2);"
        "e.reset(numpy.arange(2)); e.step((numpy.zeros((2, 3), int),)); e.render();"
        "print(sorted({'torch', 'mpe2', 'pettingzoo', 'pygame'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
