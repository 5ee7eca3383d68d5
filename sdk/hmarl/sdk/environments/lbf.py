"""Level-based foraging, from the ``lbforaging`` package: ``lbf/8x8-2p-2f-coop``.

A task's name is that of the package's Gymnasium id without ``Foraging-`` and ``-v3``, which may stand there too: size
of the square field, players and food, before them ``2s-`` for a sight of 2 cells (default: the whole field), after them
``-coop`` (all players are needed for every food), ``-ind`` (every food has level 1) and ``-pen`` (a penalty of 0.1 for
failed loading). Any combination works, registered by the package or not. Arguments are those of the package's
``ForagingEnv``, and ``workers`` and ``timeout_s`` as in the family ``pettingzoo``. (Grid observations fail in
lbforaging 2.0.0 itself.)

The team reward is the sum over the agents; the package scales rewards so that all the food of an episode makes 1. An
episode is terminated, and a success, when no food is left, and truncated after ``max_episode_steps`` (50).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from lbforaging.foraging import ForagingEnv

from hmarl.sdk.environment import CopyCost
from hmarl.sdk.environments.workers.gymnasium_team import GymnasiumTeam, build
from hmarl.sdk.environments.workers.lifted import LiftedVector, lift
from hmarl.sdk.environments.workers.parallel_copy import ParallelCopy
from hmarl.sdk.environments.workers.pool import REPLY_TIMEOUT_S
from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import EnvironmentSpec

TASKS = ["[Ss-]NxN-Pp-Ff[-coop][-ind][-pen], e.g. 8x8-2p-2f-coop, 2s-10x10-3p-3f"]
COPY_COST = CopyCost(memory_bytes=1 << 16)  # Python objects in a worker process

_TASK = re.compile(
    r"(?:Foraging-)?(?:(?P<sight>\d+)s-)?(?P<rows>\d+)x(?P<columns>\d+)-(?P<players>\d+)p-(?P<food>\d+)f"
    r"(?P<coop>-coop)?(?P<ind>-ind)?(?P<pen>-pen)?(?:-v3)?"
)
_SMALLEST_FIELD = 5


def make(
    task: str, batch_size: int, *, workers: int | None = None, timeout_s: float = REPLY_TIMEOUT_S, **arguments: Any
) -> LiftedVector:
    """Make B copies of a foraging task.

    Args:
        task: e.g. ``8x8-2p-2f-coop``; see the module's description.
        batch_size: B.
        workers: number of worker processes; 0 runs all copies in this process.
        timeout_s: seconds within which a worker process has to make a step.
        arguments: those of ``lbforaging``'s ``ForagingEnv``.

    Raises:
        UsageError: a name that is none, or an argument that the package does not take.
    """
    complete = partial(_complete_spec, arguments=arguments)
    return lift(make_copy, {"task": task, "arguments": arguments}, complete, batch_size, workers, timeout_s)


def make_copy(task: str, arguments: Mapping[str, Any]) -> ParallelCopy:
    """One environment behind flat arrays; also called by the worker processes.

    Raises:
        UsageError: as ``make``.
    """
    name = f"lbf/{task}"
    return ParallelCopy(_Foraging(build(name, ForagingEnv, {**_parsed(task), **arguments})), name, images=False)


def _complete_spec(copy: ParallelCopy, arguments: Mapping[str, Any]) -> EnvironmentSpec:
    horizon = copy.environment.environment._max_episode_steps
    return dataclasses.replace(copy.spec, horizon=horizon, arguments=dict(arguments))


class _Foraging(GymnasiumTeam):
    """Foraging, which knows success: no food is left."""

    def __init__(self, environment: Any) -> None:
        super().__init__(environment, is_cut_off=lambda: not self.episode_success())

    def reset(self, seed: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start the episode that a new environment would start."""
        # The package keeps clear of the places where the players stood last, so that episodes would hang together.
        for player in self.environment.unwrapped.players:  # type: ignore[attr-defined]
            player.position = None
        return super().reset(seed)

    def episode_success(self) -> bool:
        """Whether all the food has been collected."""
        return not self.environment.unwrapped.field.any()  # type: ignore[attr-defined]


def _parsed(task: str) -> dict[str, Any]:
    """Arguments of ``ForagingEnv`` that the name stands for; the rest as the package registers them."""
    found = _TASK.fullmatch(task)
    if found is None:
        raise UsageError(f"lbf/{task}: expected a name like 8x8-2p-2f-coop: {TASKS[0]}")
    rows, columns, players, food = (int(found[name]) for name in ("rows", "columns", "players", "food"))
    if rows != columns or rows < _SMALLEST_FIELD or players < 1 or food < 1:
        limits = f"a square field of at least {_SMALLEST_FIELD}x{_SMALLEST_FIELD}, and 1 player and 1 food or more"
        raise UsageError(f"lbf/{task}: expected {limits}")
    return {
        "players": players,
        "min_player_level": 1,
        "max_player_level": 2,
        "field_size": (rows, columns),
        "min_food_level": 1,
        "max_food_level": 1 if found["ind"] else None,
        "max_num_food": food,
        "sight": int(found["sight"] or rows),
        "max_episode_steps": 50,
        "force_coop": found["coop"] is not None,
        "grid_observation": False,
        "penalty": 0.1 if found["pen"] else 0.0,
    }
