"""hmarl-train, hmarl-export and hmarl-algorithms.

This module imports without torch, so that a base install can say which extra is missing.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from hmarl.sdk.commands._common import parse_settings, print_json, run_command
from hmarl.sdk.commands._console import make_console, print_listing, print_table
from hmarl.sdk.errors import MissingExtraError, UsageError
from hmarl.sdk.files import check_writable
from hmarl.trainer.stopping import answering_signals, stop_on_signals

if TYPE_CHECKING:
    from hmarl.runtime.bundle import StudentsModel
    from hmarl.trainer.run_config import RunConfig
    from hmarl.trainer.training import Run

_SETTINGS_HELP = "KEY=VALUE with KEY algorithm.*, env.* or run.*, repeatable; see hmarl-algorithms ALGORITHM"

_DISTILLATION_HELP = "distillation.KEY=VALUE, repeatable, with --distil; see hmarl-algorithms ALGORITHM"


def _need_torch(purpose: str) -> None:
    """Load the trainer's packages; raise the error that names the extra when they are missing."""
    # OpenMP's threads spin while they wait: the default spins so long that a machine that is shared grinds to a halt,
    # none at all halves the speed of one that is not.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    console = make_console(stderr=True)
    # A terminal is told at once; in a log that only matters when it takes long.
    patience_s = 0.0 if console.is_terminal else 2.0
    notice = threading.Timer(patience_s, console.print, [f"{purpose}: loading PyTorch"])
    notice.daemon = True
    notice.start()
    try:
        import onnx  # noqa: F401
        import safetensors  # noqa: F401
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "train", purpose) from error
    finally:
        notice.cancel()


@answering_signals
def train(
    algorithm: Annotated[str | None, typer.Argument(help="what to train with; see hmarl-algorithms")] = None,
    env: Annotated[str | None, typer.Option(help="FAMILY/TASK, see hmarl-envs; or package.module:function")] = None,
    steps: Annotated[int | None, typer.Option(help="environment steps of the team, summed over environments")] = None,
    seed: Annotated[int | None, typer.Option(help="seed of everything random")] = None,
    out: Annotated[Path | None, typer.Option(help="run directory; default runs/ALGORITHM-TASK-seedN-TIME")] = None,
    device: Annotated[str | None, typer.Option(help="torch device, e.g. cpu or cuda")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help=_SETTINGS_HELP)] = None,
    preset: Annotated[str | None, typer.Option(help="a named preset, see hmarl-algorithms --presets")] = None,
    resume: Annotated[Path | None, typer.Option(help="continue the run in this directory")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the summary as the last line of stdout")] = False,
) -> None:
    """Train a team.

    Example: hmarl-train hcpo --env mpe/simple_spread --seed 1 --set env.N=3 --set algorithm.instructions=10

    Without --steps and --set a pair of algorithm and task runs with its preset where it has one (hmarl-algorithms
    --presets); --preset takes a named one instead. Ctrl-C saves and says how to resume; a killed run continues from
    its last checkpoint with --resume, bit for bit.
    """
    console = make_console(stderr=True)
    if resume is not None and (algorithm or env or settings or preset or out or seed is not None or device):
        raise UsageError("--resume: takes everything from the run's config.json; only --steps may be given with it")
    if resume is None and (algorithm is None or env is None):
        raise UsageError("usage: hmarl-train ALGORITHM --env FAMILY/TASK, or hmarl-train --resume DIR; see --help")
    _need_torch("hmarl-train")
    _log_to_standard_error()
    from hmarl.trainer.training import Interrupted

    if resume is not None:
        run = _resumed(console, resume, steps)
    else:
        assert algorithm is not None and env is not None  # noqa: PT018
        flags = {"steps": steps, "seed": seed, "device": device}
        config, used = _configured(console, algorithm, env, flags, settings, preset, out)
        run = _created(console, config, used, out)
    try:
        with stop_on_signals() as stop:
            summary = run.train(stop)
    except KeyboardInterrupt as interruption:
        stop.wait_until_said()
        console.print(f"\nstopped; {run.stopped(saved=isinstance(interruption, Interrupted))}")
        raise SystemExit(130) from None
    finally:
        run.close()
    _report(console, summary, run.directory)
    if as_json:
        print_json({"run": str(run.directory), **summary})
    if summary["problems"]:
        from hmarl.trainer.problems import IncompleteError

        raise IncompleteError(f"trained and saved in {run.directory}, but {'; '.join(summary['problems'])}")


class _StandardError(logging.StreamHandler[Any]):
    """Logs to what standard error is at the moment: while a progress bar is shown, lines go above it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        self.stream = sys.stderr
        super().emit(record)


def _log_to_standard_error() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", handlers=[_StandardError()])


def _resumed(console: Console, directory: Path, steps: int | None) -> Run:
    """The run in ``directory``, ready to go on."""
    from hmarl.trainer.run_config import RunConfig
    from hmarl.trainer.training import Run

    config = RunConfig.read(directory)
    check_writable(directory, f"--resume {directory}", "copy the run to where it can be written, and resume it there")
    _announce_building(console, config)
    run = Run.resume(directory, steps)
    anew = "" if run.counters.update else " (no checkpoint had been written: it begins again)"
    console.print(f"resuming {directory} at {run.counters.steps:,} of {run.settings.steps:,} steps{anew}")
    return run


def _created(console: Console, config: RunConfig, used: str, out: Path | None) -> Run:
    """A new run in ``out``, or where runs go by default; ``used`` says on which preset it is based."""
    from hmarl.trainer.training import Run

    directory = out or _default_directory(config)
    if out is None:
        check_writable(directory, f"{directory} (--out chooses another)")
    console.print(
        f"training {config.algorithm} on {config.environment} for {config.run['steps']:,} steps into {directory}"
        f"{f' ({used})' if used else ''}"
    )
    _announce_building(console, config)
    return Run.create(config, directory)


def _announce_building(console: Console, config: RunConfig) -> None:
    from hmarl.sdk.environments import copy_cost

    cost = copy_cost(config.environment)
    compiling = ", compiling what resets them" if cost is not None and cost.compiles else ""
    console.print(f"building {config.run_settings().environments} copies of {config.environment}{compiling}")


def _configured(
    console: Console,
    algorithm: str,
    env: str,
    flags: dict[str, Any],
    settings: list[str] | None,
    preset_name: str | None,
    out: Path | None,
) -> tuple[RunConfig, str]:
    """The run's config, and in words which preset it is based on; empty without one."""
    from hmarl.trainer.environment_count import fitted_run
    from hmarl.trainer.presets import find_preset, named_preset
    from hmarl.trainer.run_config import make_config
    from hmarl.trainer.training import refuse_other_run

    given = parse_settings(settings, ("algorithm", "env", "run"))
    preset = named_preset(preset_name, algorithm) if preset_name else find_preset(algorithm, env)
    base_algorithm = dict(preset.algorithm_settings) if preset else {}
    base_run = {**preset.run_settings, "steps": preset.steps} if preset else {}
    arguments = dict(preset.environment_arguments) if preset else {}
    run = {**base_run, **given["run"], **{key: value for key, value in flags.items() if value is not None}}
    arguments = {**arguments, **given["env"]}
    chosen = {**base_algorithm, **given["algorithm"]}
    make_config(algorithm, env, chosen, run, arguments)  # what can be refused at once is, before anything is measured
    if out is not None:
        refuse_other_run(out)
        check_writable(out, f"--out {out}")
    config = make_config(algorithm, env, chosen, fitted_run(env, arguments, run, console.print), arguments)
    return config, f"preset {preset.name}" if preset_name and preset else "preset" if preset else ""


def _default_directory(config: RunConfig) -> Path:
    task = re.sub(r"[^A-Za-z0-9_.-]+", "-", config.environment)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{config.algorithm}-{task}-seed{config.run['seed']}-{stamp}"


def _report(console: Console, summary: dict[str, Any], directory: Path) -> None:
    from hmarl.trainer.algorithms import find_algorithm
    from hmarl.trainer.announcements import duration

    rows = [
        (
            name, f"{row['return_mean']:.2f}", f"{row['return_median']:.2f}", f"{row['return_iqm']:.2f}",
            "" if row.get("success_rate") is None else f"{row['success_rate']:.0%}",
        )
        for name, row in summary["final"].items()
    ]  # fmt: skip
    title = f"final evaluation of {summary['algorithm']} on {summary['environment']}"
    if rows:
        print_table(console, title, ("policy", "return mean", "median", "IQM", "success"), rows)
    resumed_at, steps = summary["resumed_at"], summary["steps"]
    part = f", the last {steps - resumed_at:,}" if 0 < resumed_at < steps else ""
    # What acts for the whole team at once has no local policies, and nothing to export.
    exports = "local" in summary["final"] or find_algorithm(summary["algorithm"]).distils
    following = f"hmarl-export {directory}" if exports else f"hmarl-eval --run {directory}"
    console.print(
        f"{steps:,} steps{part} in {duration(summary['wall_s'])}\n"
        f"next: {following}\ncurves: tensorboard --logdir {directory / 'tensorboard'}",
    )


def export(
    run: Annotated[Path, typer.Argument(help="run directory of hmarl-train")],
    out: Annotated[Path | None, typer.Option(help="bundle to write: a directory, or a file ending in .zip")] = None,
    checkpoint: Annotated[str, typer.Option(help="best, last or a number of steps")] = "best",
    name: Annotated[str | None, typer.Option(help="the bundle's name; default the run's")] = None,
    distil: Annotated[bool, typer.Option("--distil", help="export local students of the team that knows more")] = False,
    settings: Annotated[list[str] | None, typer.Option("--set", help=_DISTILLATION_HELP)] = None,
    restart_students: Annotated[bool, typer.Option(help="discard the students in RUN/students, distil anew")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON object as the last line of stdout")] = False,
) -> None:
    """Write a run's local policies, one per agent, as ONNX, check them against torch, and put them into a bundle.

    Refuses to write a bundle whose ONNX Runtime outputs differ from torch's by more than the stated tolerance, and
    algorithms that act for the whole team at once (hmarl-algorithms marks them), unless --distil is given: then one
    recurrent student per agent learns to do from its own observations what the team does that knows more. The gap
    between both is printed, and kept in the bundle. A distillation that was cut off goes on with the same command. With
    --set distillation.told=team (or state) students see more than their agents: they are reported on, not exported.
    """
    _need_torch("hmarl-export")
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s: %(message)s")
    logging.getLogger("hmarl").setLevel(logging.WARNING)  # and of others errors alone
    from hmarl.runtime.bundle import to_plain
    from hmarl.trainer.export import export_run

    console = make_console(stderr=True)
    distillation = _distillation(console, run, distil, settings, restart_students)
    if distillation is not None and distillation.told != "nothing":
        for option, given in (("--out", out), ("--name", name)):
            if given is not None:
                raise UsageError(
                    f"{option}: got {given}, expected nothing with distillation.told={distillation.told}: students who "
                    "are told more than their agents see are reported on, and no bundle is written"
                )
        _diagnose(console, run, checkpoint, distillation, restart_students, as_json)
        return
    target = out or run / "bundle"
    console.print(f"exporting {run} ({checkpoint} checkpoint) to {target}")
    with _saying_what_is_kept(console, run, distillation, restart_students):
        bundle = export_run(run, target, checkpoint, name, distillation, restart_students)
    parity, students = bundle.manifest.parity[0], bundle.manifest.students
    if students is not None:
        _report_students(console, students)
    console.print(
        f"wrote {target}: {len(bundle.manifest.agents)} agents, parity with torch on {parity.samples:,} inputs: "
        f"largest error {parity.max_error:.2e}, {parity.action_mismatches} differing actions, "
        f"{parity.near_ties} near ties\n"
        f"next: hmarl-verify {target}\n      hmarl-fleet {target} --out endpoints.json",
    )
    if as_json:
        document = {"bundle": str(target), "sha256": bundle.sha256, "parity": to_plain(parity)}
        print_json(document | ({} if students is None else {"students": to_plain(students)}))


def _distillation(console: Console, run: Path, distil: bool, settings: list[str] | None, restart: bool) -> Any:
    """The settings of the distillation, checked; None where nothing is distilled."""
    from hmarl.trainer.algorithms import find_algorithm
    from hmarl.trainer.config import validate
    from hmarl.trainer.environment_count import fitted_count
    from hmarl.trainer.run_config import RunConfig
    from hmarl.trainer.students.kept import begun_with
    from hmarl.trainer.students.settings import DistillationSettings

    given = parse_settings(settings, ("distillation",))["distillation"]
    checked = validate(DistillationSettings, given, "distillation")
    config = RunConfig.read(run)
    algorithm = config.algorithm
    if distil or find_algorithm(algorithm).distils:
        if "environments" in given:
            return checked
        begun = None if restart else begun_with(run / checked.folder, "environments")
        if begun is not None:  # the same command goes on, whatever this machine has room for now
            return validate(DistillationSettings, {**given, "environments": begun}, "distillation")
        name, arguments = config.environment, config.environment_arguments
        count = fitted_count(name, arguments, checked.environments, console.print)
        return checked.model_copy(update={"environments": count})
    if given or restart:
        option = "--set distillation.*" if given else "--restart-students"
        raise UsageError(
            f"{option}: got it without --distil, and {algorithm} is not distilled unless --distil is given"
        )
    return None


@contextmanager
def _saying_what_is_kept(console: Console, run: Path, distillation: Any, restart: bool) -> Iterator[None]:
    """When a distillation is stopped."""
    try:
        yield
    except KeyboardInterrupt:
        if distillation is not None:
            folder, command = run / distillation.folder, "the same command" + " without --restart-students" * restart
            kept = f"the rounds that are done are kept in {folder}: {command} goes on"
            if not any(folder.glob("checkpoints/step-*.json")):
                kept = f"no round is done yet: {command} begins again"
            console.print(f"\nstopped; {kept}")
        raise


def _diagnose(console: Console, run: Path, checkpoint: str, distillation: Any, restart: bool, as_json: bool) -> None:
    """Report on students that see more than their agents will; there is nothing to export."""
    from hmarl.runtime.bundle import to_plain
    from hmarl.trainer.export import load_run
    from hmarl.trainer.students.dagger import distil_run

    loaded = load_run(run, checkpoint)
    with _saying_what_is_kept(console, run, distillation, restart):
        distilled = distil_run(run, loaded.algorithm, loaded.config, loaded.checkpoint, distillation, restart=restart)
    report = distilled.report
    _report_students(console, report)
    console.print(
        f"no bundle: these students saw more than their agents will (distillation.told={distillation.told}). If they "
        "keep clearly more of the return than local students do, it is information that those lack",
    )
    if as_json:
        print_json({"students": to_plain(report)})


def _report_students(console: Console, students: StudentsModel) -> None:
    from hmarl.trainer.students.report import figures

    print_table(console, f"students of the {students.teacher}", ("", ""), figures(students))


def algorithms(
    name: Annotated[str | None, typer.Argument(help="show this algorithm's settings")] = None,
    presets: Annotated[bool, typer.Option("--presets", help="list the presets")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON object as the last line of stdout")] = False,
) -> None:
    """List the algorithms, the settings of one, or the presets."""
    _need_torch("hmarl-algorithms")
    from hmarl.trainer.algorithm import Algorithm
    from hmarl.trainer.algorithms import ALGORITHMS, find_algorithm
    from hmarl.trainer.config import RunSettings, Settings
    from hmarl.trainer.presets import PRESETS
    from hmarl.trainer.students.settings import DistillationSettings

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    if presets:
        title, columns = "presets", ("algorithm", "environment", "--preset", "steps", "about")
        rows = [
            (preset.algorithm, preset.environment, preset.name or "by itself", f"{preset.steps:,}", preset.about)
            for preset in PRESETS
        ]
        document: dict[str, Any] = {"presets": [vars(preset) for preset in PRESETS]}
    elif name is not None:
        algorithm = find_algorithm(name)
        classes: dict[str, type[Settings]] = {"algorithm": algorithm.settings_class, "run": RunSettings}
        if algorithm.teacher is not Algorithm.teacher:
            classes["distillation"] = DistillationSettings
        title, columns = f"settings of {name} (--set SETTING=VALUE)", ("setting", "default", "meaning")
        rows, document = [], {}
        for prefix, model in classes.items():
            for key, field in model.model_fields.items():
                if prefix == "algorithm" and key in algorithm.settings_class.without_effect:
                    continue
                rows.append((f"{prefix}.{key}", json.dumps(field.default), field.description or ""))
                document[f"{prefix}.{key}"] = field.default
    else:
        title, columns = "algorithms", ("algorithm", "acts", "about")
        rows = [
            (key, "agent by agent" if each.exportable else "centrally", (each.__doc__ or "").splitlines()[0])
            for key, each in ALGORITHMS.items()
        ]
        central = [key for key, each in ALGORITHMS.items() if not each.exportable]
        document = {"algorithms": list(ALGORITHMS), "central": central}
    print_listing(make_console(), columns, rows, title)
    if as_json:
        print_json(document)


def train_main() -> None:
    """Entry point of hmarl-train."""
    run_command(train)


def export_main() -> None:
    """Entry point of hmarl-export."""
    run_command(export)


def algorithms_main() -> None:
    """Entry point of hmarl-algorithms."""
    run_command(algorithms)


if __name__ == "__main__":
    train_main()
