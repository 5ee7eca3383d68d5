"""Weights & Biases and MLflow. Each is set up as its own users do it, by its environment variables."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any

from hmarl.sdk.files import write_text
from hmarl.trainer.records.loggers import RunFacts

_PROJECT = "hmarl"
_BATCH, _PARAMS = 1000, 100  # MLflow takes no more at once


def _known_id(facts: RunFacts, tracker: str) -> str | None:
    """By which a tracker knows the run, where it was begun before."""
    path = facts.directory / "trackers.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get(tracker)
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def _remember(facts: RunFacts, tracker: str, run_id: str) -> None:
    others = {name: known for name in ("wandb", "mlflow") if (known := _known_id(facts, name))}
    write_text(facts.directory / "trackers.json", json.dumps({**others, tracker: run_id}) + "\n")


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings by their names with dots."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


class WandbTracker:
    """A run of Weights & Biases; ``WANDB_MODE=offline`` keeps it in the run's directory until ``wandb sync``."""

    def __init__(self, facts: RunFacts) -> None:
        import wandb  # noqa: PLC0415 - part of the wandb extra

        known = _known_id(facts, "wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=facts.name,
            group=facts.environment,
            dir=str(facts.directory),
            id=known,
            resume="allow" if known else None,
            config=dict(facts.config),
            reinit="create_new",  # seeds at once have a run each
            settings=wandb.Settings(console="off", silent=True, init_timeout=60),
        )
        self._run.define_metric("steps")
        self._run.define_metric("*", step_metric="steps")
        _remember(facts, "wandb", self._run.id)

    def log(self, figures: Mapping[str, float], steps: int) -> None:
        """See ``Tracker``."""
        self._run.log({**figures, "steps": steps})

    def finish(self) -> None:
        """See ``Tracker``."""
        self._run.finish()


class MlflowTracker:
    """A run of MLflow; without ``MLFLOW_TRACKING_URI`` it is kept in the run's directory."""

    def __init__(self, facts: RunFacts) -> None:
        from mlflow import MlflowClient  # noqa: PLC0415 - part of the mlflow extra
        from mlflow.entities import Metric  # noqa: PLC0415

        local = f"sqlite:///{(facts.directory / 'mlflow.db').resolve()}"
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or local)
        self._metric = Metric
        self._run_id = _known_id(facts, "mlflow") or self._begun(facts)
        self._client.update_run(self._run_id, status="RUNNING")

    def _begun(self, facts: RunFacts) -> str:
        """A new run in the experiment."""
        from mlflow.entities import Param  # noqa: PLC0415 - part of the mlflow extra

        run_id = str(self._client.create_run(self._experiment(), run_name=facts.name).info.run_id)
        params = [Param(key, value[:500]) for key, value in _flat(facts.config).items()]
        for start in range(0, len(params), _PARAMS):
            self._client.log_batch(run_id, params=params[start : start + _PARAMS])
        _remember(facts, "mlflow", run_id)
        return run_id

    def _experiment(self) -> str:
        """The experiment's id; it is made where there is none."""
        from mlflow.exceptions import MlflowException  # noqa: PLC0415 - part of the mlflow extra

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        if (found := self._client.get_experiment_by_name(name)) is not None:
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(name))
        except MlflowException:  # another run may have made it meanwhile
            if (found := self._client.get_experiment_by_name(name)) is None:
                raise
            return str(found.experiment_id)

    def log(self, figures: Mapping[str, float], steps: int) -> None:
        """See ``Tracker``."""
        now = int(time.time() * 1000)
        metrics = [self._metric(key, value, now, steps) for key, value in figures.items()]
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(self._run_id, metrics[start : start + _BATCH])

    def finish(self) -> None:
        """See ``Tracker``."""
        self._client.set_terminated(self._run_id)
