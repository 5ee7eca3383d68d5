"""Level-based foraging with survival (LBFwS): agents must find food, much of it jointly, or run out of energy.

N agents of level 1 walk on a square field on which food lies. Food of level k is eaten when at least k of the agents
beside it load it at the same step (beside: to its north, south, west or east; a cell has room for one agent or one
item of food). Every agent carries energy in [0, 1], full at first, that falls by a constant at each step; what is eaten
gives energy in proportion to its level, shared equally among those who loaded it. An agent without energy is out. Food
that was eaten appears elsewhere after a while, never at the edge of the field and never within two steps of other food,
so that an agent is beside one item at most.

All moves are made at once. A step off the field or onto a cell that is taken is illegal, as is loading away from food;
what is illegal is done as ``none``. Of several agents that step onto one cell the one that has the right of way gets
there; it passes from agent to agent with every step.

``easy``: all food has level 1. ``hard``: most food needs two or three agents at once, and there is too little of level
1 to live on: agents that forage for themselves starve. The constants, and defaults of the arguments:

====================  ======================================================================================
``agents``            5
``size``              the smallest field of at least 20 cells an agent, from 5 by 5 to 50 by 50: 10 by 10
``food``              the items' levels. As many items as agents; easy: 1, 1, 1, 1, 1; hard: 1, 2, 2, 3, 3,
                      over again for more agents
``horizon``           100 steps
``sight``             3 cells in each direction: an agent sees 7 by 7 cells
``endurance``         40 steps that a full store of energy lasts: each costs 1/40
``nutrition``         12 steps of energy in each level of food: 0.3 of a store
``regrowth``          5 steps from eating to the next item
====================  ======================================================================================

An agent is rewarded with (e + 1) / (2 horizon) at each step, where e is the energy in what it has eaten, in steps and
whether or not its store could hold it, and the 1 is for not being out. Over an episode that comes to about 1 for an
agent that survives, and the team's reward, the *sum*, to about N. An episode is terminated when all agents are out, and
truncated at the horizon; it is a success when no agent is out then.

Source: the task is that of Marzi et al. 2025 (HiMPo), built on Papoudakis et al.'s level-based foraging. Differs: the
constants, the right of way and the reward's scale, which the source does not state, are this project's own; its figures
are not comparable with the source's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import cycle, islice
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from hmarl.sdk.environment import VECTORISED, Observation, StepResult
from hmarl.sdk.environments.authoring import (
    COUNT,
    EpisodeStreams,
    Rule,
    at_least,
    checked_actions,
    checked_state,
    is_integer,
    resolve_arguments,
)
from hmarl.sdk.environments.lbfws import drawing, saving
from hmarl.sdk.environments.lbfws.field import ACTIONS, AROUND, NONE, Eyes, Flags
from hmarl.sdk.environments.lbfws.rules import Foraging, Rules
from hmarl.sdk.errors import UsageError, unknown_name
from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec

# The levels of food, over again where there is more of it; the k-th is at most k, so that k agents can eat it.
_LEVELS = {"easy": (1,), "hard": (1, 2, 2, 3, 3)}
TASKS = list(_LEVELS)
COPY_COST = VECTORISED

_DEFAULTS: dict[str, Any] = {
    "agents": 5,
    "size": None,
    "food": None,
    "horizon": 100,
    "sight": 3,
    "endurance": 40,
    "nutrition": 12,
    "regrowth": 5,
}
_CELLS_PER_AGENT = 20
_SMALLEST, _LARGEST = 5, 50
# No more agents than that have room around food.
_HIGHEST_LEVEL = len(AROUND)


def make(task: str, batch_size: int = 1, **arguments: Any) -> LbfwsEnvironment:
    """Make B copies of a foraging task.

    Args:
        task: ``easy`` or ``hard``.
        batch_size: B, at least 1.
        arguments: ``agents``, ``size``, ``food``, ``horizon``, ``sight``, ``endurance``, ``nutrition`` and
            ``regrowth``, see the module's description.

    Raises:
        UsageError: an unknown task or argument, a value of the wrong type or out of range, or values that do not go
            together.
    """
    if task not in _LEVELS:
        raise UsageError(unknown_name("lbfws task", task, TASKS))
    name = f"lbfws/{task}"
    return LbfwsEnvironment(name, batch_size, _rules(task, resolve_arguments(name, arguments, _DEFAULTS, _RULES)))


class LbfwsEnvironment:
    """B copies of one foraging task; a ``VectorEnvironment``.

    Each call returns new arrays that later calls never touch.

    An agent observes its position (row and column, counted from the north-west, / (size - 1)), its energy, and three
    pictures of the cells around it, row by row from the north-west: food as its level / the highest level of the task,
    other agents as 1, cells outside the field as 1. The state is position and energy of all agents (zeros for those
    that are out), all cells' food in the same way, the waits of the items / ``regrowth``, and step / ``horizon``.

    Args:
        name: of the spec.
        batch_size: B.
        rules: the task's numbers.
    """

    def __init__(self, name: str, batch_size: int, rules: Rules) -> None:
        self.batch_size = batch_size
        self._game = Foraging(batch_size, rules)
        self._eyes = Eyes(self._game.field, batch_size)
        self.spec = _spec(name, rules, self._eyes.side**2)
        self._shades = (self._game.levels / self._game.levels.max()).astype(np.float32)
        self._positions = (self._game.field.places / (rules.size - 1)).astype(np.float32)
        self._legal: Flags = np.ones((batch_size, rules.agents, ACTIONS), dtype=bool)
        self._rows = np.arange(batch_size)
        self._streams = EpisodeStreams(batch_size)

    def reset(self, seeds: npt.NDArray[np.int64]) -> Observation:
        """Start B new episodes.

        Args:
            seeds: [B] integers, at least 0.

        Raises:
            UsageError: seeds of another shape, or negative.
        """
        self._game.restart(self._streams.begin(seeds), self._rows)
        return _observation(*self._look(self._rows))

    def step(self, actions: tuple[npt.NDArray[Any], ...]) -> StepResult:
        """Move, load, eat and burn energy; environments whose episode has ended start the next one.

        Args:
            actions: one array [B, N] int64: none, north, south, west, east, load. Illegal ones are done as none.

        Raises:
            UsageError: before the first ``reset``, or actions of a wrong shape or kind or out of range; nothing has
                then changed.
        """
        streams, game, horizon = self._streams.running("step"), self._game, self._game.rules.horizon
        (chosen,) = checked_actions(actions, self.spec.groups, self.batch_size)
        legal = np.take_along_axis(self._legal, chosen[:, :, None], axis=2)[:, :, 0] & game.standing
        meals = game.advance(np.where(legal, chosen, NONE), streams)
        standing = game.standing
        rewards = ((meals + standing) / (2 * horizon)).astype(np.float32)
        terminated = ~standing.any(axis=1)
        truncated = (game.steps >= horizon) & ~terminated
        success = truncated & standing.all(axis=1)
        seen = self._look(self._rows)
        observation, final = _observation(*seen), None
        ended = np.flatnonzero(terminated | truncated)
        if len(ended):
            game.restart(streams, ended)
            renewed = [part.copy() for part in seen]
            for part, fresh in zip(renewed, self._look(ended), strict=True):
                part[ended] = fresh
            observation, final = _observation(*renewed), observation
        return StepResult(observation, rewards, terminated, truncated, final, success)

    def get_state(self) -> dict[str, npt.NDArray[Any]]:
        """Everything that determines the future, as new arrays.

        Returns:
            ``agents`` [B, N, 2] and ``food`` [B, F, 2] int64, row and column from the north-west, -1 for what is not on
            the field; ``energies`` [B, N] float64, in the steps that they last, 0 to ``endurance``; ``waits`` [B, F]
            (steps until eaten food is back) and ``steps`` [B] int64; the generators as in ``RandomStreams.get_state``.

        Raises:
            UsageError: before the first ``reset``.
        """
        return {**saving.save(self._game), **self._streams.running("get_state").get_state()}

    def set_state(self, state: Mapping[str, npt.NDArray[Any]]) -> Observation:
        """Continue where ``get_state`` was called.

        Raises:
            UsageError: an array is missing, unknown, of another shape or kind, or holds what cannot be; nothing has
                then changed.
        """
        saved = checked_state(state, {**saving.save(self._game), **self._streams.layout()})
        saving.restore(self._game, saved)
        self._streams.resume(saved)
        return _observation(*self._look(self._rows))

    def render(self, index: int = 0) -> npt.NDArray[np.uint8]:
        """A picture [400, 400, 3] of environment ``index``: food as bushes with berries, agents with energy bars.

        Raises:
            UsageError: before the first ``reset``.
        """
        self._streams.running("render")
        return drawing.draw(self._game, index)

    def agent_pixels(self, index: int = 0) -> npt.NDArray[np.float64]:
        """[N, 3] x, y and radius of the agents in the picture, see ``LocatesAgents``.

        Raises:
            UsageError: before the first ``reset``.
        """
        self._streams.running("agent_pixels")
        return drawing.agent_pixels(self._game, index)

    def close(self) -> None:
        """Nothing to free."""

    def _look(self, rows: npt.NDArray[np.intp]) -> tuple[npt.NDArray[Any], ...]:
        """Observations, masks, state and who is active in these environments; their masks are remembered."""
        game, agents = self._game, self._game.agents[rows]
        standing, energies = game.standing[rows], game.energies[rows] / game.rules.endurance
        pictures, food = self._eyes.look(agents, game.food[rows], self._shades)
        seen = np.empty((*agents.shape, self.spec.agents[0].observation_size), dtype=np.float32)
        seen[:, :, :2] = self._positions[agents]
        seen[:, :, 2] = energies
        seen[:, :, 3:] = pictures.reshape(*agents.shape, -1)
        seen[~standing] = 0
        legal = self._eyes.legal(pictures)
        legal[~standing] = True
        self._legal[rows] = legal
        own, waits = seen[:, :, :3].reshape(len(rows), -1), game.waits[rows] / max(game.rules.regrowth, 1)
        steps = game.steps[rows, None] / game.rules.horizon
        return seen, legal, np.concatenate([own, food, waits, steps], axis=1, dtype=np.float32), standing


def _observation(
    seen: npt.NDArray[Any], legal: npt.NDArray[Any], state: npt.NDArray[Any], standing: npt.NDArray[Any]
) -> Observation:
    return Observation((seen,), (legal,), state, standing)


def _spec(name: str, rules: Rules, picture_size: int) -> EnvironmentSpec:
    pictures = tuple((part, picture_size) for part in ("food in sight", "other agents in sight", "outside the field"))
    layout = (("position", 2), ("energy", 1), *pictures)
    size = sum(length for _, length in layout)
    return EnvironmentSpec(
        name=name,
        agents=tuple(
            AgentSpec(f"agent_{i}", size, spaces.Discrete(ACTIONS), has_action_mask=True, observation_layout=layout)
            for i in range(rules.agents)
        ),
        state_size=3 * rules.agents + rules.size**2 + len(rules.levels) + 1,
        horizon=rules.horizon,
        team_reward="sum",
        arguments={
            "agents": rules.agents,
            "size": rules.size,
            "food": list(rules.levels),
            "horizon": rules.horizon,
            "sight": rules.sight,
            "endurance": rules.endurance,
            "nutrition": rules.nutrition,
            "regrowth": rules.regrowth,
        },
        has_success=True,
    )


def _rules(task: str, arguments: Mapping[str, Any]) -> Rules:
    """The task's numbers from its arguments, each of which is right by itself."""
    agents, size, levels = (arguments[name] for name in ("agents", "size", "food"))
    if size is None:
        size = min(max(_SMALLEST, math.ceil(math.sqrt(_CELLS_PER_AGENT * agents))), _LARGEST)
    if levels is None:
        levels = list(islice(cycle(_LEVELS[task]), agents))
    room = size**2 - len(levels)
    if agents > room:
        beside = f"beside {len(levels)} items of food on a field of {size} by {size}"
        raise UsageError(f"agents: got {agents}, expected at most {room} {beside}")
    if max(levels) > agents:
        raise UsageError(f"food: got level {max(levels)}, expected at most {agents}, the number of agents")
    if arguments["sight"] >= size:
        raise UsageError(f"sight: got {arguments['sight']}, expected less than the field's size {size}")
    rest = {name: arguments[name] for name in ("horizon", "sight", "endurance", "nutrition", "regrowth")}
    return Rules(agents=agents, size=size, levels=tuple(levels), **rest)


def _are_levels(value: Any) -> bool:
    levels = isinstance(value, list | tuple) and len(value) > 0
    return levels and all(is_integer(level) and 1 <= level <= _HIGHEST_LEVEL for level in value)


_RULES = {
    "agents": COUNT,
    "size": Rule(
        f"an integer from {_SMALLEST} to {_LARGEST}",
        lambda value: is_integer(value) and _SMALLEST <= value <= _LARGEST,
    ),
    "food": Rule(f"a list of levels from 1 to {_HIGHEST_LEVEL}, one for each item", _are_levels),
    "horizon": COUNT,
    "sight": COUNT,
    "endurance": COUNT,
    "nutrition": COUNT,
    "regrowth": at_least(0),
}
