"""hmarl-envs: which environment families there are, and which tasks each of them has."""

from __future__ import annotations

import importlib.util
import sys
from typing import NoReturn

from hmarl.runtime.command_line import AS_JSON, argument, command
from hmarl.sdk.commands._common import print_json, run
from hmarl.sdk.commands._console import make_console, print_listing
from hmarl.sdk.environments import FAMILY_EXTRAS, FAMILY_PACKAGES, families, tasks
from hmarl.sdk.errors import MissingExtraError


@command(
    "hmarl-envs",
    argument("family", "list this family's tasks", required=False),
    AS_JSON,
    examples=("hmarl-envs", "hmarl-envs mpe"),
)
def environments(family: str | None, as_json: bool) -> None:
    """List the environment families, or the tasks of one family."""
    if family is None:
        _list_families(as_json)
    else:
        _list_tasks(family, as_json)


def _list_families(as_json: bool) -> None:
    names = sorted(families())
    if as_json:
        print_json(
            {"families": {name: {"installed": _installed(name), "extra": _missing_extra(name)} for name in names}}
        )
        return
    print_listing(make_console(), ("family", "state"), [(name, _state(name)) for name in names])


def _installed(family: str) -> bool:
    """Whether the package that a family needs is there; a family needs one at most."""
    package = FAMILY_PACKAGES.get(family) or FAMILY_EXTRAS.get(family, (None,))[0]
    return package is None or importlib.util.find_spec(package) is not None


def _missing_extra(family: str) -> str | None:
    """The extra that a family needs and that is not installed."""
    return None if _installed(family) or family not in FAMILY_EXTRAS else FAMILY_EXTRAS[family][1]


def _state(family: str) -> str:
    if _installed(family):
        return "installed"
    if family in FAMILY_EXTRAS:
        return f"missing: pip install 'hmarl[{FAMILY_EXTRAS[family][1]}]'"
    return f"the package '{FAMILY_PACKAGES[family]}' is not installed here: see docs/environments.md"


def _list_tasks(family: str, as_json: bool) -> None:
    try:
        found = tasks(family)
    except ModuleNotFoundError as error:
        package, extra = FAMILY_EXTRAS.get(family, (None, None))
        if package is None or extra is None or error.name is None:
            raise
        raise MissingExtraError(error.name, extra, f"the environment family '{family}'") from error
    if as_json:
        print_json({"family": family, "tasks": found})
        return
    for task in found:
        print(f"{family}/{task}")


def main() -> NoReturn:
    """Entry point of ``hmarl-envs``."""
    sys.exit(run(environments))
