"""SMACv2, whose units and places are drawn anew every episode: ``smacv2/10gen_terran``.

Arguments of ours are those of the family ``smac``, and

- ``n_units``, ``n_enemies``: size of the two teams (5, and as many).
- ``capability_config``: what is drawn, and how; by default the race's three kinds of units, with weights 0.45, 0.45 and
  0.1, and start positions that surround the team or mirror the enemy's. It replaces ``n_units`` and ``n_enemies``.

All others go to the environment; the defaults are those of the package's example. Its distributions draw from
generators that the package seeds itself, so that an episode does *not* follow from the seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hmarl.sdk.environment import CopyCost
from hmarl.sdk.environments.smac.interface import Package, Request, make_multi_agent
from hmarl.sdk.environments.workers.lifted import LiftedVector
from hmarl.sdk.environments.workers.pool import REPLY_TIMEOUT_S
from hmarl.sdk.errors import UsageError, unknown_name

TASKS = ["10gen_terran", "10gen_protoss", "10gen_zerg", "any name, with env.entry=PACKAGE.MODULE:CLASS"]
COPY_COST = CopyCost(memory_bytes=600 << 20, processes=1)  # a StarCraft II each

PACKAGE = Package(
    family="smacv2",
    entry="smacv2.env.starcraft2.wrapper:StarCraftCapabilityEnvWrapper",
    repository="https://github.com/oxwhirl/smacv2.git",
    maps="https://github.com/oxwhirl/smacv2 (smacv2/env/starcraft2/maps/SMAC_Maps)",
)
# Kinds of units, the last of which cannot make up a whole team.
_UNITS = {
    "10gen_terran": ("marine", "marauder", "medivac"),
    "10gen_protoss": ("stalker", "zealot", "colossus"),
    "10gen_zerg": ("zergling", "hydralisk", "baneling"),
}
_DEFAULTS = {
    "continuing_episode": True,
    "conic_fov": False,
    "obs_own_pos": True,
    "use_unit_ranges": True,
    "min_attack_range": 2,
    "fully_observable": False,
}


def make(
    task: str,
    batch_size: int,
    *,
    python: str | None = None,
    entry: str | None = None,
    workers: int | None = None,
    timeout_s: float = REPLY_TIMEOUT_S,
    **arguments: Any,
) -> LiftedVector:
    """Make B copies of a battle.

    Args:
        task: the map's name.
        batch_size: B.
        python: path of the interpreter, None for this one.
        entry: import path of another environment with the interface.
        workers: number of worker processes; 0 runs all copies in this process.
        timeout_s: seconds within which a worker process has to reply.
        arguments: see the module's description.

    Raises:
        UsageError: no such interpreter, package, game or argument, or no such interface; says how to install them.
    """
    completed = {**_DEFAULTS, **_with_capabilities(task, arguments)} if entry is None else {}
    return make_multi_agent(PACKAGE, Request(task, batch_size, python, entry, workers, timeout_s, arguments, completed))


def _with_capabilities(task: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """``arguments`` with ``capability_config`` in place of the sizes of the teams."""
    rest = {name: value for name, value in arguments.items() if name not in ("n_units", "n_enemies")}
    if "capability_config" in arguments:
        return rest
    if task not in _UNITS:
        raise UsageError(unknown_name("smacv2 task", task, _UNITS))
    units = arguments.get("n_units", 5)
    enemies = arguments.get("n_enemies", units)
    for name, value in (("n_units", units), ("n_enemies", enemies)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{name}: got {value!r}, expected a whole number, 1 or more")
    teams = {
        "dist_type": "weighted_teams",
        "unit_types": list(_UNITS[task]),
        "exception_unit_types": [_UNITS[task][-1]],
        "weights": [0.45, 0.45, 0.1],
        "observe": True,
    }
    places = {"dist_type": "surrounded_and_reflect", "p": 0.5, "map_x": 32, "map_y": 32}
    config = {"n_units": units, "n_enemies": enemies, "team_gen": teams, "start_positions": places}
    return {**rest, "capability_config": config}
