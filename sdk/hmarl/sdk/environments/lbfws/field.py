"""The field of level-based foraging with survival: its cells, what lies beside them, and what is seen from them.

The field is framed by cells outside it, as many on each side as an agent sees far, and a cell is one number: its place
in the framed field, row by row from the north-west. A step is then the addition of a number, and no view leaves the
array. ``AWAY``, the frame's corner, is where everything is that is not on the field.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Pictures = npt.NDArray[np.float32]

NONE, NORTH, SOUTH, WEST, EAST, LOAD = range(6)
ACTIONS = 6
# Row and column of the cells to the north, south, west and east.
AROUND = ((-1, 0), (1, 0), (0, -1), (0, 1))
AWAY = 0
# Steps that an item of food keeps from every other one: then no agent is ever beside two, and none is walled in.
FOOD_SPACING = 3

LAYERS = 3
_FOOD, _AGENTS, _OUTSIDE = range(LAYERS)


class Field:
    """A square field.

    Args:
        size: cells along a side.
        sight: how many cells an agent sees in each direction, at least 1 and less than ``size``.

    Attributes:
        cells: [size²], all cells of the field, row by row.
        inner: [(size - 2)²], those that are not at its edge.
        places: [framed cells, 2], row and column of every cell, counted from the field's north-west.
        moves: [A], what each action adds to an agent's cell.
    """

    def __init__(self, size: int, sight: int) -> None:
        self.size, self.sight = size, sight
        self.width = size + 2 * sight
        axis = np.arange(size)
        self.cells = self.at(axis[:, None], axis).ravel()
        self.inner = self.at(axis[1:-1, None], axis[1:-1]).ravel()
        self.places: Integers = np.stack(np.divmod(np.arange(self.width**2), self.width), axis=-1) - sight
        self.moves: Integers = np.array([0, *(row * self.width + column for row, column in AROUND), 0])
        # Rows of the two tables: 0 for whatever is away, then the cells of the field.
        self._numbers: Integers = np.zeros(self.width**2, dtype=np.int64)
        self._numbers[self.cells] = 1 + np.arange(size**2)
        rows, columns = self.places.astype(np.int16).T
        apart = np.abs(rows[self.cells, None] - rows[self.inner]) + np.abs(
            columns[self.cells, None] - columns[self.inner]
        )
        # [1 + size², (size - 2)²]: where an item of food keeps others away, and where an agent does.
        self._crowds: Flags = np.pad(apart < FOOD_SPACING, ((1, 0), (0, 0)))
        self._covers: Flags = np.pad(apart == 0, ((1, 0), (0, 0)))

    def at(self, rows: Integers, columns: Integers) -> Integers:
        """The cells in these rows and columns."""
        return np.asarray((rows + self.sight) * self.width + columns + self.sight)

    def beside(self, agents: Integers, food: Integers) -> Flags:
        """Which of the agents [B, N] is next to which food [B, F], not diagonally: [B, N, F]."""
        apart = np.abs(agents[:, :, None] - food[:, None, :])
        return np.asarray((apart == 1) | (apart == self.width))

    def room(self, agents: Integers, food: Integers) -> Flags:
        """Which of the inner cells can take one more item, given agents [R, N] and food [R, F]: [R, (size - 2)²]."""
        crowded = self._crowds[self._numbers[food]].any(axis=1)
        return np.asarray(~(crowded | self._covers[self._numbers[agents]].any(axis=1)))


class Eyes:
    """What agents see around themselves.

    Args:
        field: where they are.
        batch_size: B, the largest number of fields that are looked at together.

    Attributes:
        side: cells along a side of a picture.
    """

    def __init__(self, field: Field, batch_size: int) -> None:
        self.side = 2 * field.sight + 1
        self._field = field
        self._layers = np.zeros((batch_size, LAYERS, field.width**2), dtype=np.float32)
        self._layers[:, _OUTSIDE] = 1
        self._layers[:, _OUTSIDE, field.cells] = 0
        squares = self._layers.reshape(batch_size, LAYERS, field.width, field.width)
        # [B, 3, size, size, side, side]: the picture around every cell of the field.
        self._views = np.lib.stride_tricks.sliding_window_view(squares, (self.side, self.side), axis=(2, 3))
        self._rows = np.arange(batch_size)[:, None]
        middle = self.side**2 // 2
        self._around = np.array([middle + row * self.side + column for row, column in AROUND])

    def look(self, agents: Integers, food: Integers, shades: Pictures) -> tuple[Pictures, Pictures]:
        """What agents [R, N] see of each other and of food [R, F], drawn in its shades [F], in R ≤ B fields.

        Returns:
            Every agent's surroundings without itself, [R, N, 3, side, side]: food, agents, and 1 for cells outside the
            field (of agents that are away it means nothing); and all the food of each field, [R, size²].
        """
        layers, rows = self._layers[: len(agents)], self._rows[: len(agents)]
        layers[:, :_OUTSIDE] = 0
        layers[rows, _FOOD, food] = shades
        layers[rows, _AGENTS, agents] = 1
        layers[:, :_OUTSIDE, AWAY] = 0
        row, column = self._field.places[agents].transpose(2, 0, 1)
        pictures: Pictures = self._views[rows, :, row, column]
        pictures[:, :, _AGENTS, self._field.sight, self._field.sight] = 0
        return pictures, layers[:, _FOOD, self._field.cells]

    def legal(self, pictures: Pictures) -> Flags:
        """The legal actions [R, N, A] of agents that see these pictures.

        Doing nothing always is, a step onto a free cell of the field, and loading beside food.
        """
        around = pictures.reshape(*pictures.shape[:3], -1).take(self._around, axis=3) != 0
        legal = np.ones((*pictures.shape[:2], ACTIONS), dtype=bool)
        np.logical_not(around.any(axis=2), out=legal[:, :, NORTH:LOAD])
        np.any(around[:, :, _FOOD], axis=2, out=legal[:, :, LOAD])
        return legal
