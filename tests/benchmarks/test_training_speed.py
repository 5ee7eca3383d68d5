"""Training speed on mpe/simple_spread with HARL's network and epochs, at HARL's batch and at larger ones.

HARL is on no package index, so its figures are constants measured once on a two-core AMD EPYC machine: 20 environments
× 200 steps, HAPPO 948 and HATRPO 665 frames/s. The machine's matrix-product rate is printed beside every ratio.
"""

from __future__ import annotations

import pytest
import torch

from training_speed import frames_per_second, matrix_product_gflops

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


@pytest.mark.parametrize(
    ("name", "more"), [("happo", {}), ("hatrpo", {}), ("hatrpo", {"curvature_fraction": 1.0}), ("hcpo", {})]
)
def test_training_speed(name: str, more: dict[str, float], capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(2)
    with capsys.disabled():
        print(f"\n{name} {more or ''}, HARL's network (128-128, layer normalisation) and epochs, frames/s")
        print(f"{'batch':>12} {'rollout':>10} {'update':>10} {'total':>10} {'× HARL':>8} {'GFLOP/s':>8}")
        for batch, steps, updates in ((20, 200, 8), (64, 100, 6), (1024, 25, 5)):
            rollout, update, total = frames_per_second(
                name, "mpe/simple_spread", batch, steps, updates, **HARL_SETTINGS, **more
            )
            reference = HARL_FRAMES_PER_S.get(name)
            ratio = f"{total / reference:.1f}" if reference and batch == 20 else ""
            gflops = matrix_product_gflops()
            print(
                f"{batch:>6} × {steps:<3} {rollout:>10,.0f} {update:>10,.0f} {total:>10,.0f} {ratio:>8} {gflops:>8.0f}"
            )
            assert total > 0


def test_update_time_by_team_size(capsys: pytest.CaptureFixture[str]) -> None:
    """HCPO's update is sequential over agents: its time should grow with their number, not faster."""
    torch.set_num_threads(1)
    seconds = {}
    with capsys.disabled():
        print(f"\nhcpo, 64 x 25 frames of simple_spread\n{'agents':>8} {'update s':>10} {'per agent s':>12}")
        for agents in (3, 10, 30):
            rates = frames_per_second("hcpo", "mpe/simple_spread", 64, 25, 3, {"N": agents}, **HARL_SETTINGS)
            seconds[agents] = 64 * 25 / rates[1]
            print(f"{agents:>8} {seconds[agents]:>10.2f} {seconds[agents] / agents:>12.3f}")
    assert seconds[30] / 30 < 4 * seconds[3] / 3
