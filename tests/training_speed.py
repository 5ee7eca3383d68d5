"""How fast this machine trains, for the benchmarks."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from hmarl.sdk.environments import make
from hmarl.trainer.algorithms import find_algorithm
from hmarl.trainer.config import validate
from hmarl.trainer.rollout import Collector, Rollout
from hmarl.trainer.training import derived_seeds

CPU = torch.device("cpu")


def matrix_product_gflops(size: int = 1024, repeats: int = 10) -> float:
    """float32 rate of this machine, so that ratios to constants can be judged."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    torch.mm(a, b)
    begin = time.perf_counter()
    for _ in range(repeats):
        torch.mm(a, b)
    return 2 * size**3 * repeats / (time.perf_counter() - begin) / 1e9


def frames_per_second(
    name: str,
    task: str,
    batch: int,
    steps: int,
    updates: int,
    arguments: dict[str, Any] | None = None,
    **settings_of: Any,
) -> tuple[float, float, float]:
    """Median frames/s of rollout, update and total over ``updates`` iterations after one warm-up."""
    algorithm_class = find_algorithm(name)
    environment = make(task, batch, **(arguments or {}))
    settings = validate(algorithm_class.settings_class, settings_of, "algorithm")
    algorithm = algorithm_class(environment.spec, settings, torch.Generator().manual_seed(0), CPU)
    rollout = Rollout(environment.spec, steps, batch, CPU)
    collector = Collector(environment, rollout, derived_seeds(0, 0, batch))
    rollouts, total = [], []
    for iteration in range(updates + 1):
        begin = time.perf_counter()
        collector.collect(algorithm)
        collected = time.perf_counter()
        algorithm.update(rollout, 0.0)
        if iteration:
            rollouts.append(collected - begin)
            total.append(time.perf_counter() - begin)
    environment.close()
    frames, median_rollout, median_total = batch * steps, statistics.median(rollouts), statistics.median(total)
    return frames / median_rollout, frames / (median_total - median_rollout), frames / median_total
