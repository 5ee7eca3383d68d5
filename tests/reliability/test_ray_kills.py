"""Workers, machines and learners are killed at any moment, again and again; all runs end, with the right numbers.

    make ray-kills
    HMARL_KILLS=1 make ray-kills

Every run is compared, bit for bit, with one in a single process that nothing was killed of.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hmarl.trainer.records.metrics import read_metrics
from hmarl.trainer.runs.config import RunConfig
from hmarl.trainer.runs.run import Run
from hmarl.trainer.runs.training import rollout_source
from hmarl.trainer.runs.workers.ray_hands import RayHands, ray_hands
from processes import alive, command_of, descendants, wait_for
from ray_cluster import add_node, ray_cluster
from training_process import Training
from training_runs import command_line, final_hash, tiny_config, train

pytestmark = pytest.mark.reliability
KILLS = int(os.environ.get("HMARL_KILLS", "10"))
UPDATES, FRAMES = 20, 16 * 25
RUN: dict[str, Any] = {
    "workers": 2, "environments": 16, "rollout_length": 25, "steps": UPDATES * FRAMES, "checkpoint_interval": 3,
    "evaluation_interval": 10**9,
}  # fmt: skip
PATIENCE_S = 600.0  # of a machine that is very busy


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the run comes to where nothing is killed."""
    folder = tmp_path_factory.mktemp("expected") / "run"
    train(configured(), folder)
    return final_hash(folder)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of one machine with one CPU, which others may join."""
    with ray_cluster(1) as cluster:
        yield cluster


def configured() -> RunConfig:
    return tiny_config("mappo", "mpe/simple_spread", {}, RUN)


def assert_whole(directory: Path, expected: str) -> None:
    """Every update is there once, the frames add up, and the numbers are those of the run that was left alone."""
    rows = read_metrics(directory)
    assert [row["update"] for row in rows] == list(range(1, UPDATES + 1))
    assert [row["steps"] for row in rows] == [FRAMES * update for update in range(1, UPDATES + 1)]
    assert final_hash(directory) == expected


def told(what: str, kill: int, update: int, came_of_it: object) -> None:
    """For who looks on (``pytest -s``)."""
    print(f"{what} {kill + 1} of {KILLS} killed after update {update}: {came_of_it}", flush=True)


# --- of a run of this process ---------------------------------------------------------------------------------------


def killed_while_training(
    directory: Path, address: str, make_kill: Callable[[RayHands], Callable[[], None]], generator: random.Random
) -> tuple[int, int]:
    """A run, of which something is killed at a moment in one of its iterations.

    Returns:
        After how many updates, and how many workers were replaced.
    """
    run = Run.create(configured(), directory, partial(rollout_source, make_hands=ray_hands(address, print)))
    at, ended = generator.randrange(1, UPDATES - 5), threading.Event()
    kill = make_kill(run._parts.training.source._hands)  # type: ignore[attr-defined]

    def strike() -> None:
        began = time.monotonic()
        while run.counters.update < at:
            if ended.wait(0.002):
                return
        time.sleep(generator.random() * (time.monotonic() - began) / at)
        kill()

    thread = threading.Thread(target=strike, daemon=True)
    thread.start()
    try:
        summary = run.train()
    finally:
        ended.set()
        run.close()
        thread.join(5)
    assert not thread.is_alive()
    return at, summary["rollouts"]["replaced"]


def test_workers_are_killed(cluster: Any, expected: str, tmp_path: Path) -> None:
    generator = random.Random(0)

    def make_kill(hands: RayHands) -> Callable[[], None]:
        actors = hands._actors
        pids = hands._ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in actors])
        return partial(os.kill, generator.choice(pids), signal.SIGKILL)

    for kill in range(KILLS):
        directory = tmp_path / f"worker-{kill}"
        at, replaced = killed_while_training(directory, cluster.address, make_kill, generator)
        told("worker", kill, at, f"{replaced} replaced")
        assert replaced == 1
        assert_whole(directory, expected)


def test_machines_are_killed(cluster: Any, expected: str, tmp_path: Path) -> None:
    """The raylet of the one where the learner is not, with all that runs there."""
    generator = random.Random(1)
    for kill in range(KILLS):
        other = add_node(cluster, 1)
        raylet = other.all_processes["raylet"][0].process
        directory = tmp_path / f"raylet-{kill}"
        try:
            at, replaced = killed_while_training(directory, cluster.address, lambda _, r=raylet: r.kill, generator)  # type: ignore[misc]
        finally:
            cluster.remove_node(other)
        told("machine", kill, at, f"{replaced} replaced")
        assert replaced >= 1  # one who was placed there again before it was known counts twice
        assert_whole(directory, expected)


# --- of a run of the command ----------------------------------------------------------------------------------------


class Struck:
    """``hmarl-train`` on Ray, going on until a moment in one of its iterations.

    Args:
        directory: of the run.
        generator: draws the moment.
        address: of a cluster; without one the Ray is its own.

    Attributes:
        at: after how many updates that is.
        training: the process.
    """

    def __init__(self, directory: Path, generator: random.Random, *address: str) -> None:
        self.at, self._directory = generator.randrange(4, UPDATES - 5), directory
        self.training = Training(*command_line(configured(), directory), "--ray", *address, patience_s=PATIENCE_S)
        self.training.until(lambda: len(self._rows()) >= self.at)
        time.sleep(generator.random() * sum(self._rows()[-1][name] for name in ("rollout_s", "update_s")))

    def _rows(self) -> list[dict[str, Any]]:
        return read_metrics(self._directory)

    def goes_on(self, *words: str) -> None:
        """With ``--resume``, until it is done."""
        assert 0 < len(self._rows()) < UPDATES
        again = Training("--resume", str(self._directory), *words, patience_s=PATIENCE_S)
        assert again.ended() == 0, again.output


def workers_of(pid: int) -> list[int]:
    """Actors below a process."""
    return [each for each in descendants(pid) if "ray::RayWorker" in command_of(each)]


def test_the_learner_is_killed(cluster: Any, expected: str, tmp_path: Path) -> None:
    """Its workers end, the cluster stays; the run goes on in it."""
    generator = random.Random(2)
    for kill in range(KILLS):
        directory = tmp_path / f"learner-{kill}"
        struck = Struck(directory, generator, cluster.address)
        assert len(workers_of(os.getpid())) == 2
        struck.training.kill()
        wait_for(lambda: not workers_of(os.getpid()), "the end of its workers")
        struck.goes_on("--ray", cluster.address)
        told("learner", kill, struck.at, "resumed")
        assert_whole(directory, expected)


def test_a_ray_of_its_own_ends_with_the_learner(expected: str, tmp_path: Path) -> None:
    """All but two agents of Ray's at once: those look for their raylet now and then."""
    struck = Struck(tmp_path / "run", random.Random(3))
    below = descendants(struck.training.process.pid)
    agents = [pid for pid in below if "Agent" in command_of(pid)]
    assert sum("ray::RayWorker" in command_of(pid) for pid in below) == 2
    struck.training.kill()
    wait_for(lambda: not any(alive(pid) for pid in below if pid not in agents), "the end of its Ray")
    wait_for(lambda: not any(map(alive, agents)), "the end of Ray's agents", PATIENCE_S)
    struck.goes_on()
    told("learner with a Ray of its own", 0, struck.at, "resumed without Ray")
    assert_whole(tmp_path / "run", expected)


@pytest.mark.parametrize(
    ("part", "named"), [("raylet", "Ray in this machine"), ("gcs_server", "the head of the cluster")]
)
def test_ray_dies_under_the_learner(part: str, named: str, expected: str, tmp_path: Path) -> None:
    """The run ends by itself, says why, and goes on from its last checkpoint.

    Where it is quick, it is done before it is told that the head is gone, which it needs no more. Where it was fetching
    an object, Ray itself ends it, with code 1 and no word of ours.
    """
    generator, by_ray = random.Random(part), 0
    for kill in range(KILLS):
        directory = tmp_path / f"{part}-{kill}"
        with ray_cluster(2) as cluster:
            struck = Struck(directory, generator, cluster.address)
            cluster.head_node.all_processes[part][0].process.kill()
            began = time.monotonic()
            code = struck.training.ended()
            took_s = time.monotonic() - began
        if code == 0 and part == "gcs_server":
            told(part, kill, struck.at, "done before that mattered")
            assert_whole(directory, expected)
            continue
        if code == 1 and part == "raylet":
            by_ray += 1
        else:
            assert code == 4, struck.training.output
            assert f"--ray: {named}" in struck.training.output
            assert "continue with: hmarl-train --resume" in struck.training.output
        struck.goes_on()
        told(part, kill, struck.at, f"ended with code {code} after {took_s:.0f} s, resumed without Ray")
        assert_whole(directory, expected)
    assert by_ray < max(KILLS, 2)
