"""A picture that can be drawn on with smooth edges, in NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Frame = npt.NDArray[np.uint8]
Colour = Sequence[float] | npt.NDArray[np.float64]
Point = Sequence[float] | npt.NDArray[np.float64]
_Indices = npt.NDArray[np.int64]
_Lengths = npt.NDArray[np.float64]


# Each digit as rows of three pixels.
_DIGITS = (
    "111 101 101 101 111",
    "010 110 010 010 111",
    "111 001 111 100 111",
    "111 001 111 001 111",
    "101 101 111 001 001",
    "111 100 111 001 111",
    "111 100 111 101 111",
    "111 001 010 010 010",
    "111 101 111 101 111",
    "111 101 111 001 111",
)


class Canvas:
    """Shapes over a picture; lengths are in pixels, x to the right and y downwards from the upper left corner.

    The pixel in row r and column c covers [c, c + 1) x [r, r + 1). Colours are red, green and blue in [0, 1]; an
    opacity below 1 lets what lies below shine through.

    Args:
        picture: [height, width, 3] uint8, which stays as it is.
    """

    def __init__(self, picture: Frame) -> None:
        self._pixels = picture.astype(np.float32)

    def disc(self, centre: Point, radius: float, colour: Colour, opacity: float = 1.0) -> None:
        """A filled circle."""
        rows, columns = self._around(centre, radius)
        self._paint(rows, columns, radius - _distance(rows, columns, centre), colour, opacity)

    def ring(self, centre: Point, radius: float, width: float, colour: Colour, opacity: float = 1.0) -> None:
        """A circle's line, as much of ``width`` outside of ``radius`` as inside."""
        rows, columns = self._around(centre, radius + width / 2)
        depth = width / 2 - np.abs(_distance(rows, columns, centre) - radius)
        self._paint(rows, columns, depth, colour, opacity)

    def square(self, centre: Point, side: float, colour: Colour, opacity: float = 1.0) -> None:
        """A filled square whose sides are the picture's."""
        rows, columns = self._around(centre, side / 2)
        away = np.maximum(np.abs(columns + 0.5 - centre[0]), np.abs(rows + 0.5 - centre[1]))
        self._paint(rows, columns, side / 2 - away, colour, opacity)

    def line(self, start: Point, end: Point, width: float, colour: Colour, opacity: float = 1.0) -> None:
        """A straight line with round ends."""
        origin, whole = np.asarray(start, float), np.subtract(end, start)
        length = max(float(np.hypot(*whole)), 1e-9)
        direction = whole / length
        rows, columns = self._along(origin, direction, length, width / 2)
        x, y = columns + 0.5 - origin[0], rows + 0.5 - origin[1]
        along = np.clip(x * direction[0] + y * direction[1], 0.0, length)
        distance = np.hypot(x - along * direction[0], y - along * direction[1])
        self._paint(rows, columns, width / 2 - distance, colour, opacity)

    def arrowhead(self, tip: Point, direction: Point, size: float, colour: Colour, opacity: float = 1.0) -> None:
        """A filled triangle as long and as wide as ``size``, which points along ``direction`` (of length 1)."""
        rows, columns = self._around(tip, 1.2 * size)
        x, y = columns + 0.5 - tip[0], rows + 0.5 - tip[1]
        behind = -(x * direction[0] + y * direction[1])
        aside = np.abs(y * direction[0] - x * direction[1])
        self._paint(rows, columns, np.minimum((behind - 2 * aside) / 5**0.5, size - behind), colour, opacity)

    def number(self, value: int, centre: Point, scale: int, colour: Colour, ground: Colour) -> None:
        """A whole number in digits of 3 by 5 points, each ``scale`` pixels large, on a ground of its own; the nearest
        place to ``centre`` where all of it is in the picture.
        """
        glyphs = [np.array([[bit == "1" for bit in row] for row in _DIGITS[int(d)].split()]) for d in str(value)]
        points = np.pad(np.concatenate([np.pad(glyph, ((0, 0), (0, 1))) for glyph in glyphs], axis=1), ((1, 1), (1, 0)))
        inked = np.kron(points, np.ones((scale, scale), bool))
        room = np.subtract(self._pixels.shape[:2], inked.shape)
        top, left = np.clip(np.round(np.flip(centre) - np.array(inked.shape) / 2), 0, np.maximum(room, 0)).astype(int)
        below = self._pixels[top : top + inked.shape[0], left : left + inked.shape[1]]
        inked = inked[: below.shape[0], : below.shape[1], None]
        below[:] = np.where(inked, np.multiply(colour, 255.0), np.multiply(ground, 255.0))

    def picture(self) -> Frame:
        """[height, width, 3] uint8, everything drawn so far."""
        return (self._pixels + 0.5).astype(np.uint8)

    def _paint(self, rows: _Indices, columns: _Indices, depth: _Lengths, colour: Colour, opacity: float) -> None:
        """Mix a colour into pixels by how deep their middles lie inside a shape."""
        cover = (np.clip(depth + 0.5, 0.0, 1.0) * opacity)[..., None]
        below = self._pixels[rows, columns]
        self._pixels[rows, columns] = below + (np.clip(colour, 0.0, 1.0) * 255.0 - below) * cover

    def _around(self, centre: Point, reach: float) -> tuple[_Indices, _Indices]:
        """Rows [R, 1] and columns [1, C] of the pixels that something around ``centre`` can touch."""
        height, width = self._pixels.shape[:2]
        return _touched(centre[1], reach, height)[:, None], _touched(centre[0], reach, width)[None, :]

    def _along(self, start: _Lengths, direction: _Lengths, length: float, reach: float) -> tuple[_Indices, _Indices]:
        """Rows and columns [P] of the pixels near a line: those that a grid of half their size along it falls into."""
        beyond = reach + 1.0
        along = np.arange(-beyond, length + beyond, 0.5)[:, None, None] * direction
        across = np.arange(-beyond, beyond + 0.5, 0.5)[:, None] * np.array([-direction[1], direction[0]])
        columns, rows = np.floor(start + along + across).reshape(-1, 2).astype(np.int64).T
        height, width = self._pixels.shape[:2]
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        return rows[inside], columns[inside]


def _touched(middle: float, reach: float, size: int) -> npt.NDArray[Any]:
    """The pixels of an axis that something as far as ``reach`` from ``middle`` can touch."""
    first, last = np.clip([np.floor(middle - reach) - 1, np.ceil(middle + reach) + 1], 0, size)
    return np.arange(int(first), int(last))


def _distance(rows: _Indices, columns: _Indices, centre: Point) -> _Lengths:
    return np.asarray(np.hypot(columns + 0.5 - centre[0], rows + 0.5 - centre[1]))
