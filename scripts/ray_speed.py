"""Frames/s of workers on Ray and in one process, for a slow environment and for mpe, with what a frame costs to send.

    python scripts/ray_speed.py --workers 1 --workers 2 --updates 20

The slow environment takes 10 ms a step, which it waits: a simulator in a process of its own. Each line is a run of its
own; its rate leaves out the first two updates.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hmarl.runtime.command_line import command, flag, integer, option, run
from hmarl.sdk.environment import StepResult, VectorEnvironment
from hmarl.sdk.environments import make
from hmarl.trainer.records.metrics import read_metrics
from hmarl.trainer.runs.config import RunConfig, make_config
from hmarl.trainer.runs.run import Run
from hmarl.trainer.runs.training import rollout_source
from hmarl.trainer.runs.workers.hands import LocalHands, MakeHands
from hmarl.trainer.runs.workers.ray_hands import ray_hands

STEP_S = 0.01
ENVIRONMENTS, STEPS = 8, 25
NETWORKS: dict[str, Any] = {"hidden_sizes": (64, 64), "critic_hidden_sizes": (64, 64)}


class Slow:
    """``mpe/simple_spread`` whose copies take 10 ms a step each, one after the other."""

    def __init__(self, inner: VectorEnvironment) -> None:
        self._inner, self.spec, self.batch_size = inner, inner.spec, inner.batch_size
        self.reset, self.get_state, self.set_state = inner.reset, inner.get_state, inner.set_state
        self.render, self.close = inner.render, inner.close

    def step(self, actions: tuple[Any, ...]) -> StepResult:
        """Wait, then step."""
        time.sleep(STEP_S * self.batch_size)
        return self._inner.step(actions)


def slow(batch_size: int) -> Slow:
    """For ``--env ray_speed:slow``."""
    return Slow(make("mpe/simple_spread", batch_size))


def configured(environment: str, environments: int, workers: int, stale: bool, updates: int) -> RunConfig:
    """A run of so many updates, which evaluates once at its end."""
    settings = {
        "steps": updates * environments * STEPS,
        "environments": environments,
        "rollout_length": STEPS,
        "threads": 1,
        "workers": workers,
        "stale_updates": int(stale),
        "evaluation_interval": 10**9,
        "evaluation_episodes": 1,
        "evaluation_modes": "judged",
        "checkpoint_interval": 10**6,
        "loggers": (),
    }
    return make_config("mappo", environment, dict(NETWORKS), settings, {})


def measured(config: RunConfig, make_hands: MakeHands) -> dict[str, float]:
    """Frames/s, and what a frame costs."""
    with tempfile.TemporaryDirectory() as folder:
        trained = Run.create(config, Path(folder) / "run", partial(rollout_source, make_hands=make_hands))
        try:
            trained.train()
        finally:
            trained.close()
        rows = read_metrics(Path(folder) / "run")[2:]
    seconds = sum(row["rollout_s"] + row["update_s"] for row in rows)
    frames = len(rows) * config.run["environments"] * STEPS
    of_ray = ("bytes_per_frame", "weights_bytes")
    sent: dict[str, float] = {name: float(rows[-1][name]) for name in of_ray if name in rows[-1]}
    spent: dict[str, float] = {name: sum(row[name] for row in rows) / len(rows) for name in ("rollout_s", "update_s")}
    return {"frames_per_s": frames / seconds} | spent | sent


@command(
    "ray_speed",
    option("--workers", "of a run; repeatable", integer(1), many=True),
    option("--updates", "of a run", integer(4), default=20),
    option("--ray", "auto or HOST:PORT of a cluster; by default Ray is started here", default="local", shown="ADDRESS"),
    flag("--stale", "with run.stale_updates=1 as well"),
)
def speed(workers: Sequence[int], updates: int, ray: str, stale: bool) -> None:
    """Measure rollouts by workers, in one process and on Ray."""
    for environment, environments in (("ray_speed:slow", ENVIRONMENTS), ("mpe/simple_spread", 256)):
        places: list[tuple[str, int, bool, MakeHands]] = [("no workers", 0, False, LocalHands)]
        for count in workers or (1, 2):
            places.append((f"{count} on Ray", count, False, ray_hands(ray, print)))
            if stale:
                places.append((f"{count} on Ray, stale", count, True, ray_hands(ray, print)))
        for name, count, late, hands in places:
            found = measured(configured(environment, environments, count, late, updates), hands)
            rounded = {key: round(value, 4) for key, value in found.items()}
            print(json.dumps({"environment": environment, "workers": name, **rounded}), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(run(speed))
