"""How fast this machine trains, for the benchmarks."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch

from hmarl.sdk.environments import make
from hmarl.trainer.algorithms import find_algorithm
from hmarl.trainer.experience.rollout import Collector, Rollout
from hmarl.trainer.networks.settings import validate
from hmarl.trainer.runs.seeds import derived_seeds

CPU = torch.device("cpu")


def matrix_product_gflops(size: int = 1024, repeats: int = 10) -> float:
    """float32 rate of this machine, so that ratios to constants can be judged."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    torch.mm(a, b)
    begin = time.perf_counter()
    for _ in range(repeats):
        torch.mm(a, b)
    return 2 * size**3 * repeats / (time.perf_counter() - begin) / 1e9


def peak_gigabytes() -> float:
    """Most memory that this process has held (Linux).

    Unlike getrusage's ru_maxrss, which starts at what the process that started this one had.
    """
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 2**20


class Training:
    """An algorithm and its environment, which train an iteration at a time.

    Args:
        name: of the algorithm.
        task: of the environment.
        batch: environments.
        steps: of a rollout.
        arguments: of the environment.
        settings_of: the algorithm, unlike its defaults.
    """

    def __init__(
        self, name: str, task: str, batch: int, steps: int, arguments: dict[str, Any] | None = None, **settings_of: Any
    ) -> None:
        algorithm_class = find_algorithm(name)
        self.environment = make(task, batch, **(arguments or {}))
        settings = validate(algorithm_class.settings_class, settings_of, "algorithm")
        self.algorithm = algorithm_class(self.environment.spec, settings, torch.Generator().manual_seed(0), CPU)
        self.rollout = Rollout(self.environment.spec, steps, batch, CPU)
        self._collector = Collector(self.environment, self.rollout, derived_seeds(0, 0, batch))

    def iterate(self) -> tuple[float, float]:
        """Seconds of one rollout and of the update after it."""
        begin = time.perf_counter()
        self._collector.collect(self.algorithm)
        collected = time.perf_counter()
        self.algorithm.update(self.rollout, 0.0)
        return collected - begin, time.perf_counter() - collected


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
    training = Training(name, task, batch, steps, arguments, **settings_of)
    training.iterate()
    seconds = [training.iterate() for _ in range(updates)]
    training.environment.close()
    frames, median_rollout = batch * steps, statistics.median(rollout for rollout, _ in seconds)
    median_total = statistics.median(map(sum, seconds))
    return frames / median_rollout, frames / (median_total - median_rollout), frames / median_total
