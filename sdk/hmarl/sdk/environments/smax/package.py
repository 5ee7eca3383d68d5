"""SMAX out of JaxMARL, without JaxMARL's other environments.

The package's ``__init__`` imports all of its environments with their drawing libraries, which takes longer than all
the rest, and prints. While SMAX is imported, empty packages stand in for the two above it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

# JAX would take three quarters of a GPU's memory when it first sees one, but the networks need it too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


@contextmanager
def _empty_packages() -> Iterator[None]:
    found = importlib.util.find_spec("jaxmarl")
    if found is None or found.submodule_search_locations is None:
        raise ModuleNotFoundError("No module named 'jaxmarl'", name="jaxmarl")
    top = Path(next(iter(found.submodule_search_locations)))
    stand_ins: dict[str, ModuleType] = {}
    for name, folder in (("jaxmarl", top), ("jaxmarl.environments", top / "environments")):
        if name not in sys.modules:
            stand_ins[name] = ModuleType(name)
            stand_ins[name].__path__ = [str(folder)]
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        # Whoever imports JaxMARL itself later gets the whole of it, with the modules that are there already.
        for name in stand_ins:
            del sys.modules[name]


with _empty_packages():
    _environments = importlib.import_module("jaxmarl.environments.smax.heuristic_enemy_smax_env")
    _maps = importlib.import_module("jaxmarl.environments.smax.smax_env")

HeuristicEnemySMAX: Any = _environments.HeuristicEnemySMAX
Scenario: Any = _maps.Scenario
# Name of a map -> its Scenario: units, sizes of the teams, and whether units and places are drawn.
SCENARIOS: dict[str, Any] = _maps.MAP_NAME_TO_SCENARIO
