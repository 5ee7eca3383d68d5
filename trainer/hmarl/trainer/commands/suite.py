"""hmarl-suite: train algorithms on tasks with several seeds, and compare them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from hmarl.runtime.command_line import AS_JSON, PATH, ExitCode, command, flag, integer, option
from hmarl.sdk.commands._common import print_json, run
from hmarl.sdk.commands._console import make_console
from hmarl.sdk.errors import MissingExtraError, UsageError
from hmarl.sdk.files import check_writable
from hmarl.trainer.commands import check_suite
from hmarl.trainer.commands.check_suite import OUT, SUITE, defined, folder_of
from hmarl.trainer.commands.shared import announce_ray, check_ray, ray_option
from hmarl.trainer.runs.stopping import StopRequest, answering_signals, stop_on_signals

if TYPE_CHECKING:
    from hmarl.trainer.suite.suite import Suite


@command(
    "hmarl-suite",
    SUITE,
    OUT,
    option("--jobs", "processes at the same time", integer(1), default=1),
    option("--retries", "how often a run that failed is started again", integer(0), default=1),
    option(
        "--beside", "another library's marl-eval JSON, shown beside; repeatable", PATH, many=True, shown="FILE.json"
    ),
    ray_option("runs are trained by a Ray cluster; by one that is started here without an address"),
    flag("--train/--no-train", "train what is missing", default=True, parameter="training"),
    AS_JSON,
    examples=(
        "hmarl-suite suite.toml --jobs 2",
        "hmarl-suite suite.toml --jobs 20 --ray auto",
        "hmarl-suite check suite.toml",
        "hmarl-suite suite.toml --no-train --beside benchmarl.json",
    ),
    words={"check": check_suite.check},
)
@answering_signals
def suite_command(
    suite: Path,
    out: Path | None,
    jobs: int,
    retries: int,
    beside: tuple[Path, ...],
    ray_address: str | None,
    training: bool,
    as_json: bool,
) -> int:
    """Train algorithms on tasks with several seeds, and compare them.

    Every run is an ordinary run directory in DIR/runs. A suite that was stopped or killed goes on with the same
    command: its runs resume bit for bit, and what is done is not trained again. What pages show of a run is kept in
    DIR/records; DIR/marl-eval.json holds the curves for other tools, DIR/index.html the comparison.
    """
    console = make_console(stderr=True)
    if ray_address is not None and not training:
        raise UsageError("--ray: got --no-train as well, with which nothing is trained; expected one of them")
    check_ray(ray_address)
    definition = defined("hmarl-suite", suite)
    from hmarl.trainer.suite.suite import Suite

    folder = folder_of(definition, out)
    check_writable(folder, f"--out {folder}")
    with Suite.opened(definition, folder) as running, stop_on_signals() as stop:
        running.check(beside)
        stopped = False
        if training:
            stopped = _trained(console, running, stop, jobs, retries, ray_address)
        written = _written(console, running, beside)
        return _reported(console, running, written, stopped, training, as_json)


def _trained(
    console: Console, running: Suite, stop: StopRequest, jobs: int, retries: int, ray_address: str | None
) -> bool:
    """Train what is missing; returns whether it was stopped."""
    from hmarl.trainer.suite.ray_executor import executor_at

    announce_ray(console, ray_address)
    with executor_at(ray_address) as executor:
        console.print(f"{running.definition.name}: {len(running.definition.runs)} runs into {running.folder}")
        return running.train(executor, stop, jobs, retries)


def _written(console: Console, running: Suite, beside: tuple[Path, ...]) -> dict[str, str]:
    """Results, as far as they can be written."""
    try:
        places = running.write_results(beside)
    except MissingExtraError as error:
        console.print(f"no page: {error}")
        return {"marl_eval": str(running.marl_eval)}
    console.print(f"wrote {places.marl_eval} and {places.page}")
    return {"marl_eval": str(places.marl_eval), "page": str(places.page)}


def _reported(
    console: Console, running: Suite, written: dict[str, str], stopped: bool, training: bool, as_json: bool
) -> int:
    """Say what came of it.

    Raises:
        IncompleteError: runs failed, or are left.
    """
    standing = running.standing()
    console.print(f"{standing.done} of {standing.planned} runs done")
    if as_json:
        document: dict[str, Any] = {"suite": str(running.folder), "done": standing.done, "planned": standing.planned}
        print_json({**document, "failed": dict(standing.failed), **written})
    if stopped:
        console.print("stopped; all runs are saved, and the same command goes on")
        return ExitCode.INTERRUPTED
    if training:
        running.refuse_incomplete()
    return ExitCode.DONE


def suite_main() -> None:
    """Entry point of hmarl-suite."""
    sys.exit(run(suite_command))


if __name__ == "__main__":
    suite_main()
