"""The algorithm that a run's config asks for."""

from __future__ import annotations

from typing import Protocol

import torch

from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.algorithms import find_algorithm
from hmarl.trainer.contract.algorithm import Algorithm
from hmarl.trainer.runs.config import RunConfig, device_of


class Specified(Protocol):
    """An environment, or what stands for one."""

    @property
    def spec(self) -> EnvironmentSpec:
        """Its agents and their spaces."""
        ...


def build_algorithm(config: RunConfig, environment: Specified) -> Algorithm:
    """A fresh algorithm, seeded by the run's seed."""
    run = config.run_settings()
    generator = torch.Generator().manual_seed(run.seed)
    return find_algorithm(config.algorithm)(environment.spec, config.settings(), generator, device_of(run))
