"""hmarl-suite check: what a suite comes to, without training any of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hmarl.runtime.command_line import AS_JSON, PATH, argument, command, option
from hmarl.sdk.commands._common import print_json
from hmarl.sdk.commands._console import make_console, print_table
from hmarl.trainer.commands.shared import need_extra, need_torch, said_when_slow

if TYPE_CHECKING:
    from hmarl.trainer.suite.definition import Definition

SUITE = argument("suite", "TOML file: algorithms, tasks, seeds, settings", PATH)
OUT = option("--out", "suite directory (by default runs/NAME)", PATH, shown="DIR")


def defined(program: str, path: Path) -> Definition:
    """The suite, every run of it checked."""
    need_extra(program)
    from hmarl.trainer.runs.preset_files import read_toml

    read_toml(path, str(path))  # a wrong name is told before much is loaded
    need_torch(program)
    from hmarl.trainer.suite.definition import read_definition

    with said_when_slow(f"{program}: checking {path}"):
        return read_definition(path)


def folder_of(definition: Definition, out: Path | None) -> Path:
    """Where a suite goes."""
    from hmarl.trainer.suite.planned import slug

    return out or Path("runs") / slug(definition.name)


@command(
    "hmarl-suite check",
    SUITE,
    OUT,
    AS_JSON,
    examples=("hmarl-suite check suite.toml",),
)
def check(suite: Path, out: Path | None, as_json: bool) -> None:
    """Check a suite and list its runs with what they cost, without training any.

    Times are known of algorithms and tasks that have a run in the suite's directory already, and count one run after
    the other.
    """
    definition = defined("hmarl-suite check", suite)
    from hmarl.trainer.runs.announcements import duration
    from hmarl.trainer.suite.costs import costs_of, total_s

    folder = folder_of(definition, out)
    console = make_console(stderr=as_json)
    costs = costs_of(definition.runs, folder / "records")
    rows = [
        (
            cost.label, cost.task, f"{cost.runs}", f"{cost.done}", f"{cost.steps:,}",
            "unknown" if cost.left_s is None else duration(cost.left_s),
        )
        for cost in costs
    ]  # fmt: skip
    print_table(console, definition.name, ("algorithm", "task", "runs", "done", "steps a run", "time to go"), rows)
    left = total_s(costs)
    told = "time unknown until each pair has a run" if left is None else f"{duration(left)} one after the other"
    steps = sum(planned.steps for planned in definition.runs)
    console.print(f"{len(definition.runs)} runs, {steps:,} steps; {told}")
    if as_json:
        print_json({"suite": str(folder), "left_s": left, "runs": [vars(planned) for planned in definition.runs]})
