"""What the board of a guessing game shows of each round, and where."""

from __future__ import annotations

import numpy as np
import pytest

from hmarl.sdk.drawing.board import Round, draw_board
from hmarl.sdk.environments import make
from hmarl.sdk.errors import UsageError

COLOURS = ((0.0, 0.0, 1.0), (1.0, 0.6, 0.0))
MARK = slice(320, 350)
GREEN, ORANGE = (0, 158, 115), (230, 158, 0)


def marks(*rounds: Round) -> list[tuple[int, ...]]:
    """The colour in the middle of the mark of each round, the newest last."""
    picture = draw_board(rounds, 3, COLOURS)
    return [tuple(picture[16 + 24 * row, 334].tolist()) for row in range(9 - len(rounds), 9)]


def test_marks_tell_what_was_earned() -> None:
    missed, surprising, guessed = Round(9, (1, 2), 0), Round(3, (1, 2), 0), Round(3, (1, 2), 1)
    assert marks(missed, surprising, guessed) == [(247, 247, 245), GREEN, ORANGE]


def test_the_newest_rounds_are_shown_and_older_ones_go() -> None:
    rounds = [Round(3, (1, 2), 0)] * 9
    assert (draw_board([Round(9, (0, 0), 0), *rounds], 3, COLOURS) == draw_board(rounds, 3, COLOURS)).all()
    empty = draw_board([], 3, COLOURS)
    assert (empty[:230, MARK] == empty[0, 0]).all()


def test_an_environment_shows_its_own_rounds_and_what_it_does_not_know_it_leaves_out() -> None:
    environment = make("coordsum/2x10-15", 2)
    with pytest.raises(UsageError, match="render"):
        environment.render(0)
    environment.reset(np.array([4, 5]))
    targets = []
    for _ in range(2):
        state = environment.get_state()
        assert state is not None
        target = int(state["targets"][1, state["steps"][1]])
        targets.append(target)
        named = min(target, 9)
        environment.step((np.array([[0, 0], [named, target - named]]),))
    state = environment.get_state()
    assert state is not None
    now = int(state["targets"][1, 2])
    first, second = ((min(t, 9), t - min(t, 9)) for t in targets)
    guess = first[0] if targets[0] == targets[1] else 0
    from hmarl.sdk.environments.mpe.drawing import agent_colour  # noqa: PLC0415

    colours = [agent_colour(0), agent_colour(1)]
    expected = draw_board([Round(targets[0], first, 0), Round(targets[1], second, guess)], now, colours)
    np.testing.assert_array_equal(environment.render(1), expected)
    environment.set_state(state)
    np.testing.assert_array_equal(environment.render(1), draw_board([], now, colours))
