"""The StarCraft Multi-Agent Challenge, and any object with its ``MultiAgentEnv`` interface: ``smac/3m``.

The interface: ``get_env_info``, ``reset``, ``step(actions) -> (reward, terminated, info)``, ``get_obs``, ``get_state``,
``get_avail_actions``. Arguments of ours, all others go to the environment:

- ``python``: path of another interpreter that runs the environments, in worker processes, over shared memory. The
  ``smac`` package pins protobuf<3.21, so it needs one. It needs NumPy, and nothing of hmarl.
- ``entry``: import path ``package.module:name`` of another class or function that makes one. Of the arguments that are
  not the caller's own, ``map_name`` (the task) and ``seed``, it is passed those that it takes.
- ``workers``: processes that the B copies are spread over, min(B, CPUs) by default; 0 for this process.
- ``timeout_s``: seconds within which a worker has to reply (300); one that takes longer is stopped, and an error.

An agent whose only legal action is the no-op (number 0) is inactive. The step's one reward is shared out equally among
those that were active, so that the team reward is the *sum*. An episode is truncated when ``info["episode_limit"]`` is
set, else terminated; its success is ``info["battle_won"]``. Copy b gets its seed by ``reset(seed=...)`` where there is
such an argument (every episode), else by its constructor (it is made anew), else by ``seed(...)`` (every episode).
"""

from __future__ import annotations

from typing import Any

from hmarl.sdk.environment import CopyCost
from hmarl.sdk.environments.smac.interface import Package, Request, make_multi_agent
from hmarl.sdk.environments.workers.lifted import LiftedVector
from hmarl.sdk.environments.workers.pool import REPLY_TIMEOUT_S

TASKS = ["MAP, e.g. 3m, 8m, 2s3z, 3s5z, 5m_vs_6m, MMM2, corridor; with env.entry=PACKAGE.MODULE:CLASS any name"]
COPY_COST = CopyCost(memory_bytes=600 << 20, processes=1)  # a StarCraft II each

PACKAGE = Package(
    family="smac",
    entry="smac.env:StarCraft2Env",
    repository="https://github.com/oxwhirl/smac.git",
    maps="https://github.com/oxwhirl/smac/releases (SMAC_Maps.zip)",
)


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
        arguments: those of the environment, e.g. ``difficulty``.

    Raises:
        UsageError: no such interpreter, package, game or argument, or no such interface; says how to install them.
    """
    # SMAC tells a battle that was cut off from one that was lost only when asked to.
    completed = {"continuing_episode": True, **arguments}
    return make_multi_agent(PACKAGE, Request(task, batch_size, python, entry, workers, timeout_s, arguments, completed))
