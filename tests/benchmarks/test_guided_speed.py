"""Training speed by number of agents: MAGPO beside MAT, its guider alone, and MAPPO, which has none.

All have the same batch, epochs and minibatches, feed-forward policies and otherwise their defaults, and take turns;
"short" is MAGPO whose guider learns in two of the epochs, in the order of acting. Then what less of a guider saves,
both with their presets: the variants of the study's magpo-speed.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest
import torch

from hmarl.trainer.guiders import following
from hmarl.trainer.runs.presets import find_preset
from training_speed import Training, matrix_product_gflops

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

BATCH, STEPS, ROUNDS = 64, 25, 5
SETTINGS = {"epochs": 5, "minibatches": 2, "recurrent": False}
CRITIC_SETTINGS = {"critic_epochs": 5, "critic_minibatches": 2}
SHORT = {"guider_epochs": 2, "reshuffle": False}
# What MAGPO's guider and what its local policies do in an update: evaluation; losses, gradients and steps.
GUIDER, LOCAL = ("judge", "descend"), ("distributions", "follow")


class Stopwatch:
    """Seconds spent in methods since the last ``reset``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def watch(self, owner: Any, name: str) -> None:
        """From now on the time within ``owner.name`` is counted under that name."""
        inner = getattr(owner, name)

        def timed(*arguments: Any) -> Any:
            begin = time.perf_counter()
            result = inner(*arguments)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
            return result

        setattr(owner, name, timed)

    def reset(self) -> None:
        """Forget what was counted."""
        self.seconds.clear()

    def total(self, *names: str) -> float:
        """Seconds within the methods of these names, which do not call one another."""
        return sum(self.seconds[name] for name in names)


def watched(team: Any) -> Stopwatch:
    """A stopwatch on a MAGPO team."""
    stopwatch = Stopwatch()
    for name in GUIDER:
        stopwatch.watch(team.guider, name)
    for owner, name in zip((team.guidance.followers, following), LOCAL, strict=True):
        stopwatch.watch(owner, name)
    stopwatch.watch(team.guider, "act")
    return stopwatch


def row(agents: int) -> str:
    """Of the table, from rounds in which the three train in turn."""
    teams = {
        name: Training(
            "magpo" if name == "short" else name, "mpe/simple_spread", BATCH, STEPS, {"N": agents}, **SETTINGS, **more
        )
        for name, more in (("mappo", CRITIC_SETTINGS), ("mat", {}), ("magpo", {}), ("short", SHORT))
    }
    stopwatch = watched(teams["magpo"].algorithm)
    for team in teams.values():
        team.iterate()
    stopwatch.reset()
    rounds = [{name: team.iterate() for name, team in teams.items()} for _ in range(ROUNDS)]
    for team in teams.values():
        team.environment.close()
    speed = {name: BATCH * STEPS / statistics.median(sum(each[name]) for each in rounds) for name in teams}
    ratios = [statistics.median(sum(each["mappo"]) / sum(each[name]) for each in rounds) for name in ("magpo", "short")]
    rollout, update = (sum(each["magpo"][part] for each in rounds) for part in (0, 1))
    shares = (stopwatch.total(*GUIDER) / update, stopwatch.total(*LOCAL) / update, stopwatch.total("act") / rollout)
    assert rollout > 0
    assert 0 < sum(shares[:2]) < 1
    return "".join(
        [
            f"{agents:>6}",
            *(f"{each:>8,.0f}" for each in speed.values()),
            *(f"{ratio:>8.2f}" for ratio in ratios),
            *(f"{share:>8.0%}" for share in shares),
            f"{matrix_product_gflops():>9.0f}",
        ]
    )


def test_guided_training_speed(capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    with capsys.disabled():
        print(
            f"\nmpe/simple_spread, {BATCH} x {STEPS}, {SETTINGS['epochs']} epochs, one thread: frames/s; MAGPO beside"
        )
        print("MAPPO; share of the guider and of the local policies in MAGPO's updates, of the guider in its rollouts")
        print("agents   MAPPO     MAT   MAGPO   short   ratio   short  guider   local  acting  GFLOP/s")
        for agents in (3, 10, 30):
            print(row(agents))


# As the study's comparison magpo-speed has them, beside the presets.
LESS = {
    "preset": {},
    "E=32": {"embedding_size": 32},
    "E=32, 3 guider epochs": {"embedding_size": 32, "guider_epochs": 3},
    "E=32, 2 guider epochs, shuffled once": {"embedding_size": 32, "guider_epochs": 2, "reshuffle": False},
    "E=32, 3 guider epochs, shuffled once": {"embedding_size": 32, "guider_epochs": 3, "reshuffle": False},
    "the same, policies of 64-64": {
        "embedding_size": 32,
        "guider_epochs": 3,
        "reshuffle": False,
        "hidden_sizes": (64, 64),
    },
}


def preset_training(name: str, **more: Any) -> Training:
    """An algorithm with its preset on three agents of mpe/simple_spread."""
    preset = find_preset(name, "mpe/simple_spread")
    assert preset is not None
    run = preset.run_settings
    settings = preset.algorithm_settings | more
    return Training(name, "mpe/simple_spread", run["environments"], run["rollout_length"], {"N": 3}, **settings)


def test_what_less_of_a_guider_saves(capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    teams = {
        "mappo": preset_training("mappo"),
        **{name: preset_training("magpo", **more) for name, more in LESS.items()},
    }
    for team in teams.values():
        team.iterate()
    rounds = [{name: sum(team.iterate()) for name, team in teams.items()} for _ in range(2 * ROUNDS)]
    for team in teams.values():
        team.environment.close()
    with capsys.disabled():
        print("\nmpe/simple_spread with the presets, one thread: MAGPO's frames/s beside MAPPO's")
        for name in LESS:
            print(f"{name:<40}{statistics.median(each['mappo'] / each[name] for each in rounds):>6.2f}")
