"""Pictures of MPE worlds, drawn with NumPy alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hmarl.sdk.drawing.camera import Camera
from hmarl.sdk.drawing.canvas import Canvas
from hmarl.sdk.environments.mpe.scenarios import Scenario

SIZE_PIXELS = 320
_Colour = npt.NDArray[np.float64]

_BACKGROUND = (247, 247, 245)
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
    places = _places(scenario, index)
    canvas = Canvas(np.full((SIZE_PIXELS, SIZE_PIXELS, 3), _BACKGROUND, np.uint8))
    speaking = bool(len(scenario.goals))
    for (x, y, radius), colour in zip(places[agent_count:].tolist(), scenario.landmark_colours, strict=True):
        canvas.disc((x, y), radius, colour * 1.2 if speaking else _GREY)
    for agent, (x, y, radius) in enumerate(places[:agent_count].tolist()):
        canvas.disc((x, y), radius, agent_colour(agent), opacity=0.85)
    for agent, goal in enumerate(scenario.goals[:, index]):
        x, y, radius = places[agent].tolist()
        canvas.disc((x, y), 0.65 * radius, _WHITE)
        canvas.disc((x, y), 0.45 * radius, scenario.landmark_colours[goal] * 1.2)
    for speaker in range(world.words.shape[1]):
        _draw_word(canvas, speaker, world.words[:, speaker, index])
    return canvas.picture()


def agent_pixels(scenario: Scenario, index: int) -> npt.NDArray[np.float64]:
    """[N, 3] x, y and radius of the agents in the picture of world ``index``."""
    return _places(scenario, index)[: len(scenario.agents)]


def _places(scenario: Scenario, index: int) -> npt.NDArray[np.float64]:
    """[N + L, 3] x, y and radius of agents and landmarks in the picture, which shows them all."""
    positions, radii = scenario.world.positions[:, :, index].T, np.array(scenario.radii)
    shown = max(_NORMAL_RANGE, 1.03 * float((np.abs(positions).max(axis=1) + radii).max()))
    return Camera.square((0.0, 0.0), shown, SIZE_PIXELS).discs(positions, radii)


def _draw_word(canvas: Canvas, speaker: int, word: npt.NDArray[np.float64]) -> None:
    """A larger dot in the agent's colour, then one dot a channel."""
    half = SIZE_PIXELS / 2
    spacing, left, height = 0.075 * half, 0.08 * half, (0.07 + 0.085 * speaker) * half
    colour = agent_colour(speaker)
    canvas.disc((left, height), 0.032 * half, colour)
    for channel, strength in enumerate(word):
        shade = _FAINT + (colour - _FAINT) * float(np.clip(strength, 0.0, 1.0))
        canvas.disc((left + (channel + 1.3) * spacing, height), 0.024 * half, shade)


def agent_colour(agent: int) -> _Colour:
    """Red, green and blue in [0, 1], another one for each of the first eight agents."""
    colour: _Colour = _AGENT_COLOURS[agent % len(_AGENT_COLOURS)]
    return colour
