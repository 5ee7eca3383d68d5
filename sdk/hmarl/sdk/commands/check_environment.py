"""hmarl-check-env: does an environment, one's own included, keep the contract that training and evaluation rely on?"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, NoReturn

import typer
from rich.text import Text

from hmarl.sdk.commands._common import EXIT_FAILURE, parse_settings, print_json, run_command
from hmarl.sdk.commands._console import make_console, print_listing
from hmarl.sdk.environments import make
from hmarl.sdk.environments.conformance import CheckResult, check_environment


def check(
    environment: Annotated[
        str, typer.Argument(metavar="FAMILY/TASK", help="Environment, or PACKAGE.MODULE:FUNCTION of your own.")
    ],
    *,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="env.KEY=VALUE", help="Argument of the environment; repeatable."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=2, help="Environments side by side.")] = 4,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of play; by default two episodes.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seeds the play.")] = 0,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The task has nothing random: seeds need not make a difference.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Check an environment's shapes, seeding, auto-reset, masks, state and more over whole episodes.

    Exit code 0 when every check passes, 4 when one fails.
    """
    arguments = parse_settings(settings, ("env",))["env"]
    results = check_environment(
        lambda batch: make(environment, batch, **arguments),
        batch_size=batch_size,
        steps=steps,
        seed=seed,
        deterministic=deterministic,
    )
    passed = all(result.passed for result in results)
    print_listing(make_console(), ("", "check", "found"), [_row(result) for result in results], environment)
    if as_json:
        print_json({"environment": environment, "passed": passed, "checks": [asdict(result) for result in results]})
    if not passed:
        raise typer.Exit(EXIT_FAILURE)


def _row(result: CheckResult) -> tuple[Text, str, str]:
    return Text("✓", "green") if result.passed else Text("✗", "bold red"), result.name, result.detail


def main() -> NoReturn:
    """Entry point of ``hmarl-check-env``."""
    run_command(check)
