"""Presets: settings with which an algorithm solves a task on two cores in minutes."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Settings that differ from the defaults.

    Attributes:
        algorithm, environment: names; the environment may hold shell wildcards.
        steps: environment steps that solve the task.
        about: what to expect, measured.
    """

    algorithm: str
    environment: str
    steps: int
    about: str
    algorithm_settings: dict[str, Any] = field(default_factory=dict)
    run_settings: dict[str, Any] = field(default_factory=dict)
    environment_arguments: dict[str, Any] = field(default_factory=dict)


PRESETS: tuple[Preset, ...] = ()


def find_preset(algorithm: str, environment: str) -> Preset | None:
    """The first preset that fits, or None."""
    for preset in PRESETS:
        if preset.algorithm == algorithm and fnmatch.fnmatchcase(environment, preset.environment):
            return preset
    return None
