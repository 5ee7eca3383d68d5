"""The estimators of exploration against closed forms and by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from hmarl.sdk.environment import StepResult
from hmarl.sdk.environments import make
from hmarl.trainer.runs.exploration import (
    StateCoordinates,
    nearest_neighbour_distance,
    neighbour_distances,
    state_entropy,
    visited_states,
)
from training_runs import new_algorithm, new_hcpo

pytestmark = pytest.mark.usefixtures("single_thread")


def normal(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """[count, size] standard normal."""
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("neighbours", [1, 3])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_entropy_of_a_gaussian(size: int, neighbours: int) -> None:
    """D/2 · log 2πe + log |det A|, for a sheared Gaussian."""
    shear = torch.eye(size, dtype=torch.float64) * 0.5 + torch.ones(size, size, dtype=torch.float64).triu(1)
    expected = 0.5 * size * math.log(2 * math.pi * math.e) + size * math.log(0.5)
    assert state_entropy(normal(2000, size) @ shear, neighbours) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize(("widths", "expected"), [((1.0,), 0.0), ((2.0, 4.0), math.log(8)), ((0.5, 0.5), -math.log(4))])
def test_entropy_of_a_uniform_distribution_is_the_log_of_its_volume(widths: tuple[float, ...], expected: float) -> None:
    points = torch.rand(2000, len(widths), generator=torch.Generator().manual_seed(1)) * torch.tensor(widths)
    assert state_entropy(points) == pytest.approx(expected, abs=0.08)


def test_entropy_hand_computed() -> None:
    """0, 1 and 3 on a line, k = 1: distances 1, 1, 2; ψ(3) − ψ(1) = 1.5, V_1 = 2, mean log distance log(2)/3."""
    points = torch.tensor([[0.0], [1.0], [3.0]])
    assert state_entropy(points, 1) == pytest.approx(1.5 + math.log(2) + math.log(2) / 3)
    assert nearest_neighbour_distance(points) == pytest.approx(4 / 3)
    distances = neighbour_distances(points, 2)
    assert distances.tolist() == [[1.0, 3.0], [1.0, 2.0], [2.0, 3.0]]
    assert distances.dtype == torch.float64


def test_nearest_neighbours_on_a_grid() -> None:
    """Spacing 0.25, and more points than one block of rows; inside it two steps along an axis come third."""
    axis = torch.arange(30.0) * 0.25
    grid = torch.cartesian_prod(axis, axis)
    assert nearest_neighbour_distance(grid) == pytest.approx(0.25)
    assert neighbour_distances(grid, 5)[31].tolist() == pytest.approx([0.25] * 4 + [0.25 * math.sqrt(2)])
    assert neighbour_distances(grid, 3)[0].tolist() == pytest.approx([0.25, 0.25, 0.25 * math.sqrt(2)])


def test_far_from_the_origin_near_points_keep_their_distance() -> None:
    assert nearest_neighbour_distance(torch.tensor([[1e6, 0.0], [1e6, 1e-3]])) == pytest.approx(1e-3)


def test_invariances() -> None:
    """Moved and turned nothing changes; scaled by c the entropy gains D log c, the distance a factor c."""
    points = normal(300, 3)
    turn = torch.linalg.qr(normal(3, 3, seed=1)).Q
    entropy, distance = state_entropy(points), nearest_neighbour_distance(points)
    moved = (points @ turn + 7.0)[torch.randperm(300, generator=torch.Generator().manual_seed(2))]
    assert state_entropy(moved) == pytest.approx(entropy)
    assert nearest_neighbour_distance(moved) == pytest.approx(distance)
    assert state_entropy(5.0 * points) == pytest.approx(entropy + 3 * math.log(5))
    assert nearest_neighbour_distance(5.0 * points) == pytest.approx(5 * distance)


def test_points_of_one_episode_are_no_neighbours() -> None:
    """0, 1 | 3, 7 on a line, k = 1: distances 3, 2, 2, 6; ψ(3) − ψ(1) = 1.5."""
    points, episodes = torch.tensor([[0.0], [1.0], [3.0], [7.0]]), torch.tensor([5, 5, 2, 2])
    assert neighbour_distances(points, 2, episodes).tolist() == [[3.0, 7.0], [2.0, 6.0], [2.0, 3.0], [6.0, 7.0]]
    assert nearest_neighbour_distance(points, episodes) == pytest.approx(13 / 4)
    assert state_entropy(points, 1, episodes) == pytest.approx(1.5 + math.log(2) + math.log(3 * 2 * 2 * 6) / 4)
    with pytest.raises(ValueError, match="got one with 2 others"):
        neighbour_distances(points, 3, episodes)


def test_entropy_of_slow_episodes_is_found_when_they_are_told_apart() -> None:
    """Each of 400 episodes stays near one place; the places are Gaussian. Blind to that it is far too low."""
    places = normal(400, 2).repeat_interleave(5, dim=0)
    points, episodes = places + 1e-3 * normal(2000, 2, seed=1), torch.arange(400).repeat_interleave(5)
    expected = math.log(2 * math.pi * math.e)
    assert state_entropy(points, episodes=episodes) == pytest.approx(expected, abs=0.3)
    assert state_entropy(points) < expected - 5


def test_equal_points_have_no_density() -> None:
    points = torch.cat([torch.zeros(4, 2), normal(20, 2).float()])
    assert state_entropy(points) == -math.inf
    assert math.isfinite(state_entropy(points, neighbours=4))


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        (torch.zeros(3, 2), "got one with 2 others (of other episodes), expected 3 or more"),
        (torch.tensor([[0.0], [1.0], [2.0], [math.nan]]), "not finite"),
    ],
)
def test_points_that_nothing_can_be_said_of_are_refused(points: torch.Tensor, expected: str) -> None:
    with pytest.raises(ValueError, match="points") as caught:
        state_entropy(points)
    assert expected in str(caught.value)


def test_coordinates_drop_what_repeats_and_keep_the_standardised_distances() -> None:
    """Two free columns of very different scale, a constant, and a linear mixture: two dimensions."""
    free = normal(500, 2).float() * torch.tensor([1e4, 0.01])
    states = torch.cat([free, torch.full((500, 1), 9.0), free @ torch.tensor([[1e-4], [100.0]])], dim=1)
    coordinates = StateCoordinates.of(states)
    assert coordinates.size == 2
    varied = states[:, [0, 1, 3]].double()
    standardised = (varied - varied.mean(0)) / varied.std(0)
    torch.testing.assert_close(
        torch.cdist(coordinates(states), coordinates(states)),
        torch.cdist(standardised, standardised),
        rtol=0,
        atol=1e-4,
    )
    with pytest.raises(ValueError, match="equal"):
        StateCoordinates.of(torch.ones(5, 3))


def test_visited_states_are_those_of_seeded_episodes_with_sampled_actions() -> None:
    """Equal seeds give equal states; other noise gives others that start alike."""
    algorithm, _, _ = new_algorithm("hatrpo", "mpe/simple_spread", 2, 5)
    environment = make("mpe/simple_spread", 4)
    seeds = np.arange(4, dtype=np.int64)
    states, returns = visited_states(algorithm, environment, seeds, 25)
    again, _ = visited_states(algorithm, environment, seeds, 25)
    other, _ = visited_states(algorithm, environment, seeds, 25, noise_seed=1)
    assert states.shape == (25, 4, environment.spec.state_size)
    assert returns.shape == (4,)
    torch.testing.assert_close(states, again, rtol=0, atol=0)
    torch.testing.assert_close(states[0], other[0], rtol=0, atol=0)
    assert not torch.equal(states[1:], other[1:])


def test_returns_are_those_of_the_first_episodes() -> None:
    """Twelve steps of episodes of five: of the two or more in each environment, the one whose seed was given."""
    algorithm, _, collector = new_algorithm("happo", "toy_environments:masked_discrete", 6, 12)
    environment, rewards = collector.environment, []
    step = environment.step

    def watched(actions: tuple[Any, ...]) -> StepResult:
        result = step(actions)
        rewards.append(result.rewards.sum(axis=1))
        return result

    environment.step = watched  # type: ignore[method-assign]
    _, returns = visited_states(algorithm, environment, np.arange(6, dtype=np.int64), 12)
    np.testing.assert_allclose(returns, np.sum(rewards[:5], axis=0), rtol=1e-6)
    assert np.sum(rewards[5:]) > 0.0


def test_hcpo_visits_under_its_central_conductor() -> None:
    """A conductor that cannot but choose instruction 3 is obeyed."""
    algorithm, _, collector = new_hcpo()
    algorithm.conductor.policy.theta[0, -4:] = torch.tensor([-99.0, -99.0, -99.0, 99.0])  # the last layer's bias
    visited_states(algorithm, collector.environment, np.arange(6, dtype=np.int64), 12)
    assert algorithm.acting_state()["instruction"].tolist() == [3] * 6
