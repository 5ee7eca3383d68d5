"""Robotic warehouses, from the ``rware`` package: ``rware/tiny-2ag``.

A task's name is that of the package's Gymnasium id without ``rware-`` and ``-v2``, which may stand there too: size,
agents and difficulty (``-easy``: twice as many requested shelves, ``-hard``: half as many), before the size ``img-`` or
``imgdict-`` (and ``Nd-`` for pictures that do not turn with the agent) and ``3s-`` for a sensor range of 3 cells
(default 1), after it ``10h-`` for shelf columns of height 10 (default 8). Any combination works, registered by the
package or not. Arguments are those of the package's ``Warehouse``, its enumerations by name (``reward_type=global``),
and ``workers`` and ``timeout_s`` as in the family ``pettingzoo``.

The team reward is the sum over the agents: 1 for every shelf that is delivered; with ``reward_type=global`` every agent
gets that sum, which is then the team reward. An episode is truncated after ``max_steps`` (500), and terminated after
``max_inactivity_steps`` without a delivery (never, by default).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from enum import Enum
from functools import partial
from typing import Any

from rware.warehouse import ImageLayer, ObservationType, RewardType, Warehouse

from hmarl.sdk.environment import CopyCost
from hmarl.sdk.environments.workers.gymnasium_team import GymnasiumTeam, build
from hmarl.sdk.environments.workers.lifted import LiftedVector, lift
from hmarl.sdk.environments.workers.parallel_copy import ParallelCopy
from hmarl.sdk.environments.workers.pool import REPLY_TIMEOUT_S
from hmarl.sdk.errors import UsageError, unknown_name
from hmarl.sdk.spaces import EnvironmentSpec, TeamReward

TASKS = ["[img-|imgdict-][Nd-][Rs-]SIZE-[Hh-]Aag[-easy|-hard], SIZE tiny, small, medium or large, e.g. tiny-2ag"]
COPY_COST = CopyCost(memory_bytes=1 << 16)  # Python objects in a worker process

_TASK = re.compile(
    r"(?:rware-)?(?:(?P<kind>img|imgdict)-(?P<upright>Nd-)?)?(?:(?P<range>\d+)s-)?(?P<size>tiny|small|medium|large)-"
    r"(?:(?P<height>\d+)h-)?(?P<agents>\d+)ag(?:-(?P<difficulty>easy|hard))?(?:-v2)?"
)
_SHELF_ROWS_COLUMNS = {"tiny": (1, 3), "small": (2, 3), "medium": (2, 5), "large": (3, 5)}
_REQUESTS_PER_AGENT = {"easy": 2.0, None: 1.0, "hard": 0.5}
_KINDS = {None: ObservationType.FLATTENED, "img": ObservationType.IMAGE, "imgdict": ObservationType.IMAGE_DICT}
_ENUMERATIONS: dict[str, type[Enum]] = {"reward_type": RewardType, "observation_type": ObservationType}


def make(
    task: str, batch_size: int, *, workers: int | None = None, timeout_s: float = REPLY_TIMEOUT_S, **arguments: Any
) -> LiftedVector:
    """Make B copies of a warehouse.

    Args:
        task: e.g. ``tiny-2ag``; see the module's description.
        batch_size: B.
        workers: number of worker processes; 0 runs all copies in this process.
        timeout_s: seconds within which a worker process has to make a step.
        arguments: those of ``rware``'s ``Warehouse``.

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
    name = f"rware/{task}"
    warehouse: Any = build(name, Warehouse, {**_parsed(task), **_with_enumerations(arguments)})
    is_cut_off = partial(_has_reached_limit, warehouse)
    # Its layers come first, and are of 3 by 3 cells: no pictures.
    return ParallelCopy(GymnasiumTeam(warehouse, is_cut_off), name, images=False)


def _complete_spec(copy: ParallelCopy, arguments: Mapping[str, Any]) -> EnvironmentSpec:
    warehouse = copy.environment.environment
    team_reward: TeamReward = "shared" if warehouse.reward_type is RewardType.GLOBAL else "sum"
    horizon = warehouse.max_steps or None
    return dataclasses.replace(copy.spec, horizon=horizon, team_reward=team_reward, arguments=dict(arguments))


def _has_reached_limit(warehouse: Any) -> bool:
    return bool(warehouse.max_steps and warehouse._cur_steps >= warehouse.max_steps)


def _parsed(task: str) -> dict[str, Any]:
    """Arguments of ``Warehouse`` that the name stands for; the rest as the package registers them."""
    found = _TASK.fullmatch(task)
    if found is None:
        raise UsageError(f"rware/{task}: expected a name like tiny-2ag: {TASKS[0]}")
    rows, columns = _SHELF_ROWS_COLUMNS[found["size"]]
    agents = int(found["agents"])
    requests = int(agents * _REQUESTS_PER_AGENT[found["difficulty"]])
    if requests < 1:
        raise UsageError(f"rware/{task}: {agents} agents make {requests} requested shelves, expected 1 or more")
    return {
        "shelf_columns": columns,
        "column_height": int(found["height"] or 8),
        "shelf_rows": rows,
        "n_agents": agents,
        "msg_bits": 0,
        "sensor_range": int(found["range"] or 1),
        "request_queue_size": requests,
        "max_inactivity_steps": None,
        "max_steps": 500,
        "reward_type": RewardType.INDIVIDUAL,
        "observation_type": _KINDS[found["kind"]],
        "image_observation_directional": found["upright"] is None,
    }


def _with_enumerations(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """``arguments`` with members of the package's enumerations in place of their names."""
    members = {name: _member(name, kind, arguments[name]) for name, kind in _ENUMERATIONS.items() if name in arguments}
    layers = arguments.get("image_observation_layers")
    if layers is not None:
        members["image_observation_layers"] = [_member("image_observation_layers", ImageLayer, each) for each in layers]
    return {**arguments, **members}


def _member(argument: str, kind: type[Enum], value: Any) -> Any:
    names = {member.name.lower(): member for member in kind}
    if str(value).lower() not in names:
        raise UsageError(unknown_name(f"value of {argument}", str(value), names))
    return names[str(value).lower()]
