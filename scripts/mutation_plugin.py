"""What pytest does besides while mutmut runs it; ``mutation.py`` puts this file where pytest finds it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from mutmut.state import state

# What torch imports when it is used first takes a second: once, before the mutants are forked, and not in each of them.
_BEFOREHAND = ("torch._dynamo", "torch.distributed.tensor")
_reached: dict[Any, set[str]] = {}


def pytest_collection_finish() -> None:
    """Import what the tests that were collected will need."""
    if "torch" in sys.modules:
        for name in _BEFOREHAND:
            importlib.import_module(name)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any) -> Iterator[Any]:
    """Note which functions a fixture reaches. mutmut counts them for the first of the tests that share it only."""
    before = set(state()._stats)
    result = yield
    _reached[fixturedef] = state()._stats - before
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: Any) -> None:
    """Count what a test's fixtures reach for the test, while mutmut finds out which tests reach which function."""
    if os.environ.get("MUTANT_UNDER_TEST") != "stats":
        return
    for definitions in item._fixtureinfo.name2fixturedefs.values():
        for definition in definitions:
            state()._stats |= _reached.get(definition, set())
