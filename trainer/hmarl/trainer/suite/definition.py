"""What a suite's TOML file says, and the runs that it comes to."""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StrictBool, ValidationError

from hmarl.sdk.environments import cheap_spec, check_request
from hmarl.sdk.errors import HmarlError, UsageError
from hmarl.trainer.networks.settings import STRICT
from hmarl.trainer.networks.settings_errors import explained
from hmarl.trainer.runs.config import RunConfig, make_config
from hmarl.trainer.runs.many_seeds import check_many_seeds
from hmarl.trainer.runs.preset_files import is_preset_file, read_toml
from hmarl.trainer.runs.presets import Preset
from hmarl.trainer.runs.request import Request, chosen_preset, requested
from hmarl.trainer.runs.settings import RunSettings
from hmarl.trainer.runs.toml_settings import setting_of
from hmarl.trainer.suite.planned import PlannedRun, slug

FIRST_SEED = 100
_NAME = 60  # letters of a task's, and of a label's part in a file's name
_GROUPS = ("algorithm", "run", "env")
_Steps = Annotated[int, Field(ge=1)]
_Seed = Annotated[int, Field(ge=0, lt=2**31)]
_AtOnce = StrictBool | Annotated[int, Field(ge=1)]  # true: all of them
_Minutes = Annotated[float, Field(gt=0)]


class TaskTable(BaseModel):
    """One task: ``[[tasks]]``, or its environment's name alone; ``range`` has the values that count as 0 and 1."""

    model_config = STRICT

    env: str
    label: str | None = None
    steps: _Steps | None = None
    measure: Literal["return", "success_rate"] = "return"
    range: tuple[float, float] | None = None
    settings: dict[str, Any] = Field(default_factory=dict)


class VariantTable(BaseModel):
    """Who learns: ``[[variants]]``, or an algorithm's name alone; on tasks that match one of ``tasks``."""

    model_config = STRICT

    algorithm: str
    label: str | None = None
    preset: str | None = None
    seeds: Annotated[int, Field(ge=1)] | tuple[_Seed, ...] | None = None
    seeds_at_once: _AtOnce | None = None
    tasks: tuple[str, ...] = ("*",)
    settings: dict[str, Any] = Field(default_factory=dict)


class BudgetTable(BaseModel):
    """``[budget]``: what the suite may take."""

    model_config = STRICT

    minutes: _Minutes | None = None
    minutes_per_run: _Minutes | None = None


class SuiteFile(BaseModel):
    """The whole file."""

    model_config = STRICT

    name: str | None = None
    tasks: tuple[str | TaskTable, ...] = Field(min_length=1)
    algorithms: tuple[str, ...] = ()
    variants: tuple[VariantTable, ...] = ()
    seeds: Annotated[int, Field(ge=1)] | tuple[_Seed, ...] = 3
    seeds_at_once: _AtOnce = 1
    steps: _Steps | None = None
    evaluations: Annotated[int, Field(ge=1)] = 20
    settings: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, Any] = Field(default_factory=dict)
    budget: BudgetTable = BudgetTable()


@dataclass(frozen=True)
class Task:
    """What is learnt.

    Attributes:
        label: as pages call it.
        environment: its name.
        measure: by which it is judged.
        range: the values that count as 0 and 1 across tasks; None takes the lowest and the highest of all runs.
    """

    label: str
    environment: str
    measure: str
    range: tuple[float, float] | None


@dataclass(frozen=True)
class Definition:
    """A suite.

    Attributes:
        name: of the suite.
        path: of its file.
        text: of its file.
        tasks: by label.
        runs: all that are planned, seed by seed, so that a suite that is cut short has something of all.
        budget: what it may take.
    """

    name: str
    path: Path
    text: str
    tasks: Mapping[str, Task]
    runs: tuple[PlannedRun, ...]
    budget: BudgetTable


def read_definition(path: Path) -> Definition:
    """Read a suite, and check every setting of every run.

    Raises:
        UsageError: no suite, or a run that hmarl-train would refuse.
    """
    content = read_toml(path, str(path))
    try:
        file = SuiteFile.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{path}: {explained(error, content)}") from error
    tasks = [TaskTable(env=task) if isinstance(task, str) else task for task in file.tasks]
    variants = list(_variants(file, path))
    _refuse_twins(path, "tasks", [_task_label(task) for task in tasks])
    _refuse_twins(path, "variants", [str(variant.label) for variant in variants])
    pairs = [_Pair(path, file, task, variant) for task in tasks for variant in variants if _plays(variant, task)]
    if not pairs:
        raise UsageError(f"{path}: algorithms: got none on any task, expected algorithms or [[variants]]")
    try:
        seeded = [(number, run) for pair in pairs for number, run in enumerate(pair.runs())]
        for task in tasks:
            where = f"tasks: {_task_label(task)}: measure"
            check_measure(where, task.measure, task.env, _arguments(_flat(task)))
    except HmarlError as error:
        error.add_note(f"in {path}")
        raise
    return Definition(
        file.name or path.stem,
        path,
        path.read_text(encoding="utf-8"),
        {_task_label(task): Task(_task_label(task), task.env, task.measure, task.range) for task in tasks},
        tuple(run for _, run in sorted(seeded, key=lambda each: each[0])),
        file.budget,
    )


def flat_settings(tables: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings as ``--set`` names them: tables of tables, or names with dots, in any mixture; see ``setting_of``.

    Raises:
        UsageError: a name that does not begin with algorithm., run. or env., or no JSON where a value says so.
    """
    flat: dict[str, Any] = {}

    def collect(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, each in value.items():
                collect(f"{prefix}.{key}" if prefix else key, each)
        else:
            flat[prefix] = setting_of(value, f"{where}: {prefix}")

    collect("", tables)
    for name in flat:
        if name.partition(".")[0] not in _GROUPS or "." not in name:
            raise UsageError(f"{where}: got '{name}', expected a setting algorithm.*, run.* or env.*")
    return flat


def check_measure(where: str, measure: str, environment: str, arguments: Mapping[str, Any]) -> None:
    """Refuse a measure that the task does not have, where that is cheap to find out.

    Raises:
        UsageError: there is no success in it.
    """
    spec = cheap_spec(environment, arguments) if measure == "success_rate" else None
    if spec is not None and not spec.has_success:
        raise UsageError(
            f"{where}: got {measure}, expected return: {environment} does not say when an episode is a success"
        )


def as_option(name: str, value: Any) -> str:
    """A setting as ``--set`` takes it."""
    return f"{name}={json.dumps(value, ensure_ascii=False)}"


def _variants(file: SuiteFile, path: Path) -> Iterator[VariantTable]:
    """All variants, each once for every point of the grid."""
    grid = flat_settings(file.grid, f"{path}: grid")
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"{path}: grid.{name}: got {values!r}, expected a list of values")
        _refuse_another_task(name, f"{path}: grid")
    points = [dict(zip(grid, point, strict=True)) for point in itertools.product(*grid.values())]
    for variant in (*(VariantTable(algorithm=name) for name in file.algorithms), *file.variants):
        for point in points:
            varied = [f"{name.rpartition('.')[2]}={value}" for name, value in point.items()]
            label = " ".join([variant.label or "-".join(filter(None, (variant.algorithm, variant.preset))), *varied])
            settings = {**flat_settings(variant.settings, f"{path}: {label}: settings"), **point}
            for name in settings:
                _refuse_another_task(name, f"{path}: {label}: settings")
            preset = variant.preset
            if preset is not None and is_preset_file(preset):
                preset = str(path.parent / preset)
            yield variant.model_copy(update={"label": label, "settings": settings, "preset": preset})


def _refuse_another_task(name: str, where: str) -> None:
    if name.startswith("env."):
        raise UsageError(f"{where}: got '{name}', which makes another task of it; expected it in a table of [[tasks]]")


def _refuse_twins(path: Path, what: str, labels: Sequence[str]) -> None:
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(f"{path}: {what}: got '{label}' twice, expected every label once; give one a label")
        if "," in label:  # those who read marl-eval's files divide names at commas
            raise UsageError(f"{path}: {what}: got the label '{label}', expected one without a comma")


def _task_label(task: TaskTable) -> str:
    return task.label or default_label(task.env, _flat(task))


def _flat(task: TaskTable) -> dict[str, Any]:
    return flat_settings(task.settings, f"tasks: {task.env}: settings")


def default_label(environment: str, settings: Mapping[str, Any]) -> str:
    """What a task is called that has no label of its own: its environment, and the arguments that are set."""
    return " ".join([environment, *(f"{name}={value}" for name, value in _arguments(settings).items())])


def _arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the environment, among settings as ``--set`` names them."""
    return {name.removeprefix("env."): value for name, value in settings.items() if name.startswith("env.")}


def _plays(variant: VariantTable, task: TaskTable) -> bool:
    names = (task.env, _task_label(task))
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in variant.tasks)


@dataclass(frozen=True)
class _Pair:
    """A variant on a task."""

    path: Path
    file: SuiteFile
    task: TaskTable
    variant: VariantTable

    def runs(self) -> Iterator[PlannedRun]:
        """One for every seed, checked.

        Raises:
            UsageError: hmarl-train would refuse them.
        """
        seeds = self.variant.seeds or self.file.seeds
        listed = range(FIRST_SEED, FIRST_SEED + seeds) if isinstance(seeds, int) else seeds
        for seed in listed:
            yield self._run(seed, len(listed))

    def _run(self, seed: int, seeds: int) -> PlannedRun:
        variant, task, steps = self.variant, self.task, self._steps()
        options = tuple(as_option(name, value) for name, value in self._settings(steps).items())
        flags = {"steps": steps, "seed": seed}
        request = requested(variant.algorithm, task.env, flags, options, variant.preset, _check_once)
        config = make_config(variant.algorithm, task.env, request.algorithm_settings, request.run, request.arguments)
        words = [variant.algorithm, "--env", task.env, "--steps", str(steps), "--seed", str(seed)]
        words += ["--preset", variant.preset] if variant.preset else []
        words += [word for option in options for word in ("--set", option)]
        label, of = str(variant.label), _task_label(task)
        name = f"{slug(of)[:_NAME]}-{slug(label)[:_NAME]}-seed{seed}-{_fingerprint(request)}"
        threads, at_once = config.run_settings().threads, self._at_once(config, seeds)
        return PlannedRun(name, label, of, seed, steps, tuple(words), threads, at_once)

    def _at_once(self, config: RunConfig, seeds: int) -> int:
        """How many seeds one process trains.

        Raises:
            UsageError: more than one, of a run whose seeds cannot be trained at once.
        """
        given = self.file.seeds_at_once if self.variant.seeds_at_once is None else self.variant.seeds_at_once
        at_once = (seeds if given else 1) if isinstance(given, bool) else min(given, seeds)
        if at_once > 1:
            check_many_seeds(config, "seeds_at_once", f"give {self.variant.label} seeds_at_once = 1 in [[variants]]")
        return at_once

    def _steps(self) -> int:
        preset = self._preset()
        default = RunSettings.model_fields["steps"].default
        return int(self.task.steps or self.file.steps or (preset.steps if preset else default))

    def _preset(self) -> Preset | None:
        return chosen_preset(self.variant.preset, self.variant.algorithm, self.task.env)

    def _settings(self, steps: int) -> dict[str, Any]:
        """The suite's, under the task's, under the variant's."""
        of_all = flat_settings(self.file.settings, f"{self.path}: settings")
        of_task = flat_settings(self.task.settings, f"{self.path}: {self.task.env}: settings")
        usual = {"run.threads": 1, "run.evaluation_interval": max(1, steps // self.file.evaluations)}
        return {**usual, **of_all, **of_task, **self.variant.settings}


_checked: set[str] = set()


def _check_once(name: str, arguments: Mapping[str, Any]) -> None:
    """Of many runs in an environment it is checked for the first."""
    key = json.dumps([name, arguments], sort_keys=True, default=str)
    if key not in _checked:
        check_request(name, arguments)
        _checked.add(key)


def _fingerprint(request: Request) -> str:
    """Of all that determines a run: another setting, and it is another run."""
    content = [request.algorithm, request.environment, request.algorithm_settings, request.run, request.arguments]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]
