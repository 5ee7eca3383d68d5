"""The physics of MPE for B worlds at once, in NumPy, equal to that of the ``mpe2`` package step for step.

Every number of all worlds lies in one matrix [rows, B] of float64: a row is one coordinate (say agent 1's x velocity),
a column is one world. Operations therefore run along contiguous memory whatever the number of agents, and every entry
of every observation is the difference of two rows (row 0 is always zero), so that all observations together are two
gathers and a subtraction.

Sums are formed in mpe2's order, one addition after the other, never by a reduction or a matrix product whose
order depends on the batch size: an episode is the same to the last bit in whatever batch it runs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Rows = npt.NDArray[np.intp]

TIME_STEP_S = 0.1
DAMPING = 0.25
CONTACT_FORCE = 100.0
CONTACT_MARGIN = 1e-3
SENSITIVITY = 5.0
# Displacement per discrete move (none, left, right, down, up), x and y: [2, 5].
MOVES: Floats = SENSITIVITY * np.array([[0.0, -1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, -1.0, 1.0]])
# Keeps 0/0 out of the contact force of two agents at the very same point.
TINY = 1e-300


class World:
    """Positions, velocities, words and goal colours of B worlds.

    Args:
        batch_size: B.
        agents: number of agents N.
        landmarks: number of landmarks L.
        movers: the agents that can move, M of them.
        channels: length C of a word; 0 where no agent speaks.
        speakers: number S of agents that speak (the first ones).
        goals: number of agents that are shown a goal's colour.

    Attributes:
        velocities: [2, N, B]; positions: [2, N + L, B], agents first; words: [C, S, B]; goal_colours: [3, goals, B].
            Views into ``rows``: writing to them is how the world changes.
        force: [2, M, B], the force that the movers' actions exert, set before ``advance``.
        movers: the agents that can move.
    """

    def __init__(
        self, batch_size: int, *, agents: int, landmarks: int, movers: slice, channels: int, speakers: int, goals: int
    ) -> None:
        self.movers = movers
        shapes = ((2, agents), (2, agents + landmarks), (channels, speakers), (3, goals))
        ends = 1 + np.cumsum([0, *(first * second for first, second in shapes)])
        self.rows: Floats = np.zeros((int(ends[-1]), batch_size))
        # Row numbers of each part, and the parts themselves as views.
        self.velocity_rows, self.position_rows, self.word_rows, self.goal_colour_rows = (
            np.arange(start, end).reshape(shape) for start, end, shape in zip(ends[:-1], ends[1:], shapes, strict=True)
        )
        self.velocities, self.positions, self.words, self.goal_colours = (
            self.rows[start:end].reshape(*shape, batch_size)
            for start, end, shape in zip(ends[:-1], ends[1:], shapes, strict=True)
        )
        self.agent_positions = self.positions[:, :agents]
        self.landmark_positions = self.positions[:, agents:]
        self._moving_positions = self.agent_positions[:, movers]
        self._moving_velocities = self.velocities[:, movers]
        self.force: Floats = np.zeros(self._moving_positions.shape)

    def advance(self) -> None:
        """One step of 0.1 s: move by the old velocity, then let damping and force change it (all masses are 1)."""
        self._moving_positions += self._moving_velocities * TIME_STEP_S
        self._moving_velocities *= 1 - DAMPING
        self.force *= TIME_STEP_S
        self._moving_velocities += self.force


class Contacts:
    """The contacts between all pairs of N equal agents, all of which move.

    Args:
        world: the world whose agents touch.
        agents: N.
        reach: distance below which two agents touch: the sum of their radii.

    Attributes:
        touching: [P, B] bool after ``measure``, for the P = N(N-1)/2 pairs.
        reach: as it was given.
    """

    def __init__(self, world: World, agents: int, reach: float) -> None:
        self._world, self.reach = world, reach
        first, second = np.triu_indices(agents, k=1)
        pairs, batch_size = len(first), world.rows.shape[1]
        self._first, self._second = first, second
        self._delta: Floats = np.zeros((2, pairs, batch_size))
        self._distance: Floats = np.zeros((pairs, batch_size))
        self.touching: npt.NDArray[np.bool_] = np.zeros((pairs, batch_size), dtype=bool)
        # [N, N-1]: the pairs of each agent, partners ascending. In `_directed` the same pair's force on its second
        # agent lies `pairs` further on.
        self._pairs_of: Rows = np.zeros((agents, agents - 1), dtype=np.intp)
        self._directed_of: Rows = np.zeros((agents, agents - 1), dtype=np.intp)
        for pair, (one, other) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
            self._pairs_of[one, other - 1] = self._pairs_of[other, one] = pair
            self._directed_of[one, other - 1], self._directed_of[other, one] = pair, pair + pairs
        self._directed: Floats = np.zeros((2, 2 * pairs, batch_size))

    def measure(self) -> None:
        """Take up the agents' present positions; needed after every change of them, before the other methods."""
        positions = self._world.agent_positions
        np.subtract(positions.take(self._first, axis=1), positions.take(self._second, axis=1), out=self._delta)
        np.sqrt(squared_length(self._delta), out=self._distance)
        np.less(self._distance, self.reach, out=self.touching)

    @property
    def pairs(self) -> tuple[Rows, Rows]:
        """[P] the first and the second agent of every pair."""
        return self._first, self._second

    @property
    def of_agents(self) -> tuple[Rows, Rows]:
        """[N, N-1] the pairs of each agent, partners ascending; and where the forces on it lie among those on the first
        agents of all pairs and, after them, those on the second ones.
        """
        return self._pairs_of, self._directed_of

    def counts(self) -> Integers:
        """How many others each agent touches: [N, B]."""
        counts: Integers = self.touching[self._pairs_of].sum(axis=1)
        return counts

    def push(self) -> None:
        """Add the contact forces to ``world.force``: a soft wall (softplus of the overlap) along the line of centres.

        Differs: at a distance of exactly zero mpe2 divides 0 by 0 and the world stays NaN; here such a pair
        exerts no force.
        """
        pairs = len(self._first)
        overlap = self.reach - self._distance
        overlap /= CONTACT_MARGIN
        np.logaddexp(0.0, overlap, out=overlap)
        overlap *= CONTACT_MARGIN
        force = self._directed[:, :pairs]
        np.multiply(self._delta, CONTACT_FORCE, out=force)
        force /= np.maximum(self._distance, TINY)
        force *= overlap
        np.negative(force, out=self._directed[:, pairs:])
        by_agent = self._directed.take(self._directed_of, axis=1)
        for partner in range(by_agent.shape[2]):
            self._world.force += by_agent[:, :, partner]


def squared_length(difference: Floats) -> Floats:
    """x² + y² of [2, ...] differences."""
    squares = np.square(difference)
    total: Floats = np.add(squares[0], squares[1], out=squares[0])
    return total


class Observer:
    """Forms all agents' observations at once.

    Args:
        world: what is observed.
        entries: for each agent in order, the (plus, minus) row numbers of its observation's entries, of equal length:
            an entry is row ``plus`` minus row ``minus``.
    """

    def __init__(self, world: World, entries: list[tuple[Rows, Rows]]) -> None:
        self._rows = world.rows
        self._plus: Rows = np.concatenate([plus for plus, _ in entries])
        self._minus: Rows = np.concatenate([minus for _, minus in entries])
        shape = (len(self._plus), world.rows.shape[1])
        self._plus_values, self._minus_values = np.zeros(shape), np.zeros(shape)

    @property
    def entries(self) -> tuple[Rows, Rows]:
        """The row numbers of all observations' entries, one after the other: plus, and minus."""
        return self._plus, self._minus

    def observe(self) -> npt.NDArray[np.float32]:
        """All observations, one after the other: a new array [B, sum of sizes]."""
        # mode="clip" only spares NumPy a copy; the row numbers are known to be right.
        np.take(self._rows, self._plus, axis=0, out=self._plus_values, mode="clip")
        np.take(self._rows, self._minus, axis=0, out=self._minus_values, mode="clip")
        self._plus_values -= self._minus_values
        return self._plus_values.T.astype(np.float32, order="C")


def entry(plus: Rows, minus: Rows | int = 0) -> tuple[Rows, Rows]:
    """Entries that are rows ``plus`` minus rows ``minus`` (broadcast; 0: nothing is subtracted), flattened."""
    first, second = np.broadcast_arrays(plus, minus)
    return first.ravel(), second.ravel()


def joined(parts: list[tuple[Rows, Rows]]) -> tuple[Rows, Rows]:
    """Several entries one after the other."""
    return np.concatenate([plus for plus, _ in parts]), np.concatenate([minus for _, minus in parts])
