"""Fixtures for all tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# Pytest's importlib mode leaves sys.path alone; the helper modules beside this file are imported by name.
sys.path.insert(0, str(Path(__file__).parent))

from hmarl.runtime.bundle import Bundle
from toy_bundle import write_toy_bundle


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of two discrete agents with mask, recurrent state, instructions and noises; do not change its files."""
    return write_toy_bundle(tmp_path_factory.mktemp("toy") / "bundle")
