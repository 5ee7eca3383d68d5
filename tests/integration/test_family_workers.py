"""Workers in every environment family: a run resumes as it does without them, and Ray gives the same numbers.

make test PYTEST_ARGS='tests/integration/test_family_workers.py -m "slow or not slow"'
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from family_tasks import TASKS
from hmarl.sdk.environments import BUILT_IN_FAMILIES
from hmarl.trainer.records.checkpoint import newest_checkpoint
from hmarl.trainer.records.metrics import read_metrics
from hmarl.trainer.runs.config import RunConfig
from hmarl.trainer.runs.ray_session import ray_session
from hmarl.trainer.runs.run import Run
from hmarl.trainer.runs.stopping import Interrupted, StopRequest
from hmarl.trainer.runs.training import rollout_source
from hmarl.trainer.runs.workers.ray_hands import ray_hands
from processes import alive, descendants, wait_for
from ray_cluster import ray_cluster
from training_runs import final_hash, tiny_config, train

pytestmark = pytest.mark.usefixtures("single_thread", "without_pictures")

UPDATES, ENVIRONMENTS, STEPS = 4, 3, 14  # checkpoints fall into the middle of episodes; workers' shares differ
RUN: dict[str, Any] = {
    "workers": 2, "environments": ENVIRONMENTS, "rollout_length": STEPS, "steps": UPDATES * ENVIRONMENTS * STEPS,
    "checkpoint_interval": 2, "evaluation_modes": "judged",
}  # fmt: skip
# Their state can be saved; a worker of another family that is replaced begins new episodes.
SAVED = {"mpe", "coordsum", "lbfws", "vmas", "smax", "mamujoco"}
QUICK = {"lbfws", "vmas", "pettingzoo", "lbf"}  # mpe and coordsum are met in test_workers.py
FAMILIES = [pytest.param(family, marks=() if family in QUICK else pytest.mark.slow) for family in TASKS]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray of this machine; its address. Other interpreters find the battle as users' own would be found."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
        with ray_cluster(3) as cluster, ray_session(cluster.address):
            yield cluster.address


def configured(family: str, **arguments: Any) -> RunConfig:
    pytest.importorskip(BUILT_IN_FAMILIES[family])
    task = TASKS[family]
    return tiny_config("happo", task.environment, {}, RUN, {**task.arguments, **arguments})


def assert_whole(directory: Path) -> None:
    rows = read_metrics(directory)
    assert [row["update"] for row in rows] == list(range(1, UPDATES + 1))
    assert rows[-1]["steps"] == RUN["steps"]
    assert not any("rolled_back" in row for row in rows)


class AfterTwoUpdates(StopRequest):
    """Asked for when the checkpoint half-way is due."""

    run: Run

    def __call__(self) -> bool:
        return self.run.counters.update == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_with_workers_resumes(family: str, tmp_path: Path) -> None:
    config = configured(family)
    train(config, tmp_path / "unbroken")
    assert_whole(tmp_path / "unbroken")
    saved = newest_checkpoint(tmp_path / "unbroken" / "checkpoints").tensors
    assert any(name.startswith("collector.1.environment.") for name in saved) == (family in SAVED)
    stop = AfterTwoUpdates()
    stop.run = Run.create(config, tmp_path / "stopped")
    with pytest.raises(Interrupted):
        stop.run.train(stop)
    stop.run.close()
    resumed = Run.resume(tmp_path / "stopped")
    resumed.train()
    resumed.close()
    assert_whole(tmp_path / "stopped")
    assert final_hash(tmp_path / "stopped") == final_hash(tmp_path / "unbroken")


def on_ray(config: RunConfig, directory: Path, address: str, kill: bool = False) -> dict[str, Any]:
    """A run by actors, one of which is killed in the second rollout where that is asked for."""
    run = Run.create(config, directory, partial(rollout_source, make_hands=ray_hands(address, print)))
    hands: Any = run._parts.training.source._hands  # type: ignore[attr-defined]
    pids = hands._ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in hands._actors])
    below = [each for pid in pids for each in descendants(pid)]
    if kill:
        collect = hands.collect

        def collect_and_kill(*of: Any) -> None:
            collect(*of)
            if of[0][0].update == 1:
                os.kill(pids[1], signal.SIGKILL)

        hands.collect = collect_and_kill
    try:
        summary = run.train()
    finally:
        run.close()
    wait_for(lambda: not any(map(alive, [*pids, *below])), "the workers' end")
    return summary


@pytest.mark.slow
@pytest.mark.parametrize("family", TASKS)
def test_ray_gives_the_same_numbers(
    family: str, cluster: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where a worker is killed, if the environments' state can be saved; else the frames are as many."""
    config = configured(family)
    train(config, tmp_path / "local")
    on_ray(config, tmp_path / "ray", cluster)
    assert_whole(tmp_path / "ray")
    assert final_hash(tmp_path / "ray") == final_hash(tmp_path / "local")
    summary = on_ray(config, tmp_path / "killed", cluster, kill=True)
    assert_whole(tmp_path / "killed")
    assert summary["rollouts"]["replaced"] == 1
    assert ("in new episodes" in caplog.text) == (family not in SAVED)
    assert (final_hash(tmp_path / "killed") == final_hash(tmp_path / "local")) == (family in SAVED)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "arguments"), [("pettingzoo", {"workers": 1}), ("smac", {"workers": 1, "python": sys.executable})]
)
def test_environments_in_processes_of_their_own_end_with_a_killed_worker(
    family: str, arguments: dict[str, Any], cluster: str, tmp_path: Path
) -> None:
    """Another interpreter's too."""
    summary = on_ray(configured(family, **arguments), tmp_path / "killed", cluster, kill=True)
    assert_whole(tmp_path / "killed")
    assert summary["rollouts"]["replaced"] == 1
