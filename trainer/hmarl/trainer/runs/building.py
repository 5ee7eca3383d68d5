"""The algorithm that a run's config asks for."""

from __future__ import annotations

import torch

from hmarl.sdk.environment import VectorEnvironment
from hmarl.trainer.algorithms import find_algorithm
from hmarl.trainer.contract.algorithm import Algorithm
from hmarl.trainer.runs.config import RunConfig, device_of


def build_algorithm(config: RunConfig, environment: VectorEnvironment) -> Algorithm:
    """A fresh algorithm, seeded by the run's seed."""
    run = config.run_settings()
    generator = torch.Generator().manual_seed(run.seed)
    return find_algorithm(config.algorithm)(environment.spec, config.settings(), generator, device_of(run))
