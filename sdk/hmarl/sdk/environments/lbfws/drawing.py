"""Pictures of level-based foraging with survival, drawn with NumPy alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from hmarl.sdk.drawing.camera import Camera
from hmarl.sdk.drawing.figures import Figure
from hmarl.sdk.drawing.figures import draw as draw_figures
from hmarl.sdk.environments.lbfws.field import AWAY
from hmarl.sdk.environments.lbfws.rules import Foraging
from hmarl.sdk.environments.mpe.drawing import agent_colour

_Colour = tuple[float, float, float]
_Place = tuple[float, float]

SIZE_PIXELS = 400

_GRASS = ((0.85, 0.91, 0.77), (0.88, 0.93, 0.81))
_EDGE = (0.45, 0.55, 0.36)
_LEAF, _BERRY, _SHINE = (0.55, 0.70, 0.42), (0.78, 0.12, 0.22), (0.97, 0.75, 0.78)
_WHITE, _DARK = (1.0, 1.0, 1.0), (0.15, 0.15, 0.15)
_GONE = (0.80, 0.80, 0.80)
_BAR_EMPTY, _BAR_FULL, _BAR_LOW = (0.70, 0.70, 0.70), (0.13, 0.60, 0.25), (0.85, 0.25, 0.10)
_LOW_ENERGY = 0.25
_FACE_RADIUS = 0.32


def draw(game: Foraging, index: int) -> npt.NDArray[np.uint8]:
    """Field ``index`` as a picture [400, 400, 3], north at the top.

    Food of level k is a bush with k berries. Agents are discs in colours with a bar for their energy, red when it runs
    low. Below the field all agents stand once more in their order; those that are out are crossed out. The line above
    the field grows with the episode.
    """
    size, margin = game.rules.size, _margin(game)
    figures = [*_ground(size), *_clock(size, margin, int(game.steps[index]) / game.rules.horizon)]
    for level, cell in zip(game.rules.levels, game.food[index].tolist(), strict=True):
        if cell != AWAY:
            figures += _bush(_middle(game, cell), level)
    energies = (game.energies[index] / game.rules.endurance).tolist()
    for agent, cell in enumerate(game.agents[index].tolist()):
        if cell != AWAY:
            figures += _agent(_middle(game, cell), 1.0, _colour(agent), energies[agent])
    figures += _roster(size, margin, energies)
    return _halved(draw_figures(figures, _camera(game, 2 * SIZE_PIXELS)))


def agent_pixels(game: Foraging, index: int) -> npt.NDArray[np.float64]:
    """[N, 3] x, y and radius of the agents on field ``index`` in its picture; NaN for those that are out."""
    cells = game.agents[index].tolist()
    places = [(np.nan, np.nan) if cell == AWAY else _face(_middle(game, cell), 1.0) for cell in cells]
    return _camera(game, SIZE_PIXELS).discs(places, _FACE_RADIUS, [cell != AWAY for cell in cells])


def _margin(game: Foraging) -> float:
    """Around the field, in cells."""
    return 0.13 * game.rules.size


def _camera(game: Foraging, size_pixels: int) -> Camera:
    middle = game.rules.size / 2
    return Camera.square((middle, middle), middle + _margin(game), size_pixels)


def _halved(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Every 2 by 2 pixels as their mean, which smooths the edges of what is drawn."""
    rows = picture[0::2].astype(np.uint16) + picture[1::2]
    return ((rows[:, 0::2] + rows[:, 1::2] + 2) // 4).astype(np.uint8)


def _middle(game: Foraging, cell: int) -> _Place:
    """The middle of a cell, x to the east and y to the north."""
    row, column = game.field.places[cell].tolist()
    return column + 0.5, game.rules.size - row - 0.5


def _colour(agent: int) -> _Colour:
    red, green, blue = agent_colour(agent).tolist()
    return red, green, blue


def _disc(place: _Place, radius: float, colour: _Colour) -> Figure:
    return Figure("disc", place, 0.0, (radius, radius), colour)


def _face(place: _Place, scale: float) -> _Place:
    """The middle of the face of an agent whose cell's middle is ``place``: above its bar."""
    return place[0], place[1] + 0.08 * scale


def _ground(size: int) -> Iterator[Figure]:
    """The field as a chequerboard."""
    yield Figure("box", (size / 2, size / 2), 0.0, (size + 0.16, size + 0.16), _EDGE)
    yield Figure("box", (size / 2, size / 2), 0.0, (size, size), _GRASS[0])
    for row in range(size):
        for column in range(row % 2, size, 2):
            yield Figure("box", (column + 0.5, row + 0.5), 0.0, (1.0, 1.0), _GRASS[1])


def _clock(size: int, margin: float, passed: float) -> Iterator[Figure]:
    """A line as long as the field, dark as far as the episode has gone."""
    height, width = size + margin / 2, 0.012 * size
    yield Figure("box", (size / 2, height), 0.0, (size, width), _GONE)
    yield Figure("box", (size * passed / 2, height), 0.0, (size * passed, width), _DARK)


def _bush(place: _Place, level: int) -> Iterator[Figure]:
    x, y = place
    yield _disc(place, 0.30 + 0.04 * level, _LEAF)
    distance = 0.0 if level == 1 else 0.17
    for angle in np.pi / 2 + 2 * np.pi * np.arange(level) / level:
        berry = (x + distance * float(np.cos(angle)), y + distance * float(np.sin(angle)))
        yield _disc(berry, 0.125, _BERRY)
        yield _disc((berry[0] - 0.04, berry[1] + 0.04), 0.035, _SHINE)


def _agent(place: _Place, scale: float, colour: _Colour, energy: float) -> Iterator[Figure]:
    """A disc with two eyes above a bar for the energy, which is in [0, 1]."""
    x, y = place
    face = _face(place, scale)
    yield _disc(face, (_FACE_RADIUS + 0.04) * scale, _WHITE)
    yield _disc(face, _FACE_RADIUS * scale, colour)
    for side in (-0.12, 0.12):
        yield _disc((x + side * scale, y + 0.14 * scale), 0.075 * scale, _WHITE)
        yield _disc((x + side * scale, y + 0.13 * scale), 0.035 * scale, _DARK)
    length, filled, low = 0.8 * scale, 0.8 * scale * energy, y - 0.38 * scale
    yield Figure("box", (x, low), 0.0, (length, 0.13 * scale), _BAR_EMPTY)
    full = _BAR_LOW if energy < _LOW_ENERGY else _BAR_FULL
    yield Figure("box", (x - (length - filled) / 2, low), 0.0, (filled, 0.13 * scale), full)


def _roster(size: int, margin: float, energies: list[float]) -> Iterator[Figure]:
    """All agents in a row below the field."""
    scale = min(0.75 * margin, size / len(energies))
    for agent, energy in enumerate(energies):
        place = (size * (agent + 0.5) / len(energies), -margin / 2)
        if energy > 0:
            yield from _agent(place, scale, _colour(agent), energy)
            continue
        face = _face(place, scale)
        yield _disc(face, _FACE_RADIUS * scale, _GONE)
        for angle in (np.pi / 4, -np.pi / 4):
            yield Figure("box", face, angle, (0.8 * scale, 0.08 * scale), _colour(agent))
