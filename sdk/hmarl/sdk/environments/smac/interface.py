"""What ``smac`` and ``smacv2`` share: environments with SMAC's interface, in this interpreter or in another one."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gymnasium import spaces

from hmarl.sdk.clock import checked_seconds
from hmarl.sdk.environments.own_modules import named
from hmarl.sdk.environments.workers.lifted import CopyNumbers, LiftedVector, checked_workers, made
from hmarl.sdk.environments.workers.pool import CopySource, describe
from hmarl.sdk.environments.workers.process import ContractError, EntryError, MultiAgentCopy
from hmarl.sdk.errors import EnvironmentFault, UsageError
from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec

# As the process sees it that executes the file of the worker.
_MAKER = "__main__:make_multi_agent_copy"
_GAME = (
    "StarCraft II itself: Blizzard's Linux packages, https://github.com/Blizzard/s2client-proto#linux-packages, "
    "unpacked to ~/StarCraftII or where the environment variable SC2PATH says; the maps, for its folder Maps: {maps}"
)


@dataclass(frozen=True)
class Package:
    """The package that a family is named after.

    Attributes:
        family: the family's name.
        entry: import path of its environment's class.
        repository: where pip gets it from.
        maps: where its maps come from.
    """

    family: str
    entry: str
    repository: str
    maps: str

    @property
    def instructions(self) -> str:
        """How to make a virtual environment for it, and where the game comes from."""
        venv = f"{self.family}-venv"
        return (
            "it pins protobuf<3.21, so it needs a virtual environment of its own: "
            f"python3 -m venv {venv} && {venv}/bin/pip install numpy 'protobuf<3.21' 'git+{self.repository}', "
            f"then --set env.python={venv}/bin/python. {self.game}. "
            "Any other object with the interface: --set env.entry=PACKAGE.MODULE:CLASS"
        )

    @property
    def game(self) -> str:
        """Where the game and the maps come from."""
        return _GAME.format(maps=self.maps)


@dataclass(frozen=True)
class Request:
    """What ``make`` of a family was asked for.

    Attributes:
        task: the part of the name after the slash.
        batch_size: B.
        python: path of another interpreter to run the environments, None for this one.
        entry: import path of a class or function, None for the package's own.
        workers: number of worker processes, None for the default.
        timeout_s: seconds within which a worker has to reply.
        arguments: what the caller gave for the environment.
        completed: the same for the package's own entry, its defaults put in.
    """

    task: str
    batch_size: int
    python: str | None
    entry: str | None
    workers: int | None
    timeout_s: float
    arguments: Mapping[str, Any]
    completed: Mapping[str, Any]

    @property
    def given(self) -> dict[str, Any]:
        """All that the caller gave, for ``EnvironmentSpec.arguments``."""
        own = {"python": self.python, "entry": self.entry}
        return {**{name: value for name, value in own.items() if value is not None}, **self.arguments}

    @property
    def passed(self) -> dict[str, Any]:
        """Keyword arguments for the entry."""
        return dict(self.completed if self.entry is None else self.arguments)

    @property
    def offered(self) -> dict[str, Any]:
        """Further ones, passed when it takes them."""
        return {"map_name": self.task}


def make_multi_agent(package: Package, request: Request) -> LiftedVector:
    """Make B copies of an environment with SMAC's interface.

    Raises:
        UsageError: no such interpreter, package, game or argument, or no such interface.
    """
    name = f"{package.family}/{request.task}"
    _check(request)
    python = None if request.python is None else _interpreter(request.python)
    fewest = 0 if python is None and request.workers == 0 else 1
    workers = checked_workers(request.workers, request.batch_size, fewest)
    settings: dict[str, Any] = {
        "entry": named(request.entry) if request.entry else package.entry,
        "arguments": request.passed,
        "offered": request.offered,
    }
    source = CopySource(_MAKER, settings, python, checked_seconds("timeout_s", request.timeout_s))
    make_copy = partial(MultiAgentCopy, **settings)
    with CopyNumbers(request.batch_size) as numbers:
        return _lifted(name, package, request, make_copy, source, numbers, workers)


def _lifted(
    name: str,
    package: Package,
    request: Request,
    make_copy: Callable[[], MultiAgentCopy],
    source: CopySource,
    numbers: CopyNumbers,
    workers: int,
) -> LiftedVector:
    """The copies, once all settings have been checked."""
    python, first = source.python, None
    try:
        if workers == 0:
            first = made(make_copy, numbers.numbers[0])
        description = describe(source, numbers.numbers[0]) if first is None else first.description
    except EntryError as error:
        where = f"{name}: '{source.settings['entry']}' could not be imported by {python or sys.executable}: {error}"
        raise UsageError(where if request.entry else f"{where}; {package.instructions}") from error
    except (ContractError, EnvironmentFault) as error:
        raise UsageError(f"{name}: {error}{_needs(python)}") from error
    if request.entry is None:
        _check_game(name, package)
    spec = _spec(name, description, request)
    return LiftedVector(spec, request.batch_size, workers, make_copy, source, numbers, first)


def _check(request: Request) -> None:
    if "seed" in request.passed:
        raise UsageError("seed: every copy is given its own, expected no such argument")
    if request.entry is not None and not (isinstance(request.entry, str) and all(request.entry.partition(":"))):
        raise UsageError(f"entry: got {request.entry!r}, expected an import path PACKAGE.MODULE:CLASS")


def _interpreter(python: Any) -> str:
    """Absolute path of an executable, symbolic links kept: they are what makes a virtual environment."""
    found = shutil.which(os.path.expanduser(python)) if isinstance(python, str) else None
    if found is None:
        raise UsageError(f"python: got {python!r}, expected the path of a Python interpreter, e.g. VENV/bin/python")
    return os.path.abspath(found)


def _needs(python: str | None) -> str:
    return "" if python is None else f" ({python} has to be Python 3.8 or newer, with NumPy)"


def _check_game(name: str, package: Package) -> None:
    """On Linux the game's folder is known beforehand; without it, it would fail at the first step, and less clearly."""
    folder = Path(os.environ.get("SC2PATH", "~/StarCraftII")).expanduser()
    if sys.platform == "linux" and not folder.is_dir():
        raise UsageError(f"{name}: there is no folder {folder}. {package.game}")


def _spec(name: str, description: Mapping[str, int], request: Request) -> EnvironmentSpec:
    agent = partial(
        AgentSpec,
        observation_size=description["observation_size"],
        action_space=spaces.Discrete(description["actions"]),
        has_action_mask=True,
    )
    return EnvironmentSpec(
        name=name,
        agents=tuple(agent(id=f"agent_{index}") for index in range(description["agents"])),
        state_size=description["state_size"],
        horizon=description["episode_limit"] or None,
        team_reward="sum",
        arguments=request.given,
        has_success=True,
        # Of the packages it is known that they keep to it.
        horizon_guessed=request.entry is not None,
    )
