"""hmarl-tune: search for settings."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from hmarl.runtime.command_line import (
    AS_JSON,
    PATH,
    POSITIVE,
    ExitCode,
    argument,
    choice,
    command,
    integer,
    option,
)
from hmarl.sdk.commands._common import parse_settings, print_json, run, settings_option
from hmarl.sdk.commands._console import make_console, print_table
from hmarl.sdk.errors import UsageError
from hmarl.sdk.files import check_writable
from hmarl.trainer.commands.shared import (
    announce_ray,
    check_makeable,
    check_ray,
    need_extra,
    need_torch,
    ray_option,
    said_when_slow,
)
from hmarl.trainer.runs.stopping import answering_signals, stop_on_signals

if TYPE_CHECKING:
    from hmarl.trainer.tuning.found import Found
    from hmarl.trainer.tuning.plan import SearchPlan

_STOPPING = "stopping: every run ends its update and saves"
_GROUPS = ("algorithm", "run", "env")


@command(
    "hmarl-tune",
    argument("algorithm", "what to train with; see hmarl-algorithms"),
    option("--env", "see hmarl-envs; or MODULE:FUNCTION of your own", required=True, shown="FAMILY/TASK"),
    option(
        "--search",
        "a setting and its values: LOW..HIGH, log:LOW..HIGH or A|B|C; repeatable",
        many=True,
        shown="KEY=VALUES",
    ),
    option("--space", "TOML file of such settings", PATH, shown="FILE"),
    option("--trials", "how many, those of earlier commands included", integer(1), default=20),
    option("--jobs", "runs at the same time", integer(1), default=1),
    option("--retries", "how often a run that was killed is started again", integer(0), default=1),
    option("--seeds", "runs of a trial, whose mean is its value", integer(1), default=1),
    option("--steps", "environment steps of a run; by default the preset's", integer(1)),
    option("--evaluations", "of a run", integer(1), default=10),
    option("--pruner", "what ends trials early: median, hyperband or none", choice("median", "hyperband", "none"),
           default="median", shown="NAME"),
    option("--sampler", "what draws trials: tpe or random", choice("tpe", "random"), default="tpe", shown="NAME"),
    option("--measure", "return or success_rate", choice("return", "success_rate"), default="return", shown="NAME"),
    option("--minutes", "end after so long; the same command goes on", POSITIVE),
    option("--preset", "what trials start from, as of hmarl-train", shown="NAME"),
    settings_option("KEY=VALUE", "a setting of all trials, as of hmarl-train"),
    option("--out", "search directory (by default runs/tune-ALGORITHM-TASK)", PATH, shown="DIR"),
    ray_option("trials are trained by a Ray cluster; by one that is started here without an address"),
    AS_JSON,
    examples=(
        "hmarl-tune happo --env mpe/simple_spread --trials 30 --jobs 2 \\",
        "  --search algorithm.learning_rate=log:1e-4..1e-2 \\",
        "  --search algorithm.epochs=2..15",
    ),
)  # fmt: skip
@answering_signals
def tune(
    algorithm: str,
    env: str,
    search: tuple[str, ...],
    space: Path | None,
    trials: int,
    jobs: int,
    retries: int,
    minutes: float | None,
    pruner: str,
    sampler: str,
    out: Path | None,
    ray_address: str | None,
    as_json: bool,
    **given: Any,
) -> int:
    """Search for settings of an algorithm on a task.

    Each trial draws settings and trains with seeds of the search alone; trials whose learning curve stays behind are
    ended early. The first trial takes the settings as they are without a search, where they lie in the space. A search
    that was stopped or killed goes on with the same command. DIR/best.toml is the best trial as a preset,
    DIR/confirm.toml a suite that holds it against the settings before, with other seeds and other episodes.
    """
    console = make_console(stderr=True)
    need_extra("hmarl-tune")
    check_ray(ray_address)
    plan = _planned(algorithm, env, search, space, **given)
    need_torch("hmarl-tune")
    from hmarl.trainer.runs.lock import RunLock
    from hmarl.trainer.suite.engine import Places
    from hmarl.trainer.suite.planned import slug
    from hmarl.trainer.suite.ray_executor import executor_at
    from hmarl.trainer.tuning.found import write_found
    from hmarl.trainer.tuning.search import Search, SearchLimits, open_study, optuna_module

    optuna_module()
    with said_when_slow(f"hmarl-tune: checking {env}"):
        before = plan.check()
    folder = out or Path("runs") / f"tune-{algorithm}-{slug(env)}"
    check_writable(folder, f"--out {folder}")
    with RunLock(folder, "search directory"), stop_on_signals() as stop:
        stop.postponing = _STOPPING
        study = open_study(plan, folder, pruner, sampler, before)
        limits = SearchLimits(trials, jobs, None if minutes is None else 60 * minutes, retries)
        places = Places(folder / "runs", folder / "failed")
        announce_ray(console, ray_address)
        with executor_at(ray_address) as executor:
            console.print(f"searching {', '.join(plan.space)} for {algorithm} on {env}: {trials} trials into {folder}")
            Search(plan, study, places, executor, limits, console.print).run(stop)
        found = write_found(plan, study, folder, before)
    _report(console, plan, found)
    if as_json:
        print_json({"search": str(folder), **vars(found)})
    if stop():
        console.print("stopped; all runs are saved, and the same command goes on")
        return ExitCode.INTERRUPTED
    return ExitCode.DONE


def _planned(
    algorithm: str,
    env: str,
    search: tuple[str, ...],
    space_file: Path | None,
    *,
    seeds: int,
    steps: int | None,
    evaluations: int,
    measure: str,
    preset: str | None,
    settings: tuple[str, ...],
) -> SearchPlan:
    """What is searched, checked as far as that can be done without PyTorch.

    Raises:
        UsageError: an unknown name, or a wrong value.
    """
    from hmarl.trainer.runs.request import chosen_preset, requested
    from hmarl.trainer.runs.settings import RunSettings
    from hmarl.trainer.tuning.plan import SearchPlan

    space = _space(search, space_file)
    taken = [f"{group}.{key}" for group, of in parse_settings(settings, _GROUPS).items() for key in of]
    for name in taken:
        if name in space:
            raise UsageError(f"--set: got {name}, which is searched; expected it in one of both")
    makeable = partial(check_makeable, "hmarl-tune")
    request = requested(algorithm, env, {"steps": steps}, settings, preset, makeable)
    based_on = chosen_preset(preset, algorithm, env)
    return SearchPlan(
        algorithm,
        env,
        preset,
        settings,
        space,
        steps=RunSettings(**request.run).steps,
        evaluations=evaluations,
        seeds=seeds,
        measure=measure,
        seen=() if based_on is None else based_on.search_seeds,
    )


def _space(search: tuple[str, ...], file: Path | None) -> dict[str, Any]:
    """What ``--search`` and ``--space`` say."""
    from hmarl.trainer.runs.preset_files import read_toml
    from hmarl.trainer.suite.definition import flat_settings
    from hmarl.trainer.tuning.space import parse_dimension

    listed = {} if file is None else flat_settings(read_toml(file, f"--space {file}"), f"--space {file}")
    space = {name: parse_dimension(f"--space {file}: {name}", values) for name, values in listed.items()}
    for text in search:
        name, equals, values = text.partition("=")
        if not equals:
            raise UsageError(f"--search: got '{text}', expected KEY=VALUES, e.g. algorithm.gamma=0.9..0.99")
        flat_settings({name: None}, "--search")
        space[name] = parse_dimension(f"--search {name}", values)
    if not space:
        raise UsageError("--search: got nothing, expected a setting and its values, or --space FILE")
    if "run.seed" in space or "run.steps" in space:
        raise UsageError("--search: got run.seed or run.steps, which make no trial better; expected other settings")
    return space


def _report(console: Console, plan: SearchPlan, found: Found) -> None:
    """Show the best trials, and what to do with them."""
    rows = [
        (str(trial["number"]), f"{trial['value']:.4g}", *(f"{trial['settings'][name]}" for name in plan.space))
        for trial in found.best
    ]
    print_table(console, f"best of {found.told()}", ("trial", plan.measure, *plan.space), rows)
    if found.preset is None:
        console.print("no trial has come to its end yet")
        return
    console.print(
        f"wrote {found.preset} and {found.confirm}\n"
        f"train: {found.command}\n"
        f"confirm: hmarl-suite {shlex.quote(str(found.confirm))}"
    )


def tune_main() -> None:
    """Entry point of hmarl-tune."""
    sys.exit(run(tune))


if __name__ == "__main__":
    tune_main()
