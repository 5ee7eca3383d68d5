"""How widely a team explores: entropy and nearest-neighbour distance of the states that it visits.

Source: Liu et al. 2025 (HCPO), Figs. 6 and 11, which give an entropy and the average nearest-neighbour distance of
visited states. Differs: the paper draws the states on a plane by t-SNE, which keeps neither distances nor densities,
and says neither where the distances are taken nor how the entropy is computed; here both are of the states themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hmarl.sdk.environment import VectorEnvironment
from hmarl.trainer.contract.algorithm import Algorithm
from hmarl.trainer.experience.rollout import Collector, Rollout

_ROWS_AT_ONCE = 512
# What rounding to float32 leaves of a constant, relative to it; and far more than it leaves of a variance that is zero.
_CONSTANT_DEVIATION, _CONSTANT_VARIANCE = 1e-7, 1e-9


def neighbour_distances(points: Tensor, neighbours: int, episodes: Tensor | None = None) -> Tensor:
    """Euclidean distances from every point to its nearest other points.

    Args:
        points: [M, D] finite.
        neighbours: k, how many.
        episodes: [M] int64, which episode each point is of. Points of one episode do not count as neighbours: they lie
            side by side because they follow one another, however widely the episodes are spread (Theiler 1986). None
            takes all points as independent.

    Returns:
        [M, k] float64, ascending; 0 where another point is equal.

    Raises:
        ValueError: a point has fewer than k others, or some are not finite.
    """
    if (fewest := int(_others(points, episodes).min())) < neighbours:
        raise ValueError(f"points: got one with {fewest} others (of other episodes), expected {neighbours} or more")
    if not bool(points.isfinite().all()):
        raise ValueError("points: got values that are not finite")
    points = points.double()
    episodes = torch.arange(len(points)) if episodes is None else episodes
    nearest = []
    for rows, own in zip(points.split(_ROWS_AT_ONCE), episodes.split(_ROWS_AT_ONCE), strict=True):
        # By matrix products it would be faster, and near points would lose their distance to rounding.
        distances = torch.cdist(rows, points, compute_mode="donot_use_mm_for_euclid_dist")
        distances.masked_fill_(own.unsqueeze(1) == episodes, math.inf)
        nearest.append(distances.topk(neighbours, largest=False).values)
    return torch.cat(nearest)


def _others(points: Tensor, episodes: Tensor | None) -> Tensor:
    """[M] how many points may be a point's neighbours."""
    count = len(points)
    if episodes is None:
        return torch.full((count,), count - 1)
    _, episode, sizes = episodes.unique(return_inverse=True, return_counts=True)
    return count - sizes[episode]


def state_entropy(points: Tensor, neighbours: int = 3, episodes: Tensor | None = None) -> float:
    """Differential entropy of the distribution that the points were drawn from, by Kozachenko and Leonenko's estimator.

    H = 1/M · Σ [ψ(n_i + 1) − ψ(k) + log V_D + D · log ε_i], with ε_i the distance of point i to the k-th nearest of its
    n_i others (M − 1 where no episodes are told apart), and V_D the volume of the unit ball. It is consistent where
    there is a density; in many dimensions its bias falls slowly with M, so that only estimates of equal M and D should
    be compared.

    Args:
        points: [M, D].
        neighbours: k; more lower the variance and raise the bias.
        episodes: see ``neighbour_distances``.

    Returns:
        Nats; negative values are possible, and −inf where more than k points are equal (there is no density).

    Raises:
        ValueError: see ``neighbour_distances``.

    Source: Kozachenko and Leonenko 1987 (k = 1); Singh et al. 2003 (any k).
    """
    distances = neighbour_distances(points, neighbours, episodes)[:, -1]
    size = points.shape[1]
    volume = 0.5 * size * math.log(math.pi) - math.lgamma(0.5 * size + 1.0)
    counts = torch.digamma(_others(points, episodes).double() + 1.0) - torch.digamma(torch.tensor(float(neighbours)))
    return float((counts + volume + size * distances.log()).mean())


def nearest_neighbour_distance(points: Tensor, episodes: Tensor | None = None) -> float:
    """Mean distance from a point to the nearest other one, in the points' unit.

    It falls with the number of points (as M^(−1/D) for a density), so that only equal numbers can be compared.

    Args:
        points: [M, D].
        episodes: see ``neighbour_distances``.

    Raises:
        ValueError: see ``neighbour_distances``.

    Source: HCPO, Fig. 11 (Avg. Dist.).
    """
    return float(neighbour_distances(points, 1, episodes).mean())


@dataclass(frozen=True)
class StateCoordinates:
    """Coordinates in which the states of several runs are compared: standardised, without redundant directions.

    States often repeat themselves (joined observations hold the same relative positions more than once) or hold
    constants. Such states fill a subspace of their space, and have no density in it. The principal axes of the
    standardised states span that subspace; turning into them keeps all distances.

    Attributes:
        mean: [D] float64.
        axes: [D, d] float64, from centred states to coordinates; d ≤ D.
    """

    mean: Tensor
    axes: Tensor

    @classmethod
    def of(cls, states: Tensor) -> StateCoordinates:
        """The coordinates that fit all states [M, D] to be compared, pooled.

        Raises:
            ValueError: all states are equal.
        """
        states = states.double()
        deviation, mean = torch.std_mean(states, dim=0)
        varied = deviation > _CONSTANT_DEVIATION * mean.abs()
        if not bool(varied.any()):
            raise ValueError(f"states: got {len(states)} equal ones, expected some that differ")
        scale = torch.where(varied, 1.0 / deviation, 0.0)
        variances, directions = torch.linalg.eigh(((states - mean) * scale).T.cov())
        kept = variances > _CONSTANT_VARIANCE * variances.max()
        return cls(mean, scale.unsqueeze(-1) * directions[:, kept])

    @property
    def size(self) -> int:
        """The dimension d of the states' subspace."""
        return self.axes.shape[1]

    def __call__(self, states: Tensor) -> Tensor:
        """Coordinates [M, d] float64 of states [M, D]."""
        return (states.double() - self.mean) @ self.axes


def visited_states(
    algorithm: Algorithm, environment: VectorEnvironment, seeds: npt.NDArray[np.int64], steps: int, noise_seed: int = 0
) -> tuple[Tensor, Tensor]:
    """The states that a team visits when it acts as in training: sampled actions, HCPO's central conductor.

    Args:
        algorithm: whose policies; its noise generator is seeded anew.
        environment: of B copies; episodes that end are followed by new ones.
        seeds: [B] int64 of the first episodes.
        steps: T.
        noise_seed: of the actions and instructions.

    Returns:
        [T, B, state_size] float32; and [B] float32 the returns of the first episodes, whose seeds are given, as far as
        they were played. Of those that follow, only short ones would end within T steps.
    """
    algorithm.noise_generator.manual_seed(noise_seed)
    rollout = Rollout(environment.spec, steps, environment.batch_size, algorithm.device)
    Collector(environment, rollout, seeds).collect(algorithm)
    ended_before = rollout.ended.cumsum(0) - rollout.ended.int()
    returns = (rollout.team_rewards * (ended_before == 0)).sum(0)
    return rollout.states[:-1].cpu(), returns.cpu()
