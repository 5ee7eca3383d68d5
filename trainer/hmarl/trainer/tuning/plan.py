"""What a search trains: one algorithm on one task, in settings that each trial draws, with seeds of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmarl.sdk.commands._common import parse_settings
from hmarl.sdk.environments import check_request
from hmarl.trainer.runs.config import RunConfig, make_config
from hmarl.trainer.runs.preset_files import is_preset_file
from hmarl.trainer.runs.presets import Preset
from hmarl.trainer.runs.request import requested
from hmarl.trainer.runs.toml_settings import toml_key, toml_setting, toml_text
from hmarl.trainer.suite.definition import as_option, check_measure, default_label
from hmarl.trainer.suite.planned import PlannedRun
from hmarl.trainer.tuning.space import Space

# Far from what users type and suites count from; presets remember them, and reports refuse them.
FIRST_SEARCH_SEED = 1_000_000_000
# Other episodes than those by which runs are judged, so that settings are not chosen by what they are reported on.
SEARCH_EVALUATION_SEED = 2_000_003


@dataclass(frozen=True)
class SearchPlan:
    """One search.

    Attributes:
        algorithm, environment: names.
        preset: by name or file, as of ``--preset``.
        settings: as of ``--set``, for all trials.
        space: what is searched.
        steps: environment steps of a run.
        evaluations: of a run.
        seeds: how many runs a trial has.
        measure: ``return`` or ``success_rate``.
        seen: seeds by which the preset was searched for before.
    """

    algorithm: str
    environment: str
    preset: str | None
    settings: tuple[str, ...]
    space: Space
    steps: int
    evaluations: int
    seeds: int
    measure: str
    seen: tuple[int, ...] = ()

    @property
    def search_seeds(self) -> tuple[int, ...]:
        """Of the runs of every trial: none that an earlier search has seen."""
        first = max((FIRST_SEARCH_SEED - 1, *self.seen)) + 1
        return tuple(range(first, first + self.seeds))

    @property
    def fingerprint(self) -> str:
        """Of all that makes values of two trials comparable."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    def run(self, number: int, seed: int, drawn: Mapping[str, Any]) -> PlannedRun:
        """A run of a trial."""
        words = [self.algorithm, "--env", self.environment, "--steps", str(self.steps), "--seed", str(seed)]
        words += ["--preset", self.preset] if self.preset else []
        words += [word for option in self._options(drawn) for word in ("--set", option)]
        name = f"trial-{number:04d}-seed{seed}"
        threads = int(drawn.get("run.threads") or self.config({}).run_settings().threads)
        return PlannedRun(name, self.algorithm, self.environment, seed, self.steps, tuple(words), threads)

    def _options(self, drawn: Mapping[str, Any]) -> list[str]:
        usual = {"run.threads": 1, "run.evaluation_interval": max(1, self.steps // self.evaluations)}
        own = {**drawn, "run.evaluation_seed": SEARCH_EVALUATION_SEED}
        options = [as_option(name, value) for name, value in usual.items()]
        return [*options, *self.settings, *(as_option(name, value) for name, value in own.items())]

    def config(self, drawn: Mapping[str, Any]) -> RunConfig:
        """What a trial's runs are, checked.

        Raises:
            UsageError: hmarl-train would refuse it.
        """
        flags = {"steps": self.steps, "seed": self.search_seeds[0]}
        options = self._options(drawn)
        request = requested(self.algorithm, self.environment, flags, options, self.preset, check_request)
        return make_config(self.algorithm, self.environment, request.algorithm_settings, request.run, request.arguments)

    def check(self) -> dict[str, Any]:
        """Refuse what some trial would be refused for; returns what is searched as it is without a search.

        Raises:
            UsageError: an unknown setting, a range that holds values that it cannot take, or a measure that the task
                does not have, where that is cheap to find out.
        """
        for name, dimension in self.space.items():
            for value in dimension.ends():
                self.config({name: value})
        config = self.config({})
        check_measure("--measure", self.measure, self.environment, config.environment_arguments)
        groups = {"algorithm": config.algorithm_settings, "run": config.run, "env": config.environment_arguments}
        found = {name: groups[name.partition(".")[0]].get(name.partition(".")[2]) for name in self.space}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}

    def preset_of(self, drawn: Mapping[str, Any], about: str) -> Preset:
        """What trains as a trial did, as a preset."""
        flags = {"steps": self.steps, "seed": self.search_seeds[0]}
        options = [*self.settings, *(as_option(name, value) for name, value in drawn.items())]
        request = requested(self.algorithm, self.environment, flags, options, self.preset, check_request)
        run = {key: value for key, value in request.run.items() if key not in ("steps", "seed")}
        return Preset(
            self.algorithm,
            self.environment,
            self.steps,
            about,
            request.algorithm_settings,
            run,
            request.arguments,
            search_seeds=(*self.seen, *self.search_seeds),
        )


def confirming_suite(plan: SearchPlan, preset: Path, seeds: int) -> str:
    """A suite that holds what was found against what was there before, with seeds that the search has not seen."""
    given = parse_settings(plan.settings, ("env", "algorithm", "run"))
    before = [_said(group, name, value) for group in ("algorithm", "run") for name, value in given[group].items()]
    lines = [
        "# Seeds and episodes of this report were not seen by the search.",
        f"tasks = [{_task(plan.environment, given['env'])}]",
        f"seeds = {seeds}",
        f"steps = {plan.steps}",
        f"evaluations = {plan.evaluations}",
        "",
        "[[variants]]",
        'label = "before"',
        f"algorithm = {toml_text(plan.algorithm)}",
        *([f"preset = {toml_text(_from_anywhere(plan.preset))}"] if plan.preset else []),
        *(f"settings.{setting}" for setting in before),
        "",
        "[[variants]]",
        'label = "found"',
        f"algorithm = {toml_text(plan.algorithm)}",
        f"preset = {toml_text(preset.name)}",
    ]
    return "\n".join(lines) + "\n"


def _task(environment: str, arguments: Mapping[str, Any]) -> str:
    """A suite's task in TOML, its label without commas, which suites refuse."""
    if not arguments:
        return toml_text(environment)
    settings = ", ".join(_said("env", name, value) for name, value in arguments.items())
    called = default_label(environment, {f"env.{name}": value for name, value in arguments.items()})
    label = f"label = {toml_text(called.replace(',', ';'))}, " if "," in called else ""
    return f"{{ env = {toml_text(environment)}, {label}settings = {{ {settings} }} }}"


def _said(group: str, name: str, value: Any) -> str:
    """A setting in TOML."""
    return f"{toml_key(f'{group}.{name}')} = {toml_setting(value)}"


def _from_anywhere(preset: str) -> str:
    """A preset's name, or where its file is."""
    return str(Path(preset).resolve()) if is_preset_file(preset) else preset
