"""hmarl-check-env: does an environment, one's own included, keep the contract that training and evaluation rely on?"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import NoReturn

from rich.text import Text

from hmarl.runtime.command_line import AS_JSON, ExitCode, argument, command, flag, integer, option
from hmarl.sdk.commands._common import parse_settings, print_json, run, settings_option
from hmarl.sdk.commands._console import make_console, print_listing, progress_bar
from hmarl.sdk.environments import make
from hmarl.sdk.environments.conformance import CheckResult, check_environment

_SILENCE_S = 5.0  # in a log


@command(
    "hmarl-check-env",
    argument("environment", "FAMILY/TASK, see hmarl-envs; or MODULE:FUNCTION of your own"),
    settings_option("env.KEY=VALUE", "an argument of the environment"),
    option("--batch-size", "environments side by side", integer(2), default=4),
    option("--steps", "steps of play; by default two episodes", integer(1)),
    option("--seed", "of the play", integer(0), default=0),
    flag("--deterministic", "the task has nothing random: seeds need not make a difference"),
    AS_JSON,
    examples=(
        "hmarl-check-env mpe/simple_spread --set env.N=5",
        "hmarl-check-env my_environment:make --batch-size 8",
    ),
)
def check(
    environment: str,
    settings: tuple[str, ...],
    batch_size: int,
    steps: int | None,
    seed: int,
    deterministic: bool,
    as_json: bool,
) -> int:
    """Check an environment's shapes, seeding, auto-reset, masks, state and more over whole episodes.

    MODULE is looked for in the current directory too. Exit code 4 when a check fails.
    """
    arguments = parse_settings(settings, ("env",))["env"]
    with _progress(f"checking {environment}") as progress:
        results = check_environment(
            lambda batch: make(environment, batch, **arguments),
            batch_size=batch_size,
            steps=steps,
            seed=seed,
            deterministic=deterministic,
            progress=progress,
        )
    passed = all(result.passed for result in results)
    print_listing(make_console(), ("", "check", "found"), [_row(result) for result in results], environment)
    if as_json:
        print_json({"environment": environment, "passed": passed, "checks": [asdict(result) for result in results]})
    return ExitCode.DONE if passed else ExitCode.FAILURE


@contextmanager
def _progress(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """What is being checked: a bar in a terminal, elsewhere a line now and then."""
    console = make_console(stderr=True)
    console.print(title)
    said_s = time.monotonic()
    with progress_bar(console) as bar:
        task = bar.add_task(title)

        def progress(name: str, done: int, total: int) -> None:
            nonlocal said_s
            bar.update(task, description=name, completed=done, total=total)
            if not console.is_terminal and time.monotonic() - said_s > _SILENCE_S:
                console.print(f"{done} of {total} checks done, next: {name}")
                said_s = time.monotonic()

        yield progress


def _row(result: CheckResult) -> tuple[Text, str, str]:
    return Text("✓", "green") if result.passed else Text("✗", "bold red"), result.name, result.detail


def main() -> NoReturn:
    """Entry point of ``hmarl-check-env``."""
    sys.exit(run(check))
