"""hmarl-train: learn a team's policies."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from hmarl.runtime.command_line import AS_JSON, PATH, ExitCode, argument, command, integer, option
from hmarl.sdk.commands._common import print_json, run, settings_option
from hmarl.sdk.commands._console import make_console, print_table
from hmarl.sdk.errors import UsageError
from hmarl.sdk.files import check_writable
from hmarl.trainer.commands.seeds import SEEDS, seeds_shown, train_seeds
from hmarl.trainer.commands.shared import (
    announce_ray,
    check_makeable,
    check_ray,
    log_to_standard_error,
    need_extra,
    need_torch,
    ray_option,
    read_config,
)
from hmarl.trainer.runs.stopping import StopRequest, answering_signals, stop_on_signals

if TYPE_CHECKING:
    from hmarl.trainer.runs.config import RunConfig
    from hmarl.trainer.runs.many_seeds import ManyRuns
    from hmarl.trainer.runs.request import Request
    from hmarl.trainer.runs.run import Run
    from hmarl.trainer.runs.training import MakeSource


@command(
    "hmarl-train",
    argument("algorithm", "what to train with; see hmarl-algorithms", required=False),
    option("--env", "see hmarl-envs; or MODULE:FUNCTION of your own", shown="FAMILY/TASK"),
    option("--steps", "environment steps of the team, summed over environments", integer(1)),
    option("--seed", "of everything random", integer(0)),
    option("--seeds", "several, trained at once: --out has a run directory for each, or is given for each", SEEDS),
    option(
        "--out",
        "run directory; by default runs/ALGORITHM-TASK-seedN-TIME",
        PATH,
        many=True,
        shown="DIR",
        parameter="outs",
    ),
    option("--device", "torch device, e.g. cpu or cuda", shown="NAME"),
    settings_option(
        "KEY=VALUE", "a setting algorithm.*, run.* or argument env.*; hmarl-algorithms ALGORITHM lists them"
    ),
    option("--preset", "a named preset, see hmarl-algorithms --presets, or FILE.toml", shown="NAME"),
    option(
        "--resume",
        "continue the run in this directory; repeatable, for seeds that are trained at once",
        PATH,
        many=True,
        shown="DIR",
    ),
    ray_option("run.workers are actors of a Ray cluster; of one that is started here without an address"),
    AS_JSON,
    examples=(
        "hmarl-train hcpo --env mpe/simple_spread --seed 1 --set env.N=3",
        "hmarl-train happo --env my_environment:make --steps 1000000",
        "hmarl-train mappo --env mpe/simple_spread --seeds 100,101,102 --out runs/mine",
        "hmarl-train --resume runs/mine",
        "hmarl-train --resume runs/mine/seed100 --resume runs/mine/seed101",
        "hmarl-train mappo --env mpe/simple_spread --set run.workers=4 --ray",
    ),
)
@answering_signals
def train(
    algorithm: str | None,
    env: str | None,
    steps: int | None,
    seed: int | None,
    seeds: tuple[int, ...] | None,
    outs: tuple[Path, ...],
    device: str | None,
    settings: tuple[str, ...],
    preset: str | None,
    resume: tuple[Path, ...],
    ray_address: str | None,
    as_json: bool,
) -> int:
    """Train a team.

    A pair of algorithm and task that has a preset (hmarl-algorithms --presets) starts from its settings and steps;
    --set and --steps override single ones of them. --preset NAME starts from a named preset instead. Ctrl-C saves and
    says how to resume; a killed run continues from its last checkpoint with --resume, bit for bit.
    """
    console = make_console(stderr=True)
    _check_together(algorithm, env, resume, seed, seeds, ray_address, others=(settings, preset, outs, device))
    _check_places(outs, seeds)
    need_extra("hmarl-train")
    check_ray(ray_address)
    if len(resume) > 1:
        return _resumed_at_once(console, resume, steps, as_json)
    if resume:
        running = _resumed(console, resume[0], steps, ray_address)
    else:
        assert algorithm is not None and env is not None  # noqa: PT018
        _check_free(outs, seeds)
        flags = {"steps": steps, "seed": seed, "device": device}
        requests = _requested(algorithm, env, [{**flags, "seed": one} for one in seeds or (seed,)], settings, preset)
        if seeds is not None:
            return _train_at_once(console, requests, outs, as_json)
        running = _created(console, requests[0], next(iter(outs), None), ray_address)
    return _train(console, running, as_json)


def _check_together(
    algorithm: str | None,
    env: str | None,
    resume: tuple[Path, ...],
    seed: int | None,
    seeds: tuple[int, ...] | None,
    ray_address: str | None,
    others: Sequence[object],
) -> None:
    """Refuse a command that says neither what is begun nor what is resumed, or both; ``others`` belong to a beginning.

    Raises:
        UsageError: so it is.
    """
    begins = algorithm or env or seed is not None or seeds or any(others)
    if resume and begins:
        raise UsageError(
            "--resume: takes everything from the run's config.json; only --steps and --ray may be given with it"
        )
    if not resume and (algorithm is None or env is None):
        given = "nothing" if algorithm is None else f"{algorithm} without --env"
        raise UsageError(
            f"ALGORITHM: got {given}, expected hmarl-train ALGORITHM --env FAMILY/TASK, or hmarl-train --resume DIR; "
            "hmarl-algorithms and hmarl-envs list what there is"
        )
    if seeds is not None or len(resume) > 1:
        _refuse_beside_seeds("--resume" if resume else "--seeds", seed, ray_address)


def _requested(
    algorithm: str, env: str, flags: Sequence[dict[str, Any]], settings: tuple[str, ...], preset: str | None
) -> list[Request]:
    """What is asked for, once for each of ``flags``, with what else is given and what the preset says."""
    from hmarl.trainer.runs.request import requested

    makeable = partial(check_makeable, "hmarl-train")
    return [requested(algorithm, env, each, settings, preset, makeable) for each in flags]


def _train(console: Console, running: Run, as_json: bool) -> int:
    """Train a run until it has ended or is stopped, and report; returns the exit code.

    Raises:
        IncompleteError: it has trained, but something else has failed.
    """
    from hmarl.trainer.runs.stopping import Interrupted

    try:
        with stop_on_signals() as stop:
            summary = running.train(stop)
    except KeyboardInterrupt as interruption:
        stop.wait_until_said()
        console.print(f"\nstopped; {running.stopped(saved=isinstance(interruption, Interrupted))}")
        return ExitCode.INTERRUPTED
    finally:
        running.close()
    _report(console, summary, running.directory)
    if as_json:
        print_json({"run": str(running.directory), **summary})
    if summary["problems"]:
        from hmarl.trainer.records.problems import IncompleteError

        raise IncompleteError(f"trained and saved in {running.directory}, but {'; '.join(summary['problems'])}")
    return ExitCode.DONE


def _check_places(outs: Sequence[Path], seeds: Sequence[int] | None) -> None:
    """One directory for a run; for seeds that are trained at once, one for each or one for all.

    Raises:
        UsageError: another number.
    """
    expected = "one" if seeds is None else f"one, or one for each of the {len(seeds)} seeds"
    if len(outs) > 1 and (seeds is None or len(outs) != len(seeds)):
        raise UsageError(f"--out: got {len(outs)} directories, expected {expected}")


def _check_free(outs: Sequence[Path], seeds: Sequence[int] | None) -> None:
    """Whether runs can begin there, before what takes longer; they look again once the directories are theirs.

    Raises:
        UsageError: there is a run, which may be going on, or nothing can be written.
    """
    from hmarl.trainer.runs.config import refuse_other_run
    from hmarl.trainer.runs.lock import RunLock

    below = [outs[0] / f"seed{seed}" for seed in seeds] if seeds and len(outs) == 1 else []
    for out in (*outs, *below):
        if (out / "config.json").exists():
            RunLock(out).release()  # a run that is going on is told from one that has ended
        refuse_other_run(out)
        check_writable(out, f"--out {out}")


def _refuse_beside_seeds(option: str, seed: int | None, ray_address: str | None) -> None:
    """What several seeds at once, asked for by an option, do not go with.

    Raises:
        UsageError: it was given.
    """
    if seed is not None:
        raise UsageError("--seeds: got --seed as well, expected one of them")
    if ray_address is not None:
        raise UsageError(
            f"{option}: got --ray as well, expected one of them: all seeds are trained in this process; one "
            "seed at a time has workers on a cluster"
        )


def _train_at_once(console: Console, requests: Sequence[Request], outs: Sequence[Path], as_json: bool) -> int:
    """Runs that differ in their seeds, in directories below the only one of ``outs``, or one in each; returns the exit
    code.
    """
    need_torch("hmarl-train")
    log_to_standard_error()
    from hmarl.trainer.runs.many_seeds import ManyRuns, check_many_seeds

    seeds = [int(request.run["seed"]) for request in requests]
    given = [outs[0] / f"seed{seed}" for seed in seeds] if len(outs) == 1 else list(outs)
    first = _configured(console, requests[0], len(seeds))
    check_many_seeds(first)
    configs = [first.model_copy(update={"run": {**first.run, "seed": seed}}) for seed in seeds]
    root = _default_directory(first, f"seeds{seeds_shown(seeds)}")
    directories = given or [root / f"seed{seed}" for seed in seeds]
    console.print(
        f"training {first.algorithm} on {first.environment} with the seeds {_listed(seeds)} at once, for "
        f"{first.run['steps']:,} steps each, into {_listed(directories)}"
        f"{f' ({requests[0].preset})' if requests[0].preset else ''}"
    )
    _announce_building(console, first)
    return train_seeds(console, lambda stop: ManyRuns.create(configs, directories, stop), _report, as_json)


def _resumed_at_once(console: Console, directories: Sequence[Path], steps: int | None, as_json: bool) -> int:
    """Goes on with several runs that differ in their seeds; returns the exit code."""
    for directory in directories:
        read_config(directory)  # is there a run?
    need_torch("hmarl-train")
    log_to_standard_error()
    from hmarl.trainer.runs.many_seeds import ManyRuns

    for directory in directories:
        again = "copy the run to where it can be written, and resume it there"
        check_writable(directory, f"--resume {directory}", again)
    _announce_building(console, read_config(directories[0]))

    def resumed(stop: StopRequest) -> ManyRuns:
        many = ManyRuns.resume(directories, steps, stop)
        for each in many.runs:
            _announce_resumed(console, each)
        return many

    return train_seeds(console, resumed, _report, as_json)


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))


def _refuse_idle_ray(address: str | None, workers: Any) -> None:
    """Ray without workers would do nothing.

    Raises:
        UsageError: so it is.
    """
    if address is not None and workers in (0, "0"):
        raise UsageError("run.workers: got 0 with --ray, expected at least 1, e.g. --set run.workers=4")


def _source(console: Console, address: str | None) -> MakeSource:
    """Where rollouts come from: workers, on Ray where there is an address, or environments of this process."""
    from hmarl.trainer.runs.training import rollout_source

    if address is None:
        return rollout_source
    from hmarl.trainer.runs.workers.ray_hands import ray_hands

    announce_ray(console, address)
    return partial(rollout_source, make_hands=ray_hands(address, console.print))


def _resumed(console: Console, directory: Path, steps: int | None, ray_address: str | None) -> Run:
    """The run in ``directory``, ready to go on; on Ray where there is an address."""
    _refuse_idle_ray(ray_address, read_config(directory).run_settings().workers)  # is there a run?
    need_torch("hmarl-train")
    log_to_standard_error()
    make_source = _source(console, ray_address)
    from hmarl.trainer.runs.config import RunConfig
    from hmarl.trainer.runs.run import Run

    config = RunConfig.read(directory)
    check_writable(directory, f"--resume {directory}", "copy the run to where it can be written, and resume it there")
    _announce_building(console, config)
    run = Run.resume(directory, steps, make_source)
    _announce_resumed(console, run)
    return run


def _announce_resumed(console: Console, run: Run) -> None:
    anew = "" if run.counters.update else " (no checkpoint had been written: it begins again)"
    console.print(f"resuming {run.directory} at {run.counters.steps:,} of {run.settings.steps:,} steps{anew}")


def _created(console: Console, request: Request, out: Path | None, ray_address: str | None) -> Run:
    """A new run in ``out``, or where runs go by default; on Ray where there is an address."""
    _refuse_idle_ray(ray_address, request.run.get("workers", 0))
    need_torch("hmarl-train")
    log_to_standard_error()
    config = _configured(console, request)
    make_source = _source(console, ray_address)
    from hmarl.trainer.runs.run import Run

    directory = out or _default_directory(config, f"seed{config.run['seed']}")
    if out is None:
        check_writable(directory, f"{directory} (--out chooses another)")
    console.print(
        f"training {config.algorithm} on {config.environment} for {config.run['steps']:,} steps into {directory}"
        f"{f' ({request.preset})' if request.preset else ''}"
    )
    _announce_building(console, config)
    return Run.create(config, directory, make_source)


def _announce_building(console: Console, config: RunConfig) -> None:
    from hmarl.sdk.environments import copy_cost

    cost = copy_cost(config.environment)
    compiling = ", compiling what resets them" if cost is not None and cost.compiles else ""
    console.print(f"building {config.run_settings().environments} copies of {config.environment}{compiling}")


def _configured(console: Console, request: Request, at_once: int = 1) -> RunConfig:
    """The run's config, with as many environments as fit where so many runs are trained at once."""
    from hmarl.trainer.networks.settings import idle
    from hmarl.trainer.runs.config import make_config
    from hmarl.trainer.runs.environment_count import fitted_run

    def config(run: dict[str, Any]) -> RunConfig:
        return make_config(request.algorithm, request.environment, request.algorithm_settings, run, request.arguments)

    checked = config(request.run)  # what can be refused at once is, before anything is measured
    for line in idle(checked.settings(), request.given):
        console.print(line)
    return config(fitted_run(request.environment, request.arguments, request.run, console.print, at_once))


def _default_directory(config: RunConfig, seeded: str) -> Path:
    task = re.sub(r"[^A-Za-z0-9_.-]+", "-", config.environment)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{config.algorithm}-{task}-{seeded}-{stamp}"


def _modes(judged: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """How a team chose its actions, and what it came to: as it is judged, then otherwise where it played that too."""
    otherwise = [(mode, judged[mode]) for mode in ("greedy", "sampled") if mode in judged]
    return [(judged.get("actions", ""), judged), *otherwise]


def _evaluations(summary: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Which checkpoints were evaluated, in words; and by checkpoint, each one once, what its teams came to."""
    last, best = summary["steps"], summary["best"]
    if not best:
        return f"of the last checkpoint, at {last:,} steps", {"last": summary["final"]}
    if best["steps"] == last:
        return f"of the last checkpoint, at {last:,} steps, which is the best", {"last": summary["final"]}
    said = f"of the last checkpoint, at {last:,} steps, and the best, at {best['steps']:,}"
    return said, {"last": summary["final"], "best": best["teams"]}


def _of_workers(rollouts: dict[str, Any]) -> str:
    """Who collected, how fast, and what it cost."""
    rates = rollouts["steps_per_s"]
    told = f"{rollouts['workers']} workers {rollouts['where']}"
    if rates:
        told += f": {min(rates):,.0f} to {max(rates):,.0f} steps/s each"
    if "bytes_per_frame" in rollouts:
        told += (
            f", {rollouts['bytes_per_frame']:,.0f} bytes a frame, {rollouts['weights_bytes']:,} of parameters an update"
        )
    return told + (f", {rollouts['replaced']} replaced" if rollouts["replaced"] else "")


def _report(console: Console, summary: dict[str, Any], directory: Path) -> None:
    from hmarl.trainer.algorithms import find_algorithm
    from hmarl.trainer.runs.announcements import duration

    said, evaluations = _evaluations(summary)
    several = len(evaluations) > 1
    rows = [
        (
            name, actions, *([when] if several else []),
            f"{row['return_mean']:.2f}", f"{row['return_median']:.2f}", f"{row['return_iqm']:.2f}",
            "" if row.get("success_rate") is None else f"{row['success_rate']:.0%}",
        )
        for when, teams in evaluations.items()
        for name, judged in teams.items()
        for actions, row in _modes(judged)
    ]  # fmt: skip
    if rows:
        console.print(f"evaluation of {summary['algorithm']} on {summary['environment']}", style="italic")
        which = ["checkpoint"] if several else []
        print_table(console, said, ("policy", "actions", *which, "return mean", "median", "IQM", "success"), rows)
    if workers := summary.get("rollouts"):
        console.print(_of_workers(workers))
    resumed_at, steps = summary["resumed_at"], summary["steps"]
    part = f", the last {steps - resumed_at:,}" if 0 < resumed_at < steps else ""
    # What acts for the whole team at once has no local policies, and nothing to export.
    exports = "local" in summary["final"] or find_algorithm(summary["algorithm"]).distils
    following = f"hmarl-export {directory}" if exports else f"hmarl-eval --run {directory}"
    console.print(
        f"{steps:,} steps{part} in {duration(summary['wall_s'])}\n"
        f"next: {following}\ncurves: tensorboard --logdir {directory / 'tensorboard'}",
    )


def train_main() -> None:
    """Entry point of hmarl-train."""
    sys.exit(run(train))


if __name__ == "__main__":
    train_main()
