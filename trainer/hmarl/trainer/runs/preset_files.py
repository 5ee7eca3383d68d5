"""Presets in files of their own: what a search found, or settings that a team hands around."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from hmarl.sdk.errors import UsageError
from hmarl.sdk.files import write_text
from hmarl.trainer.networks.settings import STRICT
from hmarl.trainer.networks.settings_errors import explained
from hmarl.trainer.runs.presets import Preset
from hmarl.trainer.runs.toml_settings import setting_of, toml_key, toml_setting, toml_text

_SUFFIX = ".toml"


class _Settings(BaseModel):
    """Of the algorithm, the run and the environment."""

    model_config = STRICT

    algorithm: dict[str, Any] = Field(default_factory=dict)
    run: dict[str, Any] = Field(default_factory=dict)
    env: dict[str, Any] = Field(default_factory=dict)


class _PresetFile(BaseModel):
    """What such a file holds."""

    model_config = STRICT

    algorithm: str
    environment: str
    steps: int = Field(ge=1)
    about: str = ""
    search_seeds: tuple[int, ...] = ()
    settings: _Settings = _Settings()


def is_preset_file(name: str) -> bool:
    """Whether a preset is called by a file, not by its name."""
    return name.endswith(_SUFFIX)


def read_toml(path: Path, named: str) -> dict[str, Any]:
    """A TOML file.

    Args:
        path: the file.
        named: how the user named it.

    Raises:
        UsageError: it cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{named}: cannot be read ({error.strerror}); expected a TOML file") from error
    except ValueError as error:
        raise UsageError(f"{named}: {error}; expected a TOML file") from error


def read_preset(name: str, algorithm: str) -> Preset:
    """The preset in a file.

    Raises:
        UsageError: no preset's file, another algorithm's, or a setting that is no JSON where it says so.
    """
    named = f"--preset {name}"
    content = read_toml(Path(name), named)
    try:
        found = _PresetFile.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{named}: {explained(error, content)}") from error
    if found.algorithm != algorithm:
        raise UsageError(f"{named}: is for {found.algorithm}, got {algorithm}")
    settings = setting_of(found.settings.model_dump(), f"{named}: settings")
    return Preset(
        found.algorithm,
        found.environment,
        found.steps,
        found.about,
        settings["algorithm"],
        settings["run"],
        settings["env"],
        name=name,
        search_seeds=found.search_seeds,
    )


def write_preset(path: Path, preset: Preset) -> None:
    """Write a preset so that ``read_preset`` reads it, whole or not at all."""
    lines = [
        f"algorithm = {toml_text(preset.algorithm)}",
        f"environment = {toml_text(preset.environment)}",
        f"steps = {preset.steps}",
        f"about = {toml_text(preset.about)}",
    ]
    if preset.search_seeds:
        lines += [
            "# By these it was searched for; reports take others.",
            f"search_seeds = {list(preset.search_seeds)}",
        ]
    groups = {"algorithm": preset.algorithm_settings, "run": preset.run_settings, "env": preset.environment_arguments}
    for group, settings in groups.items():
        if settings:
            lines += ["", f"[settings.{group}]"]
            lines += [f"{toml_key(key)} = {toml_setting(value)}" for key, value in settings.items()]
    write_text(path, "\n".join(lines) + "\n")
