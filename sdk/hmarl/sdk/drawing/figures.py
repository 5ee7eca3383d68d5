"""Plain pictures of two-dimensional worlds, drawn with NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from hmarl.sdk.drawing.camera import Camera


@dataclass(frozen=True)
class Figure:
    """One thing to draw; lengths in the world's units.

    Attributes:
        kind: "disc" (``size`` = (radius, radius)), "box" (``size`` = (length, width)) or "capsule", a box with round
            ends (``size`` = (length between the ends' centres, radius)).
        position: its centre (x, y).
        rotation_rad: counter-clockwise.
        size: see ``kind``.
        colour: red, green and blue in [0, 1].
        hollow: draw the outline only.
    """

    kind: Literal["disc", "box", "capsule"]
    position: tuple[float, float]
    rotation_rad: float
    size: tuple[float, float]
    colour: tuple[float, float, float]
    hollow: bool = False


def draw(figures: Sequence[Figure], camera: Camera) -> npt.NDArray[np.uint8]:
    """[height, width, 3] uint8, the figures as the camera shows them, later ones on top."""
    x, y = camera.axes()
    picture = np.full((camera.height, camera.width, 3), 255, np.uint8)
    pixel = 1.0 / camera.scale
    for figure in figures:
        columns = _near(x, figure.position[0], sum(figure.size) + pixel)
        rows = _near(y, figure.position[1], sum(figure.size) + pixel)
        depth = _depth(figure, x[None, columns] - figure.position[0], y[rows, None] - figure.position[1])
        # Whatever is thinner than a pixel still shows.
        inside = depth > -0.5 * pixel
        if figure.hollow:
            inside &= depth < 2.0 * pixel
        picture[rows, columns][inside] = np.clip(np.asarray(figure.colour) * 255.0, 0.0, 255.0).astype(np.uint8)
    return picture


def _near(axis: npt.NDArray[np.float64], centre: float, reach: float) -> slice:
    """The pixels of an axis that a figure can touch."""
    touched = np.flatnonzero(np.abs(axis - centre) <= reach)
    return slice(int(touched[0]), int(touched[-1]) + 1) if len(touched) else slice(0)


def _depth(figure: Figure, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """How far each point lies inside the figure's outline, negative outside."""
    if figure.kind == "disc":
        return np.asarray(figure.size[0] - np.hypot(x, y))
    cos, sin = np.cos(figure.rotation_rad), np.sin(figure.rotation_rad)
    along, across = np.abs(x * cos + y * sin), np.abs(y * cos - x * sin)
    if figure.kind == "capsule":
        return np.asarray(figure.size[1] - np.hypot(np.maximum(along - figure.size[0] / 2.0, 0.0), across))
    return np.asarray(np.minimum(figure.size[0] / 2.0 - along, figure.size[1] / 2.0 - across))
