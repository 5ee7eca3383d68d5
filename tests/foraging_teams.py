"""Scripted teams for level-based foraging with survival: what foraging alone, unarranged and together comes to.

They see the whole field in ``Observation.state``, so that none fails for want of sight; with ``sight`` an agent chooses
only among the food that it sees itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.sdk.environment import Observation, VectorEnvironment
from hmarl.sdk.environments import make
from hmarl.sdk.evaluation import episode_seeds
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.sdk.team import RandomTeam, Team

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

NONE, LOAD = 0, 5
# Row and column that actions 1 to 4 add: north, south, west and east.
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
# In ``JointTeam``, a full store of energy makes an agent as willing as one without that is so many steps farther away.
HUNGER_STEPS = 10.0


class ForagingTeam:
    """Agents that walk to the food chosen for them, around what is in the way, and load it; the others wander.

    Args:
        spec: of the environment.
        sight: how many cells an agent sees in each direction; None for the whole field.
    """

    name = "foraging"

    def __init__(self, spec: EnvironmentSpec, sight: int | None = None) -> None:
        self._agents, self._size = len(spec.agents), spec.arguments["size"]
        self._items, self._highest = len(spec.arguments["food"]), max(spec.arguments["food"])
        self._sight = sight or self._size
        self._generator = np.random.default_rng(0)

    def reset(self, seeds: npt.NDArray[np.int64]) -> None:
        self._generator = np.random.default_rng(np.asarray(seeds, dtype=np.uint64))

    def act(self, observation: Observation, running: Flags) -> tuple[npt.NDArray[Any], ...]:
        own, shades = np.split(observation.state[:, : 3 * self._agents + self._size**2], [3 * self._agents], axis=1)
        own = own.reshape(-1, self._agents, 3)
        agents = np.rint(own[:, :, :2] * (self._size - 1)).astype(np.int64)
        cells = np.argsort(-shades, axis=1, kind="stable")[:, : self._items]
        levels = np.rint(np.take_along_axis(shades, cells, axis=1) * self._highest).astype(np.int64)
        food = np.stack(np.divmod(cells, self._size), axis=-1)
        ahead = self._ahead(agents, food, levels, observation.active)
        far = np.abs(agents[:, :, None] - food[:, None]).max(axis=-1) > self._sight
        distances = np.where(far, np.inf, ahead.min(axis=-1) + 1)
        wanted = self.choose(distances, levels, own[:, :, 2].astype(float))
        towards = np.take_along_axis(ahead, np.maximum(wanted, 0)[:, :, None, None], axis=2)[:, :, 0]
        towards[wanted < 0] = np.inf
        return (self._approach(towards, observation.action_masks[0]),)

    def choose(self, distances: Floats, levels: Integers, energies: Floats) -> Integers:
        """Which item each agent goes for [B, N], -1 for none.

        Args:
            distances: [B, N, F] steps from each agent to each item, infinite where the agent does not get.
            levels: [B, F], 0 for items that are not on the field.
            energies: [B, N] in [0, 1].
        """
        raise NotImplementedError

    def close(self) -> None:
        pass

    def _ahead(self, agents: Integers, food: Integers, levels: Integers, active: Flags) -> Floats:
        """Steps to each item from the four cells around each agent: [B, N, F, 4], infinite where there is no way."""
        rows, items, framed = np.arange(len(food))[:, None], np.arange(self._items), self._size + 2
        free = np.zeros((len(food), framed, framed), dtype=bool)
        free[:, 1:-1, 1:-1] = True
        for places, there in ((agents, active), (food, levels > 0)):
            row, column = np.where(there, places.transpose(2, 0, 1) + 1, 0)
            free[rows, row, column] = False
        steps = np.full((len(food), self._items, framed, framed), np.inf)
        row, column = food.transpose(2, 0, 1) + 1
        steps[rows, items, row, column] = np.where(levels > 0, 0.0, np.inf)
        inner, passable = steps[:, :, 1:-1, 1:-1], free[:, None, 1:-1, 1:-1]
        for _ in range(2 * self._size):  # farther only through mazes, which there are none of
            sides = np.minimum(steps[:, :, 1:-1, :-2], steps[:, :, 1:-1, 2:])
            near = np.minimum(np.minimum(steps[:, :, :-2, 1:-1], steps[:, :, 2:, 1:-1]), sides)
            np.minimum(inner, near + 1, out=inner, where=passable)
        row, column = agents.transpose(2, 0, 1) + 1
        ahead = np.stack([steps[rows, :, row + down, column + right] for down, right in MOVES], axis=-1)
        ahead[~active] = np.inf
        return ahead

    def _approach(self, towards: Floats, legal: Flags) -> Integers:
        """Load beside the goal, else any of the best steps; without a way any step."""
        best = towards.min(axis=-1, keepdims=True)
        options = legal.copy()
        options[:, :, LOAD] = False
        options[:, :, 1:LOAD] &= towards == best
        options[:, :, NONE] = ~options[:, :, 1:].any(axis=-1)
        chosen = np.where(options, self._generator.random(options.shape), -1.0).argmax(axis=-1)
        return np.where(best[:, :, 0] == 0, LOAD, chosen)


class SoloTeam(ForagingTeam):
    """Each for itself: to the nearest food that one agent can eat."""

    name = "solo"

    def choose(self, distances: Floats, levels: Integers, energies: Floats) -> Integers:
        return nearest(np.where((levels == 1)[:, None], distances, np.inf))


class UnarrangedTeam(ForagingTeam):
    """Each to the nearest food of any level, where it waits for others to happen by."""

    name = "unarranged"

    def choose(self, distances: Floats, levels: Integers, energies: Floats) -> Integers:
        return nearest(distances)


class JointTeam(ForagingTeam):
    """Parties of as many as an item needs: the one that gathers soonest, hungry agents first, then the next."""

    name = "joint"

    def choose(self, distances: Floats, levels: Integers, energies: Floats) -> Integers:
        rows, wanted = np.arange(len(levels)), np.full(energies.shape, -1)
        costs = distances + HUNGER_STEPS * energies[:, :, None]
        for _ in range(self._items):
            ranks = costs.argsort(axis=1, kind="stable").argsort(axis=1)
            party = (ranks < levels[:, None]) & np.isfinite(costs)
            complete = (party.sum(axis=1) == levels) & (levels > 0)
            item = np.where(complete, np.where(party, costs, 0.0).max(axis=1), np.inf).argmin(axis=1)
            chosen = party[rows, :, item] & complete[rows, item][:, None]
            wanted = np.where(chosen, item[:, None], wanted)
            costs[chosen] = np.inf
            costs[rows, :, item] = np.inf
        return wanted


def nearest(distances: Floats) -> Integers:
    """The item at the least distance, -1 where all are infinite: [B, N, F] -> [B, N]."""
    return np.where(np.isfinite(distances).any(axis=-1), distances.argmin(axis=-1), -1)


@dataclass(frozen=True)
class Outcome:
    """Means over episodes: return, steps, share of successes, and agents that are not out at the end."""

    episode_return: float
    steps: float
    success_rate: float
    survivors: float


def play(environment: VectorEnvironment, team: Team, seed: int = 0) -> Outcome:
    """One episode in each of the environments; ``seed`` as for ``evaluate``."""
    seeds = episode_seeds(seed, environment.batch_size)
    seen, running = environment.reset(seeds), np.ones(environment.batch_size, dtype=bool)
    team.reset(seeds)
    returns, steps, successes, survivors = np.zeros((4, environment.batch_size))
    while running.any():
        result = environment.step(team.act(seen, running))
        returns[running] += result.rewards.sum(axis=1)[running]
        steps += running
        ended = running & (result.terminated | result.truncated)
        if result.final is not None:
            successes[ended], survivors[ended] = result.success[ended], result.final.active.sum(axis=1)[ended]
        running, seen = running & ~ended, result.observation
    return Outcome(*(float(each.mean()) for each in (returns, steps, successes, survivors)))


def main(episodes: int = 400) -> None:
    """Print the table of docs/environments.md."""
    for task in ("easy", "hard"):
        environment = make(f"lbfws/{task}", episodes)
        spec = environment.spec
        teams: list[tuple[str, Team]] = [
            ("random", RandomTeam(spec)),
            ("each for itself, to the nearest food of level 1", SoloTeam(spec)),
            ("the same, sight 3", SoloTeam(spec, 3)),
            ("each to the nearest food of any level", UnarrangedTeam(spec)),
            ("parties as large as an item needs, hungry agents first", JointTeam(spec)),
            ("the same, sight 3", JointTeam(spec, 3)),
        ]
        for name, team in teams:
            came = play(environment, team)
            print(f"{task}  {name:<56}{came.episode_return:6.2f}{came.success_rate:6.2f}{came.survivors:6.2f}")


if __name__ == "__main__":
    main()
