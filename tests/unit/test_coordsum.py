import numpy as np
import pytest

from hmarl.sdk.environment import VectorEnvironment
from hmarl.sdk.environments import make
from hmarl.sdk.errors import UsageError
from hmarl.sdk.team import RandomTeam

SEEDS = np.array([5, 6, 7])


def with_targets(environment: VectorEnvironment, targets: list[int]) -> None:
    """Make the next steps show ``targets`` in every copy."""
    state = dict(environment.get_state() or {})
    state["targets"][:, : len(targets)] = targets
    environment.set_state(state)


def play(environment: VectorEnvironment, rounds: list[list[int]]) -> list[float]:
    """Play the same numbers in every copy; returns the team rewards of copy 0."""
    rewards = []
    for named in rounds:
        result = environment.step((np.tile(named, (environment.batch_size, 1)),))
        assert (result.rewards == result.rewards[0, 0]).all()
        rewards.append(float(result.rewards[0, 0]))
    return rewards


def test_an_empty_record_guesses_zero_and_a_wrong_sum_pays_nothing() -> None:
    environment = make("coordsum/3x10-30", 2)
    environment.reset(SEEDS[:2])
    with_targets(environment, [6, 7, 8, 5])
    # Target 6: agent 0 names 0 = the guess. Target 7: names 1. Target 8: the sum is 9. Target 5: two agents suffice.
    assert play(environment, [[0, 3, 3], [1, 3, 3], [3, 3, 3], [5, 0, 0]]) == [1.0, 2.0, 0.0, 2.0]


def test_the_guess_is_the_most_frequent_name_and_the_smallest_of_equals() -> None:
    environment = make("coordsum/2x5-9", 1)
    environment.reset(SEEDS[:1])
    with_targets(environment, [6] * 8)
    names = [4, 4, 3, 3, 3, 4, 4, 3]
    # Guesses: empty 0 · 4 · 4 · 4 · tie of 3 and 4 -> 3 · 3 · tie -> 3 · 4 again
    assert play(environment, [[name, 6 - name] for name in names]) == [2.0, 1.0, 2.0, 2.0, 1.0, 2.0, 2.0, 2.0]


def test_names_count_also_when_the_sum_was_wrong() -> None:
    environment = make("coordsum/2x5-9", 1)
    environment.reset(SEEDS[:1])
    with_targets(environment, [6, 6])
    assert play(environment, [[4, 0], [4, 2]]) == [0.0, 1.0]


def test_targets_have_records_of_their_own_unless_the_reference_record_is_asked_for() -> None:
    rounds, targets = [[4, 3], [4, 4], [4, 4], [3, 0], [3, 0]], [7, 8, 8, 3, 3]
    expected = {"own": [2.0, 2.0, 1.0, 2.0, 1.0], "reference": [2.0, 1.0, 1.0, 2.0, 1.0]}
    for record, rewards in expected.items():
        environment = make("coordsum/2x5-9", 1, record=record)
        environment.reset(SEEDS[:1])
        with_targets(environment, targets)
        assert play(environment, rounds) == rewards, record


def test_with_the_reference_record_the_target_below_the_last_row_keeps_its_own() -> None:
    environment = make("coordsum/2x5-9", 1, record="reference")
    environment.reset(SEEDS[:1])
    with_targets(environment, [3, 4, 5])
    assert play(environment, [[2, 1], [2, 2], [2, 3]]) == [2.0, 2.0, 1.0]


def test_records_are_forgotten_between_episodes_and_episodes_end_by_termination() -> None:
    environment = make("coordsum/3x10-30", 1)
    environment.reset(SEEDS[:1])
    for step in range(1, 101):
        result = environment.step((np.array([[1, 0, 0]]),))
        assert bool(result.terminated[0]) == (step == 100)
        assert not result.truncated.any()
        assert (result.final is None) == (step < 100)
    assert result.final is not None
    assert result.final.state[0, 1] == 1.0
    assert result.observation.state[0, 1] == 0.0
    assert not np.any((environment.get_state() or {})["record"])


def test_observations_are_the_scaled_target_and_step_and_the_state_adds_the_guess() -> None:
    environment = make("coordsum/2x5-9", 2)
    environment.reset(SEEDS[:2])
    with_targets(environment, [6, 6])
    result = environment.step((np.array([[3, 3], [4, 2]]),))
    (seen,) = result.observation.observations
    assert seen.dtype == result.observation.state.dtype == np.float32
    np.testing.assert_allclose(seen, np.full((2, 2, 2), [6 / 9, 0.01]), rtol=1e-6)
    np.testing.assert_allclose(result.observation.state, [[6 / 9, 0.01, 3 / 5], [6 / 9, 0.01, 4 / 5]], rtol=1e-6)


def test_targets_are_uniform_and_depend_on_the_seed_alone() -> None:
    large, small = make("coordsum/3x10-30", 200), make("coordsum/3x10-30", 1)
    large.reset(np.arange(200))
    small.reset(np.array([17]))
    targets = (large.get_state() or {})["targets"]
    np.testing.assert_array_equal((small.get_state() or {})["targets"][0], targets[17])
    counts = np.bincount(targets.ravel(), minlength=30)
    assert len(counts) == 30
    assert abs(counts / targets.size - 1 / 30).max() < 0.006  # more than four standard deviations


def test_a_restored_state_continues_bit_for_bit_over_the_end_of_the_episode() -> None:
    environment, other = (
        make("coordsum/3x10-30", 3, record="reference"),
        make("coordsum/3x10-30", 3, record="reference"),
    )
    team = RandomTeam(environment.spec)
    environment.reset(SEEDS)
    team.reset(SEEDS)
    running = np.ones(3, dtype=bool)
    actions = [team.act(environment.reset(SEEDS), running) for _ in range(250)]
    for step in range(70):
        environment.step(actions[step])
    restored = other.set_state(environment.get_state() or {})
    for step in range(70, 250):
        one, two = environment.step(actions[step]), other.step(actions[step])
        np.testing.assert_array_equal(one.rewards, two.rewards)
        np.testing.assert_array_equal(one.observation.state, two.observation.state)
    assert restored.state.shape == (3, 3)


@pytest.mark.parametrize(("task", "solutions"), [("sum-to-10", 2), ("sum-to-10-full", 11)])
def test_sum_to_ten_pays_one_for_each_solution(task: str, solutions: int) -> None:
    count = {"sum-to-10": 2, "sum-to-10-full": 11}[task]
    pairs = np.stack(np.meshgrid(np.arange(count), np.arange(count)), axis=-1).reshape(-1, 2)
    environment = make(f"coordsum/{task}", len(pairs))
    observation = environment.reset(np.arange(len(pairs)))
    assert (observation.observations[0] == 1).all()
    result = environment.step((pairs,))
    numbers = pairs if count == 11 else 4 + 2 * pairs
    np.testing.assert_array_equal(result.rewards[:, 0], numbers.sum(axis=1) == 10)
    np.testing.assert_array_equal(result.rewards[:, 0], result.rewards[:, 1])
    np.testing.assert_array_equal(result.success, result.rewards[:, 0] == 1)
    assert result.terminated.all()
    assert result.final is not None
    assert int(result.rewards[:, 0].sum()) == solutions


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("3x10-31x", {}, "did you mean '3x10-30'"),
        ("0x10-30", {}, "unknown coordsum task '0x10-30'"),
        ("3x10-30", {"records": "own"}, "did you mean 'record'"),
        ("3x10-30", {"record": "both"}, "record: got 'both', expected 'own' or 'reference'"),
        ("sum-to-10", {"record": "own"}, "unknown argument of coordsum/sum-to-10 'record'"),
    ],
)
def test_wrong_names_and_arguments_are_named(task: str, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        make(f"coordsum/{task}", 1, **arguments)


def test_wrong_actions_and_states_change_nothing() -> None:
    environment = make("coordsum/3x10-30", 2)
    with pytest.raises(UsageError, match="call reset"):
        environment.step((np.zeros((2, 3), dtype=np.int64),))
    environment.reset(SEEDS[:2])
    before = environment.get_state() or {}
    with pytest.raises(UsageError, match="got 0 to 10, expected 0 to 9"):
        environment.step((np.array([[0, 1, 2], [0, 10, 2]]),))
    with pytest.raises(UsageError, match=r"got int64 \[1, 3\], expected int64 \[2, 3\]"):
        environment.step((np.zeros((1, 3), dtype=np.int64),))
    with pytest.raises(UsageError, match="'targets'"):
        environment.set_state({**before, "targets": before["targets"] + 30})
    for name, array in (environment.get_state() or {}).items():
        np.testing.assert_array_equal(array, before[name])
