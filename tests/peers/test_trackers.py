"""Weights & Biases and MLflow as they are installed, offline: a run logs to them, and stays one when it is resumed."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from training_runs import command_line, tiny_config

pytestmark = pytest.mark.peers

REQUIREMENTS = ("wandb==0.31.0", "mlflow==3.17.2")
# Its files are LevelDB's logs of Protobuf messages; the package has no reader of its own any more.
READ_WANDB = """
import json, pathlib, sys
from wandb.proto import wandb_internal_pb2

def records(data):
    at, parts = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        body, at = data[at + 7 : at + 7 + size], at + 7 + size
        parts = body if kind in (1, 2) else parts + body
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record

for path in sorted(sys.argv[1:]):
    rows, ids = [], set()
    for record in records(pathlib.Path(path).read_bytes()):
        if record.WhichOneof("record_type") == "run":
            ids.add(record.run.run_id)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in items})
    print(json.dumps([sorted(ids), rows]))
"""
READ_MLFLOW = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(f"sqlite:///{sys.argv[1]}")
(experiment,) = [each for each in client.search_experiments() if each.name == "hmarl"]
runs = client.search_runs([experiment.experiment_id])
history = [client.get_metric_history(run.info.run_id, "train/critic_loss") for run in runs]
print(json.dumps({
    "ids": [run.info.run_id for run in runs],
    "status": [run.info.status for run in runs],
    "steps": [[point.step for point in each] for each in history],
    "gamma": [run.data.params["algorithm_settings.gamma"] for run in runs],
}))
"""


SEVERAL = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from mlflow import MlflowClient
from hmarl.trainer.records.loggers import RunFacts
from hmarl.trainer.records.trackers import MlflowTracker, WandbTracker
given = {"algorithm_settings": {"gamma": 0.9}}
facts = [RunFacts(Path(sys.argv[1]) / name, name, "task", given) for name in ("seed1", "seed2", "seed3")]
for each in facts:
    each.directory.mkdir()
trackers = [WandbTracker(each) for each in facts]
MlflowClient().search_experiments()  # makes the data base
with ThreadPoolExecutor() as threads:
    trackers += threads.map(MlflowTracker, facts)
for steps in (40, 80):
    for tracker in trackers:
        tracker.log({"train/return": 1.0}, steps)
for tracker in trackers:
    tracker.finish()
"""


def test_seeds_at_once_are_a_run_each(peer_python: Callable[..., Path], tmp_path: Path) -> None:
    """One process tracks them side by side, in one experiment that is made once."""
    python = peer_python("trackers", REQUIREMENTS, beside_ours=True)
    environment = {**os.environ, "WANDB_MODE": "offline", "HOME": str(tmp_path), "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path / 'mlflow.db'}"
    runs = tmp_path / "runs"
    runs.mkdir()

    def output(script: str, *words: object) -> list[str]:
        command = [str(python), "-c", script, *map(str, words)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    output(SEVERAL, runs)
    known = [json.loads((runs / name / "trackers.json").read_text()) for name in ("seed1", "seed2", "seed3")]
    assert len({each["wandb"] for each in known}) == 3
    assert len({each["mlflow"] for each in known}) == 3
    for each, name in zip(known, ("seed1", "seed2", "seed3"), strict=True):
        (file,) = (runs / name).glob("wandb/offline-run-*/run-*.wandb")
        ids, rows = json.loads(output(READ_WANDB, file)[0])
        assert ids == [each["wandb"]]
        assert [row["steps"] for row in rows] == [40, 80]
    kept = json.loads(output(READ_MLFLOW, tmp_path / "mlflow.db")[-1])
    assert sorted(kept["ids"]) == sorted(each["mlflow"] for each in known)


def test_a_run_logs_to_both_and_goes_on_as_the_same_run(peer_python: Callable[..., Path], tmp_path: Path) -> None:
    python, run = peer_python("trackers", REQUIREMENTS, beside_ours=True), tmp_path / "run"
    environment = {**os.environ, "WANDB_MODE": "offline", "HOME": str(tmp_path), "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment.pop("MLFLOW_TRACKING_URI", None)

    def ours(*words: str) -> None:
        command = [python, "-m", "hmarl.trainer.commands.train", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr

    def theirs(script: str, *words: object) -> list[str]:
        done = subprocess.run(
            [python, "-c", script, *map(str, words)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    config = tiny_config("mappo", "coordsum/sum-to-10", run_settings={"steps": 80, "loggers": ("wandb", "mlflow")})
    ours(*command_line(config, run))
    ours("--resume", str(run), "--steps", "160")
    assert json.loads((run / "summary.json").read_text())["problems"] == []
    known = json.loads((run / "trackers.json").read_text())
    files = sorted(run.glob("wandb/offline-run-*/run-*.wandb"))
    found = [json.loads(line) for line in theirs(READ_WANDB, *files)]
    assert [ids for ids, _ in found] == [[known["wandb"]]] * 2
    rows = [row for _, of_file in found for row in of_file]
    assert [row["steps"] for row in rows] == [40, 80, 120, 160]
    assert all("train/critic_loss" in row for row in rows)
    assert "evaluation/local/return_mean" in rows[-1]
    kept = json.loads(theirs(READ_MLFLOW, run / "mlflow.db")[-1])
    assert kept == {
        "ids": [known["mlflow"]],
        "status": ["FINISHED"],
        "steps": [[40, 80, 120, 160]],
        "gamma": [str(config.algorithm_settings["gamma"])],
    }
