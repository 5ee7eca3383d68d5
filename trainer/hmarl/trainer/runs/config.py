"""What determines a run: made from what the user asks for, kept in config.json, read again by all that use the run."""

from __future__ import annotations

import shlex
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, field_validator, model_validator

from hmarl.runtime.bundle import replace_file
from hmarl.sdk.errors import UsageError
from hmarl.trainer.algorithms import find_algorithm
from hmarl.trainer.networks.settings import AlgorithmSettings, validate, without_retired
from hmarl.trainer.records.problems import CheckpointError
from hmarl.trainer.runs.settings import RunSettings

if TYPE_CHECKING:
    import torch

_SHOWN = 8  # runs of a directory that holds several


class RunConfig(BaseModel):
    """config.json of a run directory: everything that determines the run, defaults included."""

    hmarl_version: str
    algorithm: str
    environment: str
    environment_arguments: dict[str, Any]
    run: dict[str, Any]
    algorithm_settings: dict[str, Any]

    @field_validator("run")
    @classmethod
    def _still_there(cls, run: dict[str, Any]) -> dict[str, Any]:
        """An old run's without what has been retired since."""
        return without_retired(RunSettings, run)

    @model_validator(mode="after")
    def _before_pictures(self) -> Self:
        """What is a picture now was a vector in runs of which no setting says how pictures are seen."""
        if "image_encoder" not in self.algorithm_settings and self.environment.startswith("pettingzoo/"):
            self.environment_arguments.setdefault("images", False)
        return self

    def write(self, run: Path) -> None:
        """Into a run directory."""
        replace_file(run / "config.json", (self.model_dump_json(indent=1) + "\n").encode())

    @classmethod
    def read(cls, run: Path) -> RunConfig:
        """Of a run directory.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        path = run / "config.json"
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(f"run directory {run}: no config.json ({error.strerror}); {_instead(run)}") from error
        except ValueError as error:
            raise CheckpointError(f"run directory {run}: config.json is damaged ({error})") from error

    def settings(self) -> AlgorithmSettings:
        """The algorithm's settings, checked; those that an old run does not name are as they were then."""
        kind = find_algorithm(self.algorithm).settings_class
        return validate(kind, {**kind.before, **self.algorithm_settings}, "algorithm", self.algorithm)

    def run_settings(self) -> RunSettings:
        """The run's settings, checked."""
        return validate(RunSettings, self.run, "run", self.algorithm)


def refuse_other_run(directory: Path) -> None:
    """Refuse to begin a run where there is one, or what is left of one: a new run would delete its checkpoints.

    Raises:
        UsageError: there is.
    """
    if (directory / "config.json").exists():
        resume = f"--resume {shlex.quote(str(directory))}"
        raise UsageError(f"--out: {directory} already holds a run; choose another, or use {resume}")
    if any((directory / "checkpoints").glob("step-*.safetensors")):
        raise UsageError(
            f"--out: {directory} holds checkpoints of a run whose config.json is gone; choose another, or "
            "move them away"
        )


def _instead(directory: Path) -> str:
    """What to look at where a directory is no run's."""
    if (directory / "manifest.json").is_file():
        return "this is a bundle, see hmarl-verify"
    below = sorted(config.parent.name for config in directory.glob("*/config.json"))
    return f"it holds the runs {', '.join(below[:_SHOWN])}: name one of them" if below else "is it a run's?"


def make_config(
    algorithm: str,
    environment: str,
    algorithm_settings: dict[str, Any],
    run_settings: dict[str, Any],
    environment_arguments: dict[str, Any],
) -> RunConfig:
    """Check everything that can be checked without starting, and fill in the defaults.

    Raises:
        UsageError: unknown algorithm or setting, value out of range, unknown device.
    """
    settings = validate(find_algorithm(algorithm).settings_class, algorithm_settings, "algorithm", algorithm)
    run = validate(RunSettings, run_settings, "run", algorithm)
    from hmarl.trainer.runs.devices import check_precision  # noqa: PLC0415 - the rest of this file does without torch

    check_precision(run.matmul_precision, device_of(run))
    settings.check_rollouts(run.rollout_length, run.environments)
    return RunConfig(
        hmarl_version=version("hmarl"),
        algorithm=algorithm,
        environment=environment,
        environment_arguments=environment_arguments,
        run=run.model_dump(),
        algorithm_settings=settings.model_dump(),
    )


def device_of(run: RunSettings) -> torch.device:
    """The torch device.

    Raises:
        UsageError: no such device on this machine.
    """
    from hmarl.trainer.runs.devices import device_named  # noqa: PLC0415 - the rest of this file does without torch

    return device_named(run.device)
