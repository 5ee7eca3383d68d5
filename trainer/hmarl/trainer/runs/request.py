"""What is asked for of a run, checked as far as that can be done without PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hmarl.sdk.commands._common import parse_settings
from hmarl.sdk.errors import UsageError
from hmarl.trainer.algorithms import check_algorithm
from hmarl.trainer.networks.settings import validate
from hmarl.trainer.records.loggers import check_loggers
from hmarl.trainer.runs.preset_files import is_preset_file, read_preset
from hmarl.trainer.runs.presets import Preset, find_preset, named_preset
from hmarl.trainer.runs.settings import RunSettings


@dataclass(frozen=True)
class Request:
    """What is to be trained, the preset's settings under the user's own.

    Attributes:
        algorithm, environment: names.
        algorithm_settings, run, arguments: of the algorithm, the run and the environment.
        preset: in words, the preset that it is based on; empty without one.
        given: names of the algorithm's settings that the user gave, not the preset.
    """

    algorithm: str
    environment: str
    algorithm_settings: dict[str, Any]
    run: dict[str, Any]
    arguments: dict[str, Any]
    preset: str
    given: tuple[str, ...]


def chosen_preset(name: str | None, algorithm: str, environment: str) -> Preset | None:
    """The preset of that name or in that file, else the one that the pair runs with by itself, or None.

    Raises:
        UsageError: unknown name, no preset's file, or another algorithm's.
    """
    if name is None:
        return find_preset(algorithm, environment)
    return read_preset(name, algorithm) if is_preset_file(name) else named_preset(name, algorithm)


def requested(
    algorithm: str,
    environment: str,
    flags: Mapping[str, Any],
    settings: Sequence[str],
    preset_name: str | None,
    check_makeable: Callable[[str, Mapping[str, Any]], None],
) -> Request:
    """What is asked for, a preset's settings under the user's own.

    Args:
        algorithm: its name.
        environment: its name.
        flags: settings of the run that have options of their own; None is not given.
        settings: as of ``--set``.
        preset_name: a name or a file; None for the one that the pair runs with by itself.
        check_makeable: refuses an environment, by name and arguments, that cannot be made.

    Raises:
        UsageError: an unknown name, or a wrong value; a seed by which the preset was searched for.
        MissingExtraError: a logger is not installed.
    """
    given = parse_settings(settings, ("algorithm", "env", "run"))
    check_algorithm(algorithm)
    preset = chosen_preset(preset_name, algorithm, environment)
    base = {**preset.run_settings, "steps": preset.steps} if preset else {}
    run = {**base, **given["run"], **{key: value for key, value in flags.items() if value is not None}}
    checked = validate(RunSettings, run, "run")
    check_loggers(checked.loggers)
    seed = checked.seed
    if preset is not None and seed in preset.search_seeds:
        raise UsageError(
            f"--seed: got {seed}, by which {preset_name} was searched for: what it earns there is flattered; "
            "expected any other seed"
        )
    arguments = {**(preset.environment_arguments if preset else {}), **given["env"]}
    check_makeable(environment, arguments)
    chosen = {**(preset.algorithm_settings if preset else {}), **given["algorithm"]}
    used = f"preset {preset_name}" if preset_name else "preset" if preset else ""
    return Request(algorithm, environment, chosen, run, arguments, used, tuple(given["algorithm"]))
