"""Pictures of SMAX battles, drawn with NumPy alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.sdk.drawing.camera import Camera
from hmarl.sdk.drawing.figures import Figure
from hmarl.sdk.drawing.figures import draw as draw_figures
from hmarl.sdk.environments.mpe.drawing import agent_colour

_Colour = tuple[float, float, float]

_ALLY, _ENEMY = 0, 1
_WALL = (0.25, 0.25, 0.25)
_FLOOR = (0.95, 0.95, 0.93)
_BAR_LENGTH, _BAR_WIDTH = 1.2, 0.22
_BAR_EMPTY, _BAR_FULL = (0.75, 0.75, 0.75), (0.1, 0.6, 0.2)
_SIZE_PIXELS = 400


def draw(rules: Any, units: Any) -> npt.NDArray[np.uint8]:
    """The whole map as a picture [400, 400, 3].

    Allies are blue, enemies orange, in the size of their kind; melee units have a white core. Above each that stands is
    a bar for its health, and from each that attacks within its range a line to its target.

    Args:
        rules: JaxMARL's ``SMAX``.
        units: its ``State`` of one battle, of NumPy arrays.
    """
    width, height = float(rules.map_width), float(rules.map_height)
    floor = Figure("box", (width / 2, height / 2), 0.0, (width, height), _FLOOR)
    wall = Figure("box", (width / 2, height / 2), 0.0, (width + 0.4, height + 0.4), _WALL)
    standing = np.flatnonzero(units.unit_alive).tolist()
    figures = [wall, floor]
    for part in (_shot, _body, _bar):
        for unit in standing:
            figures += part(rules, units, unit)
    return draw_figures(figures, _camera(rules))


def agent_pixels(rules: Any, units: Any) -> npt.NDArray[np.float64]:
    """[N, 3] x, y and radius of the allies in the picture; NaN for those who have fallen."""
    allies = slice(rules.num_allies)
    radii = np.asarray(rules.unit_type_radiuses)[units.unit_types[allies]]
    return _camera(rules).discs(units.unit_positions[allies], radii, units.unit_alive[allies])


def _camera(rules: Any) -> Camera:
    width, height = float(rules.map_width), float(rules.map_height)
    return Camera.square((width / 2, height / 2), max(width, height) / 2 + 0.5, _SIZE_PIXELS)


def _colour(rules: Any, unit: int) -> _Colour:
    red, green, blue = agent_colour(_ALLY if unit < rules.num_allies else _ENEMY).tolist()
    return red, green, blue


def _shot(rules: Any, units: Any, unit: int) -> Iterator[Figure]:
    number = int(units.prev_attack_actions[unit]) - rules.num_movement_actions
    if number < 0:
        return
    # The enemies number their targets from the last ally to the first.
    target = rules.num_allies + number if unit < rules.num_allies else rules.num_allies - 1 - number
    start, end = units.unit_positions[unit], units.unit_positions[target]
    x, y = (end - start).tolist()
    if np.hypot(x, y) >= float(rules.unit_type_attack_ranges[units.unit_types[unit]]):
        return
    middle = ((start + end) / 2).tolist()
    yield Figure("box", (middle[0], middle[1]), float(np.arctan2(y, x)), (float(np.hypot(x, y)), 0.05), _WALL)


def _body(rules: Any, units: Any, unit: int) -> Iterator[Figure]:
    x, y = units.unit_positions[unit].tolist()
    radius = float(rules.unit_type_radiuses[units.unit_types[unit]])
    yield Figure("disc", (x, y), 0.0, (radius, radius), _colour(rules, unit))
    if float(rules.unit_type_attack_ranges[units.unit_types[unit]]) <= 2.0:
        yield Figure("disc", (x, y), 0.0, (radius / 2, radius / 2), (1.0, 1.0, 1.0))


def _bar(rules: Any, units: Any, unit: int) -> Iterator[Figure]:
    x, y = units.unit_positions[unit].tolist()
    share = float(units.unit_health[unit] / rules.unit_type_health[units.unit_types[unit]])
    above = y + float(rules.unit_type_radiuses[units.unit_types[unit]]) + 0.3
    yield Figure("box", (x, above), 0.0, (_BAR_LENGTH, _BAR_WIDTH), _BAR_EMPTY)
    filled = _BAR_LENGTH * share
    yield Figure("box", (x - (_BAR_LENGTH - filled) / 2, above), 0.0, (filled, _BAR_WIDTH), _BAR_FULL)
