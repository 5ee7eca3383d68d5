"""Workers, machines and learners are killed in mid-rollout, again and again; all runs end, with the right numbers.

    HMARL_KILLS=10 python -m pytest tests/reliability/test_ray_kills.py -m reliability -s

Every run is compared, bit for bit, with one in a single process that nothing was killed of.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hmarl.trainer.records.metrics import read_metrics
from hmarl.trainer.runs.run import Run
from hmarl.trainer.runs.training import rollout_source
from hmarl.trainer.runs.workers.ray_hands import ray_hands
from training_process import Training
from training_runs import command_line, final_hash, tiny_config, train

pytestmark = pytest.mark.reliability
KILLS = int(os.environ.get("HMARL_KILLS", "10"))
RUN: dict[str, Any] = {
    "workers": 2, "environments": 16, "rollout_length": 50, "steps": 16 * 50 * 60, "checkpoint_interval": 5,
    "evaluation_interval": 10**9,
}  # fmt: skip
STEPS = RUN["steps"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("expected") / "run"
    train(configured(), folder)
    return final_hash(folder)


def configured() -> Any:
    return tiny_config("mappo", "mpe/simple_spread", {}, RUN)


def whole(directory: Path) -> None:
    """Every update is there once, and the frames add up."""
    rows = read_metrics(directory)
    assert [row["update"] for row in rows] == list(range(1, 61))
    assert rows[-1]["steps"] == STEPS


def worker_pids() -> list[int]:
    """Of the actors of this machine."""
    found = []
    for place in Path("/proc").iterdir():
        try:
            if place.name.isdecimal() and b"ray::RayWorker" in (place / "cmdline").read_bytes():
                found.append(int(place.name))
        except OSError:
            continue
    return found


def killed_while_training(directory: Path, address: str, kill: Callable[[], None], at_update: int) -> dict[str, Any]:
    """A run; something is killed once so many updates are done."""
    run = Run.create(configured(), directory, partial(rollout_source, make_hands=ray_hands(address, print)))

    def strike() -> None:
        while run.counters.update < at_update:
            time.sleep(0.002)
        kill()

    thread = threading.Thread(target=strike, daemon=True)
    thread.start()
    try:
        return run.train()
    finally:
        run.close()
        thread.join(5)


def test_workers_are_killed(expected: str, tmp_path: Path) -> None:
    generator = random.Random(0)
    for kill in range(KILLS):
        directory = tmp_path / f"worker-{kill}"
        strike = lambda: os.kill(generator.choice(worker_pids()), signal.SIGKILL)  # noqa: E731
        summary = killed_while_training(directory, "local", strike, generator.randrange(2, 50))
        assert summary["rollouts"]["replaced"] == 1
        whole(directory)
        assert final_hash(directory) == expected


def test_machines_are_killed(expected: str, tmp_path: Path) -> None:
    """A cluster of two: the raylet of the one where the learner is not."""
    from ray.cluster_utils import Cluster  # noqa: PLC0415 - part of the ray extra

    generator = random.Random(1)
    for kill in range(KILLS):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            other = cluster.add_node(num_cpus=1)
            cluster.wait_for_nodes()
            raylet = other.all_processes["raylet"][0].process
            directory = tmp_path / f"raylet-{kill}"
            strike = raylet.kill
            summary = killed_while_training(directory, cluster.address, strike, generator.randrange(2, 50))
        finally:
            cluster.shutdown()
        assert summary["rollouts"]["replaced"] >= 1
        whole(directory)
        assert final_hash(directory) == expected


def test_the_learner_is_killed(expected: str, tmp_path: Path) -> None:
    generator = random.Random(2)
    for kill in range(KILLS):
        directory = tmp_path / f"learner-{kill}"
        at = generator.randrange(6, 55)
        training = Training(*command_line(configured(), directory), "--ray")
        training.until(lambda directory=directory, at=at: len(read_metrics(directory)) >= at)  # type: ignore[misc]
        training.kill()
        assert 0 < len(read_metrics(directory)) < 60
        again = Training("--resume", str(directory), "--ray")
        assert again.ended() == 0, again.output
        whole(directory)
        assert final_hash(directory) == expected
        assert leftovers() == []


def leftovers() -> list[int]:
    """Actors that outlive their learner by more than a few seconds."""
    deadline = time.monotonic() + 20
    while worker_pids() and time.monotonic() < deadline:
        time.sleep(0.2)
    return worker_pids()
