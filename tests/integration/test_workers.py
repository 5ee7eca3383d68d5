"""Workers in this process: each with its share of the environments, and what a checkpoint holds of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hmarl.trainer.records.checkpoint import newest_checkpoint
from hmarl.trainer.records.metrics import read_metrics
from hmarl.trainer.runs.config import RunConfig
from hmarl.trainer.runs.run import Run
from hmarl.trainer.runs.stopping import Interrupted, StopRequest
from hmarl.trainer.runs.training import Training
from training_runs import final_hash, tiny_config, train

pytestmark = pytest.mark.usefixtures("single_thread")

GUIDED: dict[str, Any] = {"embedding_size": 8, "epochs": 2, "minibatches": 2}
CHUNKS: dict[str, Any] = {**GUIDED, "recurrent": True, "chunk_length": 5}
HELD: dict[str, Any] = {"instruction_interval": 3, "instructions": 3, "conductor_hidden_sizes": (8,)}
LESS_LOCAL: dict[str, Any] = {"local_share": 1.0, "local_share_end": 0.0, "conductor_hidden_sizes": (8,)}
RUN: dict[str, Any] = {"workers": 2, "environments": 5}
STALE: dict[str, Any] = {**RUN, "stale_updates": 1}
TASKS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "happo": ("happo", "mpe/simple_spread", {}, RUN, {}),
    "happo-stale": ("happo", "mpe/simple_spread", {}, STALE, {}),
    "mappo-recurrent-stale": ("mappo", "coordsum/3x10-30", {"recurrent": True}, STALE, {}),
    "hcpo": ("hcpo", "mpe/simple_spread", HELD, RUN, {}),
    "hcpo-local": ("hcpo", "mpe/simple_spread", {**HELD, "local_share": 0.7}, RUN, {}),
    "magpo": ("magpo", "mpe/simple_spread", CHUNKS, RUN, {}),
    "sable": ("sable", "mpe/simple_reference", {**GUIDED, "chunk_length": 5}, RUN, {}),
    "maven": ("maven", "mpe/simple_spread", {"recurrent": True, "chunk_length": 5, "replay_capacity": 40}, RUN, {}),
    "himpo": ("himpo", "mpe/simple_spread", {**GUIDED, "goal_size": 3, "goal_interval": 3}, RUN, {}),
    "himpo-steps": (
        "himpo",
        "lbfws/hard",
        {**GUIDED, "goal_size": 3, "goal_interval": 3, "values_see_step": True},
        RUN,
        {},
    ),
    "leaving": ("mat", "toy_environments:leaving", GUIDED, RUN, {}),
    # Their state cannot be saved: the environments restart at every checkpoint, in the unbroken run too.
    "restarting": ("magpo", "toy_environments:masked_discrete", CHUNKS, RUN, {"saves": False}),
    "hcpo-restarting": ("hcpo", "toy_environments:masked_discrete", LESS_LOCAL, RUN, {"saves": False}),
    "restarting-stale": ("happo", "toy_environments:masked_discrete", {}, STALE, {"saves": False}),
}


class AfterTwoUpdates(StopRequest):
    """Asked for in the third update."""

    run: Run

    def __call__(self) -> bool:
        return self.run.counters.update == 2


def stopped_and_resumed(config: RunConfig, directory: Path) -> None:
    stop = AfterTwoUpdates()
    stop.run = Run.create(config, directory)
    with pytest.raises(Interrupted):
        stop.run.train(stop)
    stop.run.close()
    resumed = Run.resume(directory)
    assert resumed.counters.update == 2
    resumed.train()
    resumed.close()


@pytest.mark.parametrize("task", TASKS)
def test_a_run_with_workers_resumes_bit_for_bit(task: str, tmp_path: Path) -> None:
    algorithm, environment, settings, run, arguments = TASKS[task]
    config = tiny_config(algorithm, environment, settings, {**run, "steps": 200}, arguments)
    train(config, tmp_path / "unbroken")
    stopped_and_resumed(config, tmp_path / "stopped")
    assert final_hash(tmp_path / "stopped") == final_hash(tmp_path / "unbroken")


def test_a_stale_run_learns_from_the_parameters_before(tmp_path: Path) -> None:
    """Its second rollout is collected by the parameters of the first: as if nothing had been learnt in between."""
    rollouts = {}
    for name, run, learns in (("stale", STALE, True), ("frozen", RUN, False)):
        training = Training(tiny_config("happo", "mpe/simple_spread", {}, run))
        training.collect()
        if learns:
            training.update(0.0)
        training.collect()
        rollouts[name] = training.source.rollout
        training.close()
    for name in ("states", "rewards"):
        assert torch.equal(getattr(rollouts["stale"], name), getattr(rollouts["frozen"], name))
    assert torch.equal(rollouts["stale"].actions[0], rollouts["frozen"].actions[0])


def test_each_worker_draws_numbers_of_its_own(tmp_path: Path) -> None:
    training = Training(tiny_config("happo", "mpe/simple_spread", {}, {"workers": 2, "environments": 4}))
    training.collect()
    first = training.source.rollout.actions[0].clone()
    training.collect()
    second = training.source.rollout.actions[0]
    training.close()
    assert not torch.equal(first[:, :2], first[:, 2:])
    assert not torch.equal(first, second)


def test_a_share_of_the_environments_is_of_all_workers_together() -> None:
    """Half of four environments are conducted locally, of which every worker has one."""
    run = {"workers": 4, "environments": 4}
    training = Training(tiny_config("hcpo", "mpe/simple_spread", {**HELD, "local_share": 0.5}, run))
    training.collect()
    locally = training.source.rollout.extras["locally"]
    training.close()
    assert locally.all(0).tolist() == [True, True, False, False]
    assert not locally[:, 2:].any()


def test_rates_are_told(tmp_path: Path) -> None:
    summary = train(tiny_config("happo", "mpe/simple_spread", {}, RUN), tmp_path / "run")
    assert summary["rollouts"]["workers"] == 2
    assert summary["rollouts"]["where"] == "in this process"
    row = read_metrics(tmp_path / "run")[-1]
    assert row["slowest_worker_steps_per_s"] == min(row["worker_steps_per_s/0"], row["worker_steps_per_s/1"])
    assert "bytes_per_frame" not in row


def test_a_checkpoint_holds_every_workers_environments(tmp_path: Path) -> None:
    train(tiny_config("happo", "mpe/simple_spread", {}, STALE), tmp_path / "run")
    names = newest_checkpoint(tmp_path / "run" / "checkpoints").tensors
    assert any(name.startswith("collector.0.environment.") for name in names)
    assert any(name.startswith("collector.1.environment.") for name in names)
    assert any(name.startswith("collector.weights.policies.0") for name in names)
