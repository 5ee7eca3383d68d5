"""Several seeds of one run at once, for hmarl-train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from hmarl.runtime.command_line import ExitCode, Kind
from hmarl.sdk.commands._common import print_json
from hmarl.trainer.runs.stopping import StopRequest, stop_on_signals

if TYPE_CHECKING:
    from hmarl.trainer.runs.many_seeds import ManyRuns
    from hmarl.trainer.together.company import Outcome

_LONGEST = 40  # characters of seeds in a directory's name

Report = Callable[[Console, dict[str, Any], Path], None]
"""Shows the summary of a run in a directory."""


def _read(text: str) -> tuple[int, ...]:
    seeds = tuple(int(part) for part in text.split(","))
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError
    return seeds


def seeds_shown(seeds: Sequence[int]) -> str:
    """Seeds in the name of a directory, which may not be long."""
    shown = "-".join(map(str, seeds))
    return shown if len(shown) <= _LONGEST else f"{seeds[0]}-and-{len(seeds) - 1}-more"


SEEDS = Kind("N,N,...", "seeds that differ, divided by commas", _read)


def train_seeds(console: Console, open_runs: Callable[[StopRequest], ManyRuns], report: Report, as_json: bool) -> int:
    """Train several seeds at once; returns the exit code.

    Args:
        console: of what is said.
        open_runs: makes them, or reads them back; all stop when its request is asked for.
        report: tells of each that has come to its end.
        as_json: whether all summaries are printed as well.

    Raises:
        Exception: that ended one of them, with what ended others; all have come to their end before it is raised.
    """
    with stop_on_signals() as stop:
        many = open_runs(stop)
        try:
            outcomes = many.train()
        except KeyboardInterrupt:
            return _stopped(console, many, stop, saved=False)
        finally:
            many.close()
        if any(isinstance(outcome.error, KeyboardInterrupt) for outcome in outcomes):
            for told in _failures(many, outcomes).values():
                console.print(told)
            return _stopped(console, many, stop, saved=True)
    return _told(console, many, outcomes, report, as_json)


def _stopped(console: Console, many: ManyRuns, stop: StopRequest, saved: bool) -> int:
    """Say of every run how to go on, and of all."""
    stop.wait_until_said()
    for run in many.runs:
        console.print(f"\nstopped; {run.stopped(saved)}")
    console.print(f"\nall at once: {many.resume_command()}")
    return ExitCode.INTERRUPTED


def _failures(many: ManyRuns, outcomes: Sequence[Outcome[dict[str, Any]]]) -> dict[BaseException, str]:
    """What ended runs before their end, each error once, though several runs met it; and what is said of it."""
    failures: dict[BaseException, str] = {}
    for run, outcome in zip(many.runs, outcomes, strict=True):
        error = outcome.error
        if error is not None and error not in failures and not isinstance(error, KeyboardInterrupt):
            failures[error] = "; ".join((f"{run.directory}: {error}", *getattr(error, "__notes__", ())))
    return failures


def _told(
    console: Console, many: ManyRuns, outcomes: Sequence[Outcome[dict[str, Any]]], report: Report, as_json: bool
) -> int:
    """Tell of all that have come to their end, then of what ended the others."""
    summaries = []
    for run, outcome in zip(many.runs, outcomes, strict=True):
        if outcome.value is not None:
            report(console, outcome.value, run.directory)
            summaries.append({"run": str(run.directory), **outcome.value})
    if as_json:
        print_json({"runs": summaries})
    if failures := _failures(many, outcomes):
        first, *others = failures
        for other in others:
            first.add_note(failures[other])
        raise first
    if problems := [f"{each['run']}: {'; '.join(each['problems'])}" for each in summaries if each["problems"]]:
        from hmarl.trainer.records.problems import IncompleteError

        raise IncompleteError(f"trained and saved, but {'; '.join(problems)}")
    return ExitCode.DONE
