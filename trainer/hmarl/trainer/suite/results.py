"""What a suite came to: its records as marl-eval's JSON, and as one page."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmarl.sdk.errors import UsageError
from hmarl.sdk.evaluation.marl_eval import ABSOLUTE, STEP_COUNT, Document, Results, read_marl_eval, write_marl_eval
from hmarl.sdk.reports.comparison_report import ComparisonContent, write_comparison
from hmarl.trainer.suite.definition import Definition, Task
from hmarl.trainer.suite.ledger import Ledger
from hmarl.trainer.suite.planned import PlannedRun
from hmarl.trainer.suite.records import Record, read_record

# Of records, by marl-eval's names.
_MEASURES = {"return": "return_mean", "success_rate": "success_rate"}


@dataclass(frozen=True)
class Written:
    """Where results went; no page without the packages for it."""

    marl_eval: Path
    page: Path


def record_path(folder: Path, name: str) -> Path:
    """Where the record of a run of this name is kept."""
    return folder / f"{name}.json"


def place_of(task: Task) -> tuple[str, str]:
    """A task's environment and name in marl-eval's documents."""
    family = task.environment.partition("/")[0]
    return family, task.label.removeprefix(f"{family}/")


def document_of(runs: Sequence[PlannedRun], tasks: Mapping[str, Task], kept: Path) -> Document:
    """All runs that have a record; tasks without one are there as well, and empty."""
    document: Document = {}
    for task in tasks.values():
        family, name = place_of(task)
        document.setdefault(family, {}).setdefault(name, {})
    for run in runs:
        family, name = place_of(tasks[run.task])
        path = record_path(kept, run.name)
        if path.exists():
            of_label = document[family][name].setdefault(run.label, {})
            of_label[f"seed_{run.seed}"] = steps_of(read_record(path))
    return document


def steps_of(record: Record) -> dict[str, Any]:
    """A run as marl-eval has it: a mean for every evaluation, all episodes of the best one as absolute metrics.

    The best checkpoint is chosen by these very episodes, as it is by those who write such files elsewhere.
    """
    steps: dict[str, Any] = {}
    best, chosen = record.final_returns.tolist(), max((row["steps"] for row in record.metrics), default=0)
    if record.best is not None:
        best, chosen = record.best.returns[record.judged_by], record.best.steps
    absolute: dict[str, list[float]] = {"return": list(best)}
    for number, row in enumerate(record.metrics):
        measured = {name: row.get(record.measured(measure)) for name, measure in _MEASURES.items()}
        found = {name: [value] for name, value in measured.items() if value is not None}
        if found:
            steps[f"step_{number}"] = {STEP_COUNT: row["steps"], **found}
        if row["steps"] == chosen and "success_rate" in found:
            absolute["success_rate"] = found["success_rate"]
    return {**steps, ABSOLUTE: absolute}


def read_others(paths: Sequence[Path]) -> dict[str, Document]:
    """Other libraries' documents by what they are called: the file's name, with its folder's where two share it.

    Raises:
        UsageError: one is no such document, or two have both names in common.
    """
    stems = [path.stem for path in paths]
    named: dict[str, Path] = {}
    for path in paths:
        name = path.stem if stems.count(path.stem) == 1 else f"{path.parent.resolve().name}/{path.stem}"
        if name in named:
            raise UsageError(
                f"--beside: got {named[name]} and {path}, which are both called '{name}', expected files of which each "
                "has its own name, or lies in a folder with its own; rename one of them"
            )
        named[name] = path
    return {name: read_marl_eval(path, f"--beside {path}") for name, path in named.items()}


def put_together(
    runs: Sequence[PlannedRun], tasks: Mapping[str, Task], document: Document, others: Mapping[str, Document]
) -> Results:
    """Our runs, and beside them those of others, whose algorithms never go by a name of ours.

    Args:
        runs: all that are planned: their labels are ours before they have a record.
        tasks: by label.
        document: of ours, see ``document_of``.
        others: by what they are called.
    """
    measures = measures_of(tasks)
    results = Results()
    results.add(document, measures)
    for run in runs:
        family, name = place_of(tasks[run.task])
        results.add({family: {name: {run.label: {}}}}, measures)
    for name, other in others.items():
        results.add(other, measures, f" ({name})")
    return results


def measures_of(tasks: Mapping[str, Task]) -> dict[str, str]:
    """How each task is measured, by its name in a ``Results``."""
    return {"/".join(place_of(task)): task.measure for task in tasks.values()}


def write_results(definition: Definition, folder: Path, kept: Path, ledger: Ledger, beside: Sequence[Path]) -> Written:
    """Write marl-eval.json and index.html.

    Args:
        definition: of the suite.
        folder: the suite's.
        kept: where its records are.
        ledger: what became of its runs.
        beside: other libraries' documents, shown beside ours.

    Raises:
        MissingExtraError: a package of the ``eval`` extra is not installed; the JSON is written.
        UsageError: see ``read_others``.
    """
    others = read_others(beside)
    document = document_of(definition.runs, definition.tasks, kept)
    written = Written(folder / "marl-eval.json", folder / "index.html")
    write_marl_eval(written.marl_eval, document)
    by_place = {"/".join(place_of(task)): task for task in definition.tasks.values()}
    command = ["hmarl-suite", str(definition.path), "--out", str(folder)]
    content = ComparisonContent(
        name=definition.name,
        results=put_together(definition.runs, definition.tasks, document, others),
        command=shlex.join([*command, *(word for path in beside for word in ("--beside", str(path)))]),
        definition=definition.text,
        measures=measures_of(definition.tasks),
        ranges={place: task.range for place, task in by_place.items() if task.range is not None},
        planned=len(definition.runs),
        remarks=remarks(definition.runs, ledger),
        sources=list(others),
    )
    write_comparison(written.page, content)
    return written


def remarks(runs: Sequence[PlannedRun], ledger: Ledger) -> list[tuple[str, str]]:
    """What is missing, or less than was planned."""
    told = {"cut off": "its time was used up: it counts with fewer steps", "stopped": "was stopped, and can go on",
            "waiting": "has not been trained yet", "running": "was not trained to its end"}  # fmt: skip
    entries = [(run.name, ledger.of(run.name)) for run in runs]
    return [
        (name, f"failed: {entry.error}" if entry.status == "failed" else told[entry.status])
        for name, entry in entries
        if entry.status != "done"
    ]
