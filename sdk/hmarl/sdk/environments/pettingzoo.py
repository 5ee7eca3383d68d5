"""Any PettingZoo parallel environment, by import path: ``pettingzoo/mpe2.simple_spread_v3:parallel_env``.

Arguments of ours, all others go to the function:

- ``workers``: processes that the B copies are spread over, 0 for this process; min(B, CPUs) by default, 0 for B = 1.
- ``timeout_s``: seconds within which a worker has to make a step (300); one that takes longer is taken for hung.
- ``team_reward``: "sum" (default), "mean" or "shared".
- ``horizon``: steps after which the environment itself cuts an episode off, which is then held to it; null for unknown.
  By default an attribute of the environment (``max_cycles`` and the like) is taken for it, a guess that only describes.
- ``control_period_s``: seconds between two steps; by default 1 / ``metadata["render_fps"]``.
- ``action_masks``: true where agents with discrete actions bring masks that are not there at the first reset yet,
  false to pass over all; by default those have masks who bring one at the first reset, and one that appears later is
  an error.
- ``images``: false makes vectors of float32 of observations and states of rank 3, which otherwise are pictures (height,
  width, channels), uint8 or float32.

Of these, what the function itself names as a parameter is passed to it as well. A parameter ``copy_index`` that is not
given is the copy's number, from 0, which no other copy of this process has at that time.

Copy b starts its first episode with ``reset(seed=seeds[b])`` and its n-th auto-reset with the first 31 bits of
``SeedSequence([seeds[b], n])``, so that a whole run is reproducible from its seeds, whatever B and ``workers``.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_args

import numpy as np

from hmarl.sdk.environments.authoring.arguments import check_keys, parameters_of, what_it_takes
from hmarl.sdk.environments.workers.lifted import LiftedVector, lift
from hmarl.sdk.environments.workers.parallel_copy import ParallelCopy, check_is_parallel
from hmarl.sdk.environments.workers.pool import REPLY_TIMEOUT_S
from hmarl.sdk.environments.workers.process import COPY_INDEX, FAILURES, explained
from hmarl.sdk.errors import MissingExtraError, UsageError, did_you_mean
from hmarl.sdk.spaces import EnvironmentSpec, TeamReward

TASKS = ["PACKAGE.MODULE:FUNCTION, e.g. mpe2.simple_spread_v3:parallel_env"]

# Packages that an extra of ours installs: import name -> extra.
_EXTRAS = {"mpe2": "mpe", "pettingzoo": "pettingzoo", "pygame": "butterfly", "pymunk": "butterfly"}
_HORIZON_NAMES = ("max_cycles", "max_steps", "horizon", "max_episode_steps", "_max_episode_steps", "episode_limit")
_OWN_ARGUMENTS = ("team_reward", "horizon", "control_period_s", "action_masks", "images")


def make(
    task: str, batch_size: int, *, workers: int | None = None, timeout_s: float = REPLY_TIMEOUT_S, **arguments: Any
) -> LiftedVector:
    """Make B copies of a PettingZoo parallel environment.

    Args:
        task: import path ``package.module:function`` of a function that returns a parallel environment.
        batch_size: B.
        workers: number of worker processes; 0 runs all copies in this process.
        timeout_s: seconds within which a worker process has to make a step.
        arguments: see the module's description.

    Raises:
        UsageError: no such module or function, an argument it does not take, a space that cannot be used.
        MissingExtraError: mpe2 or pettingzoo is not installed.
    """
    complete = partial(_complete_spec, task=task, arguments=arguments)
    return lift(make_copy, {"task": task, "arguments": arguments}, complete, batch_size, workers, timeout_s)


def make_copy(task: str, arguments: Mapping[str, Any]) -> ParallelCopy:
    """One environment behind flat arrays; also called by the worker processes.

    Raises:
        UsageError: as ``make``.
        MissingExtraError: as ``make``.
    """
    name, function = f"pettingzoo/{task}", _import_function(task)
    parameters = parameters_of(function)
    passed = {key: value for key, value in arguments.items() if key not in _OWN_ARGUMENTS or key in parameters}
    number = os.environ.get(COPY_INDEX)
    if "copy_index" in parameters and number is not None:
        passed = {"copy_index": int(number), **passed}
    check_keys(name, function, passed, others=(*_OWN_ARGUMENTS, "workers", "timeout_s"))
    masks = arguments.get("action_masks")
    if masks is not None and not isinstance(masks, bool):
        raise UsageError(f"action_masks: got {masks!r}, expected true or false")
    images = arguments.get("images", True)
    if not isinstance(images, bool):
        raise UsageError(f"images: got {images!r}, expected true or false")
    try:
        environment = function(**passed)
    except FAILURES as error:
        given = ", ".join(f"{key}={value!r}" for key, value in passed.items()) or "no arguments"
        raise UsageError(f"{name} with {given}: {explained(error)}; {what_it_takes(function)}") from error
    check_is_parallel(environment, name)
    return ParallelCopy(environment, name, masks, images)


def _import_function(task: str) -> Callable[..., Any]:
    module_name, colon, function_name = task.partition(":")
    if not (module_name and colon and function_name):
        raise UsageError(f"pettingzoo/{task}: expected an import path PACKAGE.MODULE:FUNCTION")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        package = (error.name or module_name).partition(".")[0]
        if package in _EXTRAS and error.name == package:
            raise MissingExtraError(package, _EXTRAS[package], f"pettingzoo/{task}") from error
        tried = f"tried to import '{module_name}': {error}"
        hint = "" if error.name != package else f"; is the package that provides '{package}' installed?"
        raise UsageError(f"pettingzoo/{task}: {tried}{hint}") from error
    except FAILURES as error:
        raise UsageError(f"pettingzoo/{task}: tried to import '{module_name}': {explained(error)}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [name for name in dir(module) if callable(getattr(module, name)) and not name.startswith("_")]
        hint = did_you_mean(function_name, known)
        raise UsageError(f"pettingzoo/{task}: module '{module_name}' has no function '{function_name}'{hint}")
    found: Callable[..., Any] = function
    return found


def _complete_spec(copy: ParallelCopy, task: str, arguments: Mapping[str, Any]) -> EnvironmentSpec:
    """The copy's spec with reward, horizon and control period, given or found in the environment."""
    team_reward = arguments.get("team_reward", "sum")
    if team_reward not in get_args(TeamReward):
        raise UsageError(f"team_reward: got {team_reward!r}, expected one of {', '.join(get_args(TeamReward))}")
    horizon = arguments.get("horizon", _found_horizon(copy.environment))
    if horizon is not None and (isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1):
        raise UsageError(f"horizon: got {horizon!r}, expected a whole number, 1 or more")
    fps = (getattr(copy.environment, "metadata", None) or {}).get("render_fps")
    period = arguments.get("control_period_s", 1.0 / fps if fps else None)
    if period is not None and (isinstance(period, bool) or not isinstance(period, int | float) or period <= 0):
        raise UsageError(f"control_period_s: got {period!r}, expected a positive number of seconds")
    return dataclasses.replace(
        copy.spec,
        name=f"pettingzoo/{task}",
        team_reward=team_reward,
        horizon=horizon,
        horizon_guessed="horizon" not in arguments and horizon is not None,
        control_period_s=period,
        arguments=dict(arguments),
    )


def _found_horizon(environment: Any) -> int | None:
    """The episode's length by one of its usual names, in the environment or what it wraps."""
    aec = getattr(environment, "aec_env", None)
    layers = [environment, getattr(environment, "unwrapped", None), getattr(aec, "unwrapped", None)]
    for layer in layers:
        for name in _HORIZON_NAMES:
            value = getattr(layer, name, None)
            if isinstance(value, int | np.integer) and not isinstance(value, bool) and value > 0:
                return int(value)
    return None
