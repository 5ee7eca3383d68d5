"""Workers as actors of Ray: the same numbers as in one process, also where some are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmarl.trainer.records.metrics import read_metrics
from hmarl.trainer.runs.building import build_algorithm
from hmarl.trainer.runs.ray_session import checked_address, ray_session
from hmarl.trainer.runs.run import Run
from hmarl.trainer.runs.training import rollout_source
from hmarl.trainer.runs.workers.ray_hands import RayHands, ray_hands
from hmarl.trainer.runs.workers.worker import Order, RolloutWorker, Start, acting_weights
from ray_cluster import ray_cluster
from training_runs import command_line, final_hash, tiny_config, train

Call = Callable[..., tuple[int, str, str]]
RUN: dict[str, Any] = {"workers": 2, "environments": 5, "steps": 200}


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray of this machine for all tests here; its address."""
    with ray_cluster(3) as cluster:
        before = signal.getsignal(signal.SIGTERM)
        with ray_session(cluster.address):
            assert signal.getsignal(signal.SIGTERM) is before
            yield cluster.address


def pids(hands: RayHands) -> list[int]:
    """Of all workers' processes."""
    ray = hands._ray
    return ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in hands._actors])


def test_ray_and_one_process_give_the_same_numbers_also_where_a_worker_is_killed(
    cluster: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config("mappo", "mpe/simple_spread", {}, RUN)
    train(config, tmp_path / "local")
    run = Run.create(
        config, tmp_path / "ray", partial(rollout_source, make_hands=ray_hands(cluster, lambda text: None))
    )
    hands = run._parts.training.source._hands  # type: ignore[attr-defined]
    os.kill(pids(hands)[1], signal.SIGKILL)
    summary = run.train()
    run.close()
    assert final_hash(tmp_path / "ray") == final_hash(tmp_path / "local")
    assert summary["steps"] == 200
    assert summary["rollouts"]["replaced"] == 1
    assert "worker 1 is lost" in caplog.text
    row = read_metrics(tmp_path / "ray")[-1]
    assert row["replaced_workers"] == 1.0
    assert row["bytes_per_frame"] > 100
    assert row["weights_bytes"] > 100


def test_the_command_with_stale_updates(cluster: str, tmp_path: Path, call: Call) -> None:
    config = tiny_config("happo", "coordsum/3x10-30", {}, {**RUN, "stale_updates": 1})
    train(config, tmp_path / "local")
    code, _, err = call("train", *command_line(config, tmp_path / "ray"), "--ray", cluster)
    assert code == 0, err
    assert final_hash(tmp_path / "ray") == final_hash(tmp_path / "local")
    assert "2 workers on Ray" in err
    assert "bytes a frame" in err


def test_what_an_environment_raises_comes_back_in_its_own_words(cluster: str, tmp_path: Path, call: Call) -> None:
    config = tiny_config("happo", "mpe/simple_spread", {}, {**RUN, "workers": 1}, {"N": 0})
    code, _, err = call("train", *command_line(config, tmp_path / "run"), "--ray", cluster)
    assert code == 2
    assert "N: got 0" in err


def test_an_environment_of_the_current_folder(
    cluster: str, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_for_ray.py").write_text(
        "from hmarl.sdk.environments import make as made\n\n\ndef make(batch_size):\n"
        "    return made('coordsum/2x10-20', batch_size)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # which hmarl-train sees to
    config = tiny_config("happo", "own_for_ray:make", {}, {**RUN, "steps": 100})
    for out, ray in (("local", ()), ("ray", ("--ray", cluster))):
        code, _, err = call("train", *command_line(config, tmp_path / out), *ray)
        assert code == 0, err
    assert final_hash(tmp_path / "ray") == final_hash(tmp_path / "local")


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ("happo", "--env", "mpe/simple_spread", "--set", "run.workers=2", "--ray")
    code, out, err = call("train", *words)
    assert (code, out) == (2, "")
    assert "hmarl[ray]" in err
    assert len(err.strip().splitlines()) == 1


def test_ray_without_workers_and_odd_addresses_are_refused(call: Call) -> None:
    code, _, err = call("train", "happo", "--env", "mpe/simple_spread", "--ray")
    assert code == 2
    assert "run.workers: got 0 with --ray, expected at least 1" in err
    code, _, err = call("train", "--ray", "happo", "--env", "mpe/simple_spread")
    assert code == 2
    assert "--ray" in err
    assert "'happo'" in err
    assert checked_address("10.0.0.1:6379") == "10.0.0.1:6379"


def test_nothing_imports_ray_unless_it_is_asked_for() -> None:
    code = "import sys, hmarl.trainer.commands.train, hmarl.trainer.runs.training; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_collected_rollout_is_the_same_when_it_is_collected_again() -> None:
    """What a replaced worker relies on."""
    config = tiny_config("happo", "mpe/simple_spread", {}, RUN)
    first, second = RolloutWorker(config, 1), RolloutWorker(config, 1)
    start = Start(np.array([5, 6]))
    weights = acting_weights(build_algorithm(config, first._environment).acting_components())
    first.begin(start)
    began = first.collect(Order(0, None), weights)
    expected = first.collect(Order(1, began.acting), weights)
    second.begin(Start(np.array([0, 0]), began.state))
    got = second.collect(Order(1, began.acting), weights)
    assert expected.rollout.keys() == got.rollout.keys()
    assert all(np.array_equal(expected.rollout[name], got.rollout[name]) for name in got.rollout)
