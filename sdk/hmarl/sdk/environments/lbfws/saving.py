"""A game of level-based foraging with survival as arrays, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.sdk.environments.lbfws.field import AWAY, FOOD_SPACING, Field, Flags, Integers
from hmarl.sdk.environments.lbfws.rules import Foraging
from hmarl.sdk.errors import UsageError

Arrays = dict[str, npt.NDArray[Any]]

# Row and column of what is not on the field.
_NOWHERE = -1


def save(game: Foraging) -> Arrays:
    """Everything that determines the game's future but for its random streams, as new arrays.

    Returns:
        ``agents`` [B, N, 2] and ``food`` [B, F, 2] int64, row and column, -1 for what is not on the field; ``energies``
        [B, N] float64, in steps; ``waits`` [B, F] and ``steps`` [B] int64.
    """
    return {
        "agents": _places(game.field, game.agents),
        "energies": game.energies.copy(),
        "food": _places(game.field, game.food),
        "waits": game.waits.copy(),
        "steps": game.steps.copy(),
    }


def restore(game: Foraging, saved: Mapping[str, npt.NDArray[Any]]) -> None:
    """Continue from arrays of the shapes and types that ``save`` returns; the game keeps them.

    Raises:
        UsageError: they hold what cannot be; nothing has then changed.
    """
    agents, food = _cells(game.field, saved["agents"]), _cells(game.field, saved["food"])
    rules, standing = game.rules, agents != AWAY
    energies, waits = saved["energies"], saved["waits"]
    for name, wrong, expected in (
        ("agents", _strays(saved["agents"], 0, rules.size), "cells of the field, or -1"),
        ("agents", _share_cells(agents, food), "one agent or item of food a cell"),
        ("agents", ~standing.any(axis=1), "an agent on the field in every environment"),
        ("food", _strays(saved["food"], 1, rules.size - 1), "cells that are not at the field's edge, or -1"),
        ("food", _crowded(saved["food"]), f"items at least {FOOD_SPACING} steps apart"),
        ("energies", ~((energies >= 0) & (energies <= rules.endurance)), f"numbers in [0, {rules.endurance}]"),
        ("energies", (energies > 0) != standing, "energy where the agent is on the field, and nowhere else"),
        ("waits", (waits < 0) | (waits > rules.regrowth), f"numbers in [0, {rules.regrowth}]"),
        ("waits", (waits > 0) & (food != AWAY), "0 where the food is on the field"),
        ("steps", (saved["steps"] < 0) | (saved["steps"] >= rules.horizon), f"numbers in [0, {rules.horizon})"),
    ):
        if wrong.any():
            row = int(wrong.nonzero()[0][0])
            raise UsageError(f"state '{name}': got what cannot be in environment {row}, expected {expected}")
    game.agents, game.energies, game.food = agents, energies, food
    game.waits, game.steps = waits, saved["steps"]


def _places(field: Field, cells: Integers) -> Integers:
    return np.where((cells == AWAY)[..., None], _NOWHERE, field.places[cells])


def _cells(field: Field, places: Integers) -> Integers:
    return np.where((places == _NOWHERE).all(axis=-1), AWAY, field.at(places[..., 0], places[..., 1]))


def _strays(places: Integers, first: int, end: int) -> Flags:
    """Which of [B, M, 2] are neither in rows and columns [first, end) nor nowhere: [B, M]."""
    return np.asarray(((places < first) | (places >= end)).any(axis=-1) & (places != _NOWHERE).any(axis=-1))


def _share_cells(agents: Integers, food: Integers) -> Flags:
    """[B], whether anything stands where something else does."""
    cells = np.sort(np.concatenate([agents, food], axis=1), axis=1)
    return np.asarray(((cells[:, 1:] == cells[:, :-1]) & (cells[:, 1:] != AWAY)).any(axis=1))


def _crowded(food: Integers) -> Flags:
    """[B], whether two items of food [B, F, 2] are too near each other."""
    there = (food != _NOWHERE).all(axis=-1)
    apart = np.abs(food[:, :, None] - food[:, None]).sum(axis=-1)
    pairs = there[:, :, None] & there[:, None] & ~np.eye(food.shape[1], dtype=bool)
    return np.asarray(((apart < FOOD_SPACING) & pairs).any(axis=(1, 2)))
