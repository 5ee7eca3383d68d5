"""Programs of ``scripts/`` as modules, whose functions tests call."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from installed import ROOT


def load_script(name: str) -> ModuleType:
    """``scripts/NAME.py``."""
    found = importlib.util.spec_from_file_location(f"{name}_script", ROOT / "scripts" / f"{name}.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # where its dataclasses look their annotations up
    found.loader.exec_module(module)
    return module
