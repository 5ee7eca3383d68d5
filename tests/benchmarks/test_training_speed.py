"""Training speed on mpe/simple_spread with HARL's network and epochs, at HARL's batch and at larger ones.

HARL is on no package index, so its figures are constants measured once on a two-core AMD EPYC machine: 20 environments
× 200 steps, HAPPO 948 and HATRPO 665 frames/s. The machine's matrix-product rate is printed beside every ratio.
"""

from __future__ import annotations

import statistics
import time

import pytest
import torch

from hmarl.sdk.environments import make
from hmarl.trainer.algorithms import find_algorithm
from hmarl.trainer.config import validate
from hmarl.trainer.rollout import Collector, Rollout
from hmarl.trainer.training import derived_seeds

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(900)]

HARL_FRAMES_PER_S = {"happo": 948.0, "hatrpo": 665.0}
HARL_SETTINGS = {
    "hidden_sizes": (128, 128),
    "critic_hidden_sizes": (128, 128),
    "normalise_layers": True,
    "normalise_observations": False,
    "critic_epochs": 5,
    "critic_minibatches": 1,
}
CPU = torch.device("cpu")


def matrix_product_gflops(size: int = 1024, repeats: int = 10) -> float:
    """float32 rate of this machine, so that ratios to constants can be judged."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    torch.mm(a, b)
    begin = time.perf_counter()
    for _ in range(repeats):
        torch.mm(a, b)
    return 2 * size**3 * repeats / (time.perf_counter() - begin) / 1e9


def frames_per_second(name: str, batch: int, steps: int, updates: int, **more: float) -> tuple[float, float, float]:
    """Median frames/s of rollout, update and total over ``updates`` iterations after one warm-up."""
    algorithm_class = find_algorithm(name)
    environment = make("mpe/simple_spread", batch)
    settings = validate(algorithm_class.settings_class, {**HARL_SETTINGS, **more}, "algorithm")
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


@pytest.mark.parametrize(
    ("name", "more"), [("happo", {}), ("hatrpo", {}), ("hatrpo", {"curvature_fraction": 1.0}), ("hcpo", {})]
)
def test_training_speed(name: str, more: dict[str, float], capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(2)
    with capsys.disabled():
        print(f"\n{name} {more or ''}, HARL's network (128-128, layer normalisation) and epochs, frames/s")
        print(f"{'batch':>12} {'rollout':>10} {'update':>10} {'total':>10} {'× HARL':>8} {'GFLOP/s':>8}")
        for batch, steps, updates in ((20, 200, 8), (64, 100, 6), (1024, 25, 5)):
            rollout, update, total = frames_per_second(name, batch, steps, updates, **more)
            reference = HARL_FRAMES_PER_S.get(name)
            ratio = f"{total / reference:.1f}" if reference and batch == 20 else ""
            gflops = matrix_product_gflops()
            print(
                f"{batch:>6} × {steps:<3} {rollout:>10,.0f} {update:>10,.0f} {total:>10,.0f} {ratio:>8} {gflops:>8.0f}"
            )
            assert total > 0
