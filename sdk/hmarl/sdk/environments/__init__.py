"""Environment families, found by name; each family's module is imported only when it is asked for.

``make("mpe/simple_spread", batch_size=64, N=5)`` looks the family up (i) in the table below, (ii) in the entry-point
group ``hmarl.environments``; a name of the form ``package.module:function`` is called directly. A family is a function
``make(task, batch_size, **arguments) -> VectorEnvironment``; the module that it is in may say what a copy costs
(``COPY_COST``, see ``CopyCost``).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

from hmarl.sdk.environment import CopyCost, VectorEnvironment
from hmarl.sdk.environments.authoring.arguments import check_keys
from hmarl.sdk.environments.faulty import split_faults, with_faults
from hmarl.sdk.environments.own_modules import named
from hmarl.sdk.errors import MissingExtraError, UsageError, unknown_name
from hmarl.sdk.faults.model import FaultModel, parse_faults
from hmarl.sdk.spaces import EnvironmentSpec

BUILT_IN_FAMILIES: dict[str, str] = {
    "mpe": "hmarl.sdk.environments.mpe",
    "coordsum": "hmarl.sdk.environments.coordsum",
    "pettingzoo": "hmarl.sdk.environments.pettingzoo",
    "vmas": "hmarl.sdk.environments.vmas",
    "lbf": "hmarl.sdk.environments.lbf",
    "rware": "hmarl.sdk.environments.rware",
    "smac": "hmarl.sdk.environments.smac",
    "smacv2": "hmarl.sdk.environments.smacv2",
    "smax": "hmarl.sdk.environments.smax",
    "mamujoco": "hmarl.sdk.environments.mamujoco",
    "lbfws": "hmarl.sdk.environments.lbfws",
}
# Packages that a family needs beyond the base install, with the extra that brings them.
FAMILY_EXTRAS: dict[str, tuple[str, str]] = {
    "vmas": ("vmas", "vmas"),
    "pettingzoo": ("pettingzoo", "pettingzoo"),
    "lbf": ("lbforaging", "lbf"),
    "rware": ("rware", "rware"),
    "mamujoco": ("mujoco", "mujoco"),
    "smax": ("jaxmarl", "smax"),
}
# Packages that a family needs and no extra brings; making one of its tasks says how to install them.
FAMILY_PACKAGES: dict[str, str] = {"smac": "smac", "smacv2": "smacv2"}


def families() -> dict[str, str]:
    """All known families: name -> module or entry-point value."""
    plugins = {point.name: point.value for point in entry_points(group="hmarl.environments")}
    return {**plugins, **BUILT_IN_FAMILIES}


def _check_family(family: str) -> None:
    """Whether there is such a family; all installed packages are looked through for those that are not built in.

    Raises:
        UsageError: there is none.
    """
    if family not in BUILT_IN_FAMILIES and family not in families():
        raise UsageError(unknown_name("environment family", family, families()))


def _family_maker(name: str) -> tuple[str, Callable[..., VectorEnvironment]]:
    """Split ``family/task`` (or an import path) into the task and the function that makes it."""
    family, separator, task = name.partition("/")
    if ":" in name:
        named(task or name)
    if not separator and ":" in name:
        module_name, _, function = name.partition(":")
        try:
            return name, getattr(importlib.import_module(module_name), function)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"environment '{name}': {error}; expected 'package.module:function'") from error
    _check_family(family)
    if not task:
        raise UsageError(f"environment '{name}': got no task, expected '{family}/TASK'; see 'hmarl-envs {family}'")
    try:
        if family in BUILT_IN_FAMILIES:
            return task, importlib.import_module(BUILT_IN_FAMILIES[family]).make
        (point,) = entry_points(group="hmarl.environments", name=family)
        maker: Callable[..., VectorEnvironment] = point.load()
        return task, maker
    except ModuleNotFoundError as error:
        package, extra = FAMILY_EXTRAS.get(family, (None, None))
        if package is not None and extra is not None and error.name is not None:
            raise MissingExtraError(error.name, extra, f"the environment family '{family}'") from error
        raise


def make(name: str, batch_size: int = 1, **arguments: Any) -> VectorEnvironment:
    """Make B copies of the environment ``name``.

    Args:
        name: ``family/task``, or ``package.module:function`` for a function ``(batch_size, **arguments)``.
        batch_size: B, at least 1.
        arguments: passed to the family; a wrong one is an error that lists those it takes. ``faults`` and
            ``faults.NAME`` are faults on purpose, in whatever environment; see ``hmarl.sdk.faults``.

    Raises:
        UsageError: unknown family, task or argument.
        MissingExtraError: the family needs a package that is not installed.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size: got {batch_size}, expected at least 1")
    own, faults = split_faults(arguments)
    model = parse_faults(*faults)
    task, maker = _family_maker(name)
    check_keys(f"environment '{name}'", maker, own, ours=("task", "batch_size"))
    environment = maker(batch_size=batch_size, **own) if task == name else maker(task, batch_size=batch_size, **own)
    _check(name, environment)
    return environment if model == FaultModel() else with_faults(environment, model)


def check_request(name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse what ``make`` would refuse, as far as that is cheap to find out: before much is loaded and built.

    One copy is made and closed where a family says what copies cost, and one needs no program of its own. Elsewhere,
    and of a function of the user's own, it is names alone that are checked.

    Args:
        name: as of ``make``.
        arguments: as of ``make``.

    Raises:
        UsageError: unknown family, task or argument, or a wrong value.
        MissingExtraError: the family needs a package that is not installed.
    """
    own, faults = split_faults(arguments)
    parse_faults(*faults)
    check_keys(f"environment '{name}'", _family_maker(name)[1], own, ours=("task", "batch_size"))
    cheap_spec(name, arguments)


def cheap_spec(name: str, arguments: Mapping[str, Any]) -> EnvironmentSpec | None:
    """The spec of what ``make`` would make, where that is cheap to find out (see ``check_request``); None elsewhere.

    Args:
        name: as of ``make``.
        arguments: as of ``make``.

    Raises:
        UsageError: unknown family, or, where a copy is made, task or argument, or a wrong value.
        MissingExtraError: the family needs a package that is not installed.
    """
    cost = copy_cost(name)
    if _family_maker(name)[0] == name or cost is None or cost.processes:
        return None
    environment = make(name, 1, **arguments)
    environment.close()
    return environment.spec


def _check(name: str, environment: Any) -> None:
    """Refuse what no network could be built for; ``hmarl-check-env`` looks at the rest."""
    spec = getattr(environment, "spec", None)
    if not isinstance(spec, EnvironmentSpec):
        if hasattr(environment, "possible_agents"):
            raise UsageError(f"environment '{name}': got one of PettingZoo's API, which is called pettingzoo/{name}")
        return
    sizes = {f"agent '{agent.id}': observation_size": agent.observation_size for agent in spec.agents}
    for where, size in {**sizes, "state_size": spec.state_size}.items():
        if size < 1:
            environment.close()
            raise UsageError(f"environment '{name}': {where}: got {size}, expected at least 1 (may be constant)")


def copy_cost(name: str) -> CopyCost | None:
    """What every further copy of the environment ``name`` costs, as its module declares it; None when it does not.

    Raises:
        UsageError: unknown family.
        MissingExtraError: the family needs a package that is not installed.
    """
    _, maker = _family_maker(name)
    module = sys.modules.get(getattr(maker, "__module__", ""))
    declared = getattr(module, "COPY_COST", None)
    return declared if isinstance(declared, CopyCost) else None


def tasks(family: str) -> list[str]:
    """Names of the family's tasks (patterns where there are endlessly many), for ``hmarl-envs``.

    Raises:
        UsageError: unknown family.
    """
    _check_family(family)
    module = importlib.import_module(families()[family].partition(":")[0])
    return list(getattr(module, "TASKS", []))
