"""Pictures of MPE worlds, drawn with NumPy alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hmarl.sdk.environments._mpe_scenarios import Scenario

SIZE_PIXELS = 320
_Colour = npt.NDArray[np.float64]

_BACKGROUND = (0.97, 0.97, 0.96)
_WHITE = np.ones(3)
_GREY = np.array([0.62, 0.62, 0.62])
_FAINT = np.array([0.88, 0.88, 0.87])
# Distinct for colour-blind eyes too (Okabe and Ito); used again from the start beyond eight agents.
_AGENT_COLOURS = np.array(
    [
        (0.00, 0.45, 0.70),
        (0.90, 0.62, 0.00),
        (0.00, 0.62, 0.45),
        (0.80, 0.40, 0.00),
        (0.80, 0.47, 0.65),
        (0.34, 0.71, 0.91),
        (0.55, 0.45, 0.20),
        (0.35, 0.25, 0.65),
    ]
)
# Half the side of the world that is shown unless something lies farther out.
_NORMAL_RANGE = 1.3


def draw(scenario: Scenario, index: int) -> npt.NDArray[np.uint8]:
    """World ``index`` as a picture [320, 320, 3].

    Landmarks are grey (in the speaking tasks of their own colour), agents are coloured discs; an agent that knows a
    goal carries a dot in that landmark's colour. The words of speaking agents stand at the top, one row of dots an
    agent: the stronger a dot's colour, the more of that word is said.

    Raises:
        IndexError: there is no world ``index``.
    """
    world, agent_count = scenario.world, len(scenario.agents)
    positions = world.positions[:, :, index].T
    radii = np.array(scenario.radii)
    shown = max(_NORMAL_RANGE, 1.03 * float((np.abs(positions).max(axis=1) + radii).max()))
    canvas = _Canvas(shown)
    speaking = bool(len(scenario.goals))
    for landmark, colour in enumerate(scenario.landmark_colours):
        entity = agent_count + landmark
        canvas.disc(positions[entity], radii[entity], colour * 1.2 if speaking else _GREY)
    for agent in range(agent_count):
        canvas.disc(positions[agent], radii[agent], agent_colour(agent), opacity=0.85)
    for agent, goal in enumerate(scenario.goals[:, index]):
        canvas.disc(positions[agent], 0.65 * radii[agent], _WHITE)
        canvas.disc(positions[agent], 0.45 * radii[agent], scenario.landmark_colours[goal] * 1.2)
    for speaker in range(world.words.shape[1]):
        _draw_word(canvas, shown, speaker, world.words[:, speaker, index])
    return canvas.picture()


def _draw_word(canvas: _Canvas, shown: float, speaker: int, word: npt.NDArray[np.float64]) -> None:
    """A larger dot in the agent's colour, then one dot a channel."""
    spacing, height = 0.075 * shown, (0.93 - 0.085 * speaker) * shown
    colour = agent_colour(speaker)
    canvas.disc(np.array([-0.92 * shown, height]), 0.032 * shown, colour)
    for channel, strength in enumerate(word):
        place = np.array([-0.92 * shown + (channel + 1.3) * spacing, height])
        canvas.disc(place, 0.024 * shown, _FAINT + (colour - _FAINT) * float(np.clip(strength, 0.0, 1.0)))


def agent_colour(agent: int) -> _Colour:
    """Red, green and blue in [0, 1], another one for each of the first eight agents."""
    colour: _Colour = _AGENT_COLOURS[agent % len(_AGENT_COLOURS)]
    return colour


class _Canvas:
    """A square picture of the world's coordinates from -shown to +shown, y upwards."""

    def __init__(self, shown: float) -> None:
        self._pixels = np.tile(np.array(_BACKGROUND), (SIZE_PIXELS, SIZE_PIXELS, 1))
        axis = ((np.arange(SIZE_PIXELS) + 0.5) / SIZE_PIXELS * 2 - 1) * shown
        self._x, self._y = axis, -axis
        self._pixel = 2 * shown / SIZE_PIXELS

    def disc(self, centre: npt.NDArray[np.float64], radius: float, colour: _Colour, opacity: float = 1.0) -> None:
        """A disc with a rim one pixel wide that fades into what lies below."""
        rows, columns = self._near(self._y, centre[1], radius), self._near(self._x, centre[0], radius)
        distance = np.hypot(self._x[None, columns] - centre[0], self._y[rows, None] - centre[1])
        cover = np.clip((radius - distance) / self._pixel + 0.5, 0.0, 1.0)[:, :, None] * opacity
        below = self._pixels[rows, columns]
        below += (colour - below) * cover

    def _near(self, axis: npt.NDArray[np.float64], centre: float, radius: float) -> slice:
        """The pixels of an axis that a disc can touch."""
        touched = np.flatnonzero(np.abs(axis - centre) <= radius + self._pixel)
        return slice(int(touched[0]), int(touched[-1]) + 1) if len(touched) else slice(0)

    def picture(self) -> npt.NDArray[np.uint8]:
        picture: npt.NDArray[np.uint8] = np.rint(np.clip(self._pixels, 0.0, 1.0) * 255).astype(np.uint8)
        return picture
