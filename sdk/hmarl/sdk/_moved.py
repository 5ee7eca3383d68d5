"""Modules of version 0.1 that have another address now: what is imported from the old one is found, with a warning."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Collection
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# The old address of a module, and where its names are now.
MOVED: dict[str, tuple[str, ...]] = {
    "hmarl.sdk.agent": ("hmarl.sdk.clients.agent", "hmarl.sdk.clients.local_agent", "hmarl.sdk.errors"),
    "hmarl.sdk.annotation": ("hmarl.sdk.evaluation.annotation",),
    "hmarl.sdk.async_client": ("hmarl.sdk.clients.async_client",),
    "hmarl.sdk.client": ("hmarl.sdk.clients.client", "hmarl.sdk.clients.async_client"),
    "hmarl.sdk.clients.fallback": ("hmarl.sdk.fallback",),
    "hmarl.sdk.conformance": ("hmarl.sdk.environments.conformance",),
    "hmarl.sdk.statistics": ("hmarl.sdk.evaluation.statistics",),
    "hmarl.sdk.teams": ("hmarl.sdk.evaluation.deployed_teams", "hmarl.sdk.clients.endpoints"),
}


class MovedModule(ModuleType):
    """Stands at an old address.

    Args:
        address: the old one.
        face: names that are better imported from ``hmarl.sdk`` itself.
    """

    def __init__(self, address: str, face: Collection[str]) -> None:
        super().__init__(address, f"Moved to {' and '.join(MOVED[address])}.")
        self.__spec__ = ModuleSpec(address, None)
        self._face = face

    def __getattr__(self, name: str) -> Any:
        for home in () if name.startswith("__") else MOVED[self.__name__]:
            module = importlib.import_module(home)
            if hasattr(module, name):
                source = "hmarl.sdk" if name in self._face else home
                warnings.warn(
                    f"{self.__name__} has moved: from {source} import {name}", DeprecationWarning, stacklevel=2
                )
                value = self.__dict__[name] = getattr(module, name)
                return value
        raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")


def register(face: Collection[str]) -> None:
    """Put a stand-in at every old address.

    Args:
        face: the names of ``hmarl.sdk``.
    """
    for address in MOVED:
        module = MovedModule(address, face)
        sys.modules[address] = module
        package, _, name = address.rpartition(".")
        setattr(importlib.import_module(package), name, module)
