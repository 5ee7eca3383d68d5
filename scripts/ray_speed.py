"""Frames/s of workers on Ray and in one process, for a slow environment and for mpe, with what a frame costs to send.

    python scripts/ray_speed.py --workers 1 --workers 2 --updates 20
    python scripts/ray_speed.py --seeds 3    # the return after as many frames, with run.stale_updates 0 and 1

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


def configured(
    environment: str, environments: int, workers: int, stale: bool, updates: int, **others: Any
) -> RunConfig:
    """A run of so many updates, which evaluates once at its end; ``others`` are further settings of the run."""
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
        **others,
    }
    return make_config("mappo", environment, dict(NETWORKS), settings, {})


def trained(config: RunConfig, make_hands: MakeHands) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A run's summary and its metrics, but for the first two updates."""
    with tempfile.TemporaryDirectory() as folder:
        running = Run.create(config, Path(folder) / "run", partial(rollout_source, make_hands=make_hands))
        try:
            summary = running.train()
        finally:
            running.close()
        return summary, read_metrics(Path(folder) / "run")[2:]


def measured(config: RunConfig, make_hands: MakeHands) -> dict[str, float]:
    """Frames/s, and what a frame costs."""
    _, rows = trained(config, make_hands)
    of_ray = ("bytes_per_frame", "weights_bytes")
    sent: dict[str, float] = {name: float(rows[-1][name]) for name in of_ray if name in rows[-1]}
    spent: dict[str, float] = {name: mean(rows, name) for name in ("rollout_s", "update_s")}
    if workers := config.run["workers"]:
        share = config.run["environments"] / workers * STEPS
        spent["collected_s"] = sum(share / row["slowest_worker_steps_per_s"] for row in rows) / len(rows)
    return {"frames_per_s": frames_per_s(config, rows)} | spent | sent


def mean(rows: Sequence[dict[str, Any]], name: str) -> float:
    """Of a metric."""
    return float(sum(row[name] for row in rows) / len(rows))


def frames_per_s(config: RunConfig, rows: Sequence[dict[str, Any]]) -> float:
    """Of rollouts and updates alone."""
    seconds = sum(row["rollout_s"] + row["update_s"] for row in rows)
    return float(len(rows) * config.run["environments"] * STEPS / seconds)


def compare_stale(seeds: int, frames: int) -> None:
    """Print what runs of two workers come to with ``run.stale_updates`` 0 and 1: on Ray or here, it is the same."""
    environments = 16
    for seed in range(seeds):
        for stale in (False, True):
            updates = -(-frames // (environments * STEPS))
            others = {"seed": seed, "evaluation_episodes": 100}
            summary, rows = trained(
                configured("mpe/simple_spread", environments, 2, stale, updates, **others), LocalHands
            )
            found = {
                "seed": seed,
                "stale_updates": int(stale),
                "frames": summary["steps"],
                "return": round(summary["final"]["local"]["return_mean"], 2),
                **({"stale_weight": round(mean(rows, "stale_weight"), 4)} if stale else {}),
            }
            print(json.dumps(found), flush=True)


@command(
    "ray_speed",
    option("--workers", "of a run; repeatable", integer(1), many=True),
    option("--updates", "of a run", integer(4), default=20),
    option("--ray", "auto or HOST:PORT of a cluster; by default Ray is started here", default="local", shown="ADDRESS"),
    flag("--stale", "with run.stale_updates=1 as well"),
    option("--seeds", "compare returns with run.stale_updates=0 and 1, for so many seeds; no more", integer(1)),
    option("--frames", "of each of these runs", integer(1), default=100_000),
)
def speed(workers: Sequence[int], updates: int, ray: str, stale: bool, seeds: int | None, frames: int) -> None:
    """Measure rollouts by workers, in one process and on Ray."""
    if seeds is not None:
        compare_stale(seeds, frames)
        return
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
