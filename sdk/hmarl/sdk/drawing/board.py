"""The rounds of a guessing game as a board: what was asked for, what the agents named, what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hmarl.sdk.drawing.canvas import Canvas, Colour, Frame

WIDTH, HEIGHT = 360, 300
_ROUNDS = 9  # that are shown above the present one
_TOP, _ROW, _PRESENT = 16, 24, 262  # pixels: the first round's middle, the way to the next one, the present round's
_ASKED, _FIRST, _LAST, _GUESS, _MARK = 34, 92, 244, 290, 334  # the columns' middles
_RADIUS = 15.0
_GROUND = (247, 247, 245)
_INK, _PAPER, _FAINT = (0.16, 0.18, 0.22), (1.0, 1.0, 1.0), (0.80, 0.80, 0.79)
_PLAIN = tuple(value / 255 for value in _GROUND)
_CAUGHT, _MISTAKEN = (0.70, 0.10, 0.08), (0.87, 0.78, 0.76)
_WON, _HALF = (0.00, 0.62, 0.45), (0.90, 0.62, 0.00)


@dataclass(frozen=True)
class Round:
    """One round that was played.

    Attributes:
        asked: the number that the agents' numbers had to add up to.
        named: what each agent named.
        guess: what the adversary took the first agent to name.
    """

    asked: int
    named: tuple[int, ...]
    guess: int

    @property
    def right(self) -> bool:
        """Whether the numbers add up."""
        return sum(self.named) == self.asked

    @property
    def guessed(self) -> bool:
        """Whether the adversary was right."""
        return self.guess == self.named[0]


def draw_board(rounds: Sequence[Round], asked: int, colours: Sequence[Colour]) -> Frame:
    """The last rounds, the newest at the bottom, and below them what is asked for now.

    From left to right: the number asked for, what the agents named in their colours, the adversary's guess (pale
    where it was wrong), and a disc: green for 2 points, orange for 1, a grey ring for none.

    Args:
        rounds: those that have been played.
        asked: now.
        colours: of the agents.

    Returns:
        [300, 360, 3] uint8.
    """
    canvas = Canvas(np.full((HEIGHT, WIDTH, 3), _GROUND, np.uint8))
    shown = rounds[-_ROUNDS:]
    columns = _columns(len(colours))
    for row, each in enumerate(shown, _ROUNDS - len(shown)):
        y = _TOP + row * _ROW
        canvas.number(each.asked, (_ASKED, y), 3, _INK, _PLAIN)
        for number, x, colour in zip(each.named, columns, colours, strict=True):
            canvas.number(number, (x, y), 3, colour, _PLAIN)
        canvas.number(each.guess, (_GUESS, y), 3, _CAUGHT if each.guessed else _MISTAKEN, _PLAIN)
        _draw_mark(canvas, each, y)
    canvas.line((12, _PRESENT - 26), (WIDTH - 12, _PRESENT - 26), 1.0, _FAINT)
    canvas.number(asked, (_ASKED, _PRESENT), 5, _PAPER, _INK)
    for (x, y, radius), colour in zip(present_places(len(colours)).tolist(), colours, strict=True):
        canvas.disc((x, y), radius, colour, opacity=0.85)
    return canvas.picture()


def present_places(agents: int) -> npt.NDArray[np.float64]:
    """[N, 3] x, y and radius of the agents' discs in the present round."""
    columns = _columns(agents)
    radius = min(_RADIUS, 0.3 * (_LAST - _FIRST) / max(agents - 1, 1))
    return np.stack([columns, np.full(agents, float(_PRESENT)), np.full(agents, radius)], axis=1)


def _columns(agents: int) -> npt.NDArray[np.float64]:
    return np.linspace(_FIRST, _LAST, agents) if agents > 1 else np.array([(_FIRST + _LAST) / 2])


def _draw_mark(canvas: Canvas, played: Round, y: float) -> None:
    if played.right:
        canvas.disc((_MARK, y), 8.0, _HALF if played.guessed else _WON)
    else:
        canvas.ring((_MARK, y), 7.0, 2.0, _FAINT)
