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


_TRUST_REGION: dict[str, Any] = {"kl_limit": 0.01, "curvature_fraction": 0.3, "entropy_coefficient": 0.03}
_CLIPPED: dict[str, Any] = {"learning_rate": 7e-4, "epochs": 10, "minibatches": 2, "entropy_coefficient": 0.01}
# Many small rollouts learn faster than few large ones on these tasks.
_MPE_RUN: dict[str, Any] = {"environments": 128, "rollout_length": 25, "threads": 1}
# Gaussian policies keep exploring without an entropy bonus.
_NO_BONUS: dict[str, Any] = {"entropy_coefficient": 0.0}
_VMAS_RUN: dict[str, Any] = {"environments": 32, "rollout_length": 100, "threads": 1}

PRESETS: tuple[Preset, ...] = (
    Preset("hcpo", "mpe/*", 2_500_000, "simple_spread: return about -35 in 3 minutes", _TRUST_REGION, _MPE_RUN),
    Preset("hatrpo", "mpe/*", 2_000_000, "simple_spread: return about -35 in 2 minutes", _TRUST_REGION, _MPE_RUN),
    Preset("happo", "mpe/*", 2_000_000, "simple_spread: return -34 to -44 by seed in 2 minutes", _CLIPPED, _MPE_RUN),
    Preset(
        "hcpo", "vmas/navigation", 500_000, "return about 2.2 in 3 minutes", {**_TRUST_REGION, **_NO_BONUS}, _VMAS_RUN
    ),
    Preset(
        "hatrpo", "vmas/navigation", 500_000, "return about 2.9 in 2 minutes", {**_TRUST_REGION, **_NO_BONUS}, _VMAS_RUN
    ),
    Preset("happo", "vmas/navigation", 500_000, "return about 3.8 in 2 minutes", {**_CLIPPED, **_NO_BONUS}, _VMAS_RUN),
)


def find_preset(algorithm: str, environment: str) -> Preset | None:
    """The first preset that fits, or None."""
    for preset in PRESETS:
        if preset.algorithm == algorithm and fnmatch.fnmatchcase(environment, preset.environment):
            return preset
    return None
