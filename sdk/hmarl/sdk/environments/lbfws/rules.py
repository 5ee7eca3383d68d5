"""The rules of level-based foraging with survival, for B fields at once. Energy is counted in the steps it lasts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hmarl.sdk.environments.authoring import RandomStreams
from hmarl.sdk.environments.lbfws.field import AWAY, LOAD, Field, Flags, Integers

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]

# Shares of food need not be whole numbers: what rounding leaves over is no energy.
_NO_ENERGY = 1e-9


@dataclass(frozen=True)
class Rules:
    """The numbers of a task.

    Attributes:
        agents: N.
        size: cells along a side of the field.
        levels: of the F items of food.
        horizon: steps of an episode.
        sight: cells that an agent sees in each direction.
        endurance: steps that a full store of energy lasts.
        nutrition: steps of energy in each level of food.
        regrowth: steps until food that was eaten is back elsewhere.
    """

    agents: int
    size: int
    levels: tuple[int, ...]
    horizon: int
    sight: int
    endurance: int
    nutrition: int
    regrowth: int


class Foraging:
    """B fields with their agents and food.

    Attributes:
        agents: [B, N] cells of the agents, ``AWAY`` for those that are out.
        energies: [B, N] steps that each agent's energy lasts, 0 for those that are out.
        food: [B, F] cells of the food, ``AWAY`` where it has been eaten.
        waits: [B, F] steps until eaten food is back; 0 for food that is there, and for food that finds no room.
        steps: [B] of the running episodes.
    """

    def __init__(self, batch_size: int, rules: Rules) -> None:
        self.rules, self.field = rules, Field(rules.size, rules.sight)
        self.levels: Integers = np.array(rules.levels)
        self.agents: Integers = np.full((batch_size, rules.agents), AWAY)
        self.energies: Floats = np.zeros((batch_size, rules.agents))
        self.food: Integers = np.full((batch_size, len(rules.levels)), AWAY)
        self.waits: Integers = np.zeros(self.food.shape, dtype=np.int64)
        self.steps: Integers = np.zeros(batch_size, dtype=np.int64)

    @property
    def standing(self) -> Flags:
        """Which agents are not out: [B, N]."""
        return np.asarray(self.agents != AWAY)

    def restart(self, streams: RandomStreams, rows: Rows) -> None:
        """Start new episodes in these rows: food first, item by item, then the agents, all full of energy."""
        self.agents[rows], self.food[rows], self.waits[rows] = AWAY, AWAY, 0
        self.energies[rows], self.steps[rows] = self.rules.endurance, 0
        self._grow(streams, rows)
        draws = streams.uniforms(rows, len(self.field.cells))
        draws[(self.food[rows][:, :, None] == self.field.cells).any(axis=1)] = np.inf
        self.agents[rows] = self.field.cells[draws.argsort(axis=1)[:, : self.rules.agents]]

    def advance(self, actions: Integers, streams: RandomStreams) -> Floats:
        """One step with actions [B, N] that are legal, 0 for agents that are out.

        Returns:
            [B, N], the energy in the food that each agent has eaten, whether or not its store could hold it.
        """
        self._move(actions)
        eaten, meals = self._load(actions == LOAD)
        self.energies = np.minimum(self.energies - 1 + meals, self.rules.endurance)
        out = (self.energies < _NO_ENERGY) | ~self.standing
        self.energies[out], self.agents[out] = 0, AWAY
        self.waits = np.where(eaten, self.rules.regrowth, np.maximum(self.waits - 1, 0))
        self.food[eaten] = AWAY
        self._grow(streams, np.arange(len(self.food)))
        self.steps += 1
        return meals

    def _move(self, actions: Integers) -> None:
        """All at once; of several agents that would step onto one cell, only the one with the right of way does.

        That passes from agent to agent with every step, lest two with fixed habits block each other for good.
        """
        targets = self.agents + self.field.moves[actions]
        turns = (np.arange(self.rules.agents) + self.steps[:, None]) % self.rules.agents
        behind = turns[:, :, None] > turns[:, None, :]
        blocked = ((targets[:, :, None] == targets[:, None, :]) & behind).any(axis=2)
        self.agents = np.where(blocked, self.agents, targets)

    def _load(self, loading: Flags) -> tuple[Flags, Floats]:
        """Which food is eaten [B, F], and what each agent gets of it [B, N]: those who load it share it equally."""
        helping = self.field.beside(self.agents, self.food) & loading[:, :, None]
        helpers = helping.sum(axis=1)
        eaten = helpers >= self.levels
        shares = np.where(eaten, self.levels * self.rules.nutrition / np.maximum(helpers, 1), 0.0)
        return eaten, (helping * shares[:, None, :]).sum(axis=2)

    def _grow(self, streams: RandomStreams, rows: Rows) -> None:
        """Put food whose time has come on the field, item by item; one that finds no room waits on."""
        due = (self.food[rows] == AWAY) & (self.waits[rows] == 0)
        while due.any():
            some = np.flatnonzero(due.any(axis=1))
            items, where = due[some].argmax(axis=1), rows[some]
            due[some, items] = False
            room = self.field.room(self.agents[where], self.food[where])
            drawn = np.floor(streams.uniforms(where, 1) * room.sum(axis=1, keepdims=True))
            chosen = self.field.inner[(room.cumsum(axis=1) > drawn).argmax(axis=1)]
            self.food[where, items] = np.where(room.any(axis=1), chosen, AWAY)
