"""A run read back from its directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hmarl.sdk.environments import make
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.contract.algorithm import Algorithm
from hmarl.trainer.records.checkpoint import Checkpoint, find_checkpoint, read_object, restore
from hmarl.trainer.records.metrics import evaluation_path, read_evaluation
from hmarl.trainer.records.problems import CheckpointError
from hmarl.trainer.runs.building import build_algorithm
from hmarl.trainer.runs.config import RunConfig


@dataclass(frozen=True)
class LoadedRun:
    """A run read back from its directory.

    Attributes:
        summary: of the whole run, empty where it has not ended.
        evaluation: of the checkpoint, empty where it was not evaluated.
    """

    config: RunConfig
    checkpoint: Checkpoint
    algorithm: Algorithm
    spec: EnvironmentSpec
    summary: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, dict[str, Any]] = field(default_factory=dict)


def load_run(run: Path, checkpoint: str = "best") -> LoadedRun:
    """Read a run's config and one of its checkpoints.

    Raises:
        CheckpointError: not a run directory, or no such good checkpoint.
    """
    config = RunConfig.read(run)
    found = find_checkpoint(run, checkpoint)
    on_cpu = config.model_copy(update={"run": {**config.run, "device": "cpu"}})
    environment = make(config.environment, 1, **config.environment_arguments)
    try:
        algorithm = build_algorithm(on_cpu, environment)
    finally:
        environment.close()
    restore({"algorithm": algorithm.components()}, found.tensors)
    summary = _if_there(run / "summary.json", read_object)
    evaluation = _if_there(evaluation_path(run, found.counters.steps), read_evaluation)
    return LoadedRun(config, found, algorithm, environment.spec, summary, evaluation)


def _if_there(path: Path, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    try:
        return read(path) if path.exists() else {}
    except CheckpointError as error:
        raise CheckpointError(f"{error}; it can be deleted: the bundle then lacks what it says") from error
