"""hmarl-eval: play closed-loop episodes with a bundle, a fleet of agent processes or a training run."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from hmarl.runtime.bundle import load_bundle
from hmarl.sdk.client import AgentClient
from hmarl.sdk.commands._common import parse_settings, print_json, run_command
from hmarl.sdk.environment import VectorEnvironment
from hmarl.sdk.environments import make
from hmarl.sdk.errors import EnvironmentFault, MissingExtraError, UsageError
from hmarl.sdk.evaluation import Evaluation, evaluate, marl_eval_json
from hmarl.sdk.files import write_text
from hmarl.sdk.report import ReportContent, write_report
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.sdk.team import RandomTeam, Team
from hmarl.sdk.teams import BundleTeam, FleetTeam, load_endpoints
from hmarl.sdk.video import Recording, record_episode, write_video

_EXTRA_PACKAGES = ("jinja2", "matplotlib", "imageio", "rliable")
_DEFAULT_BATCH = 16


@dataclass(frozen=True)
class Options:
    """The command line, as it was understood."""

    bundle: Path | None
    endpoints: Path | None
    run: Path | None
    env: str | None
    episodes: int
    seed: int
    sample: bool
    instruction_choice: Literal["argmax", "sample", "common"] | None
    variant: str | None
    checkpoint: str
    provider: str
    stream: bool
    batch_size: int
    settings: tuple[str, ...]
    out: Path | None
    video: Literal["gif", "mp4"] | None
    report: bool
    json: bool

    def command(self) -> str:
        """A command line that repeats the evaluation."""
        words = ["hmarl-eval"]
        for name in ("bundle", "endpoints", "run", "env", "episodes", "seed", "instruction_choice", "variant", "out"):
            value = getattr(self, name)
            if value is not None:
                words += [f"--{name.replace('_', '-')}", str(value)]
        words += ["--checkpoint", self.checkpoint] if self.run else []
        words += ["--provider", self.provider] if self.bundle else []
        words += ["--stream"] if self.stream else []
        words += ["--sample"] if self.sample else []
        words += ["--batch-size", str(self.batch_size)]
        for setting in self.settings:
            words += ["--set", setting]
        return shlex.join(words)


@dataclass(frozen=True)
class Source:
    """Where a team comes from, and the environment that it was trained in."""

    environment: str
    arguments: dict[str, Any]
    make_team: Callable[[EnvironmentSpec], Team]


def _bundle_source(options: Options, path: Path) -> Source:
    bundle = load_bundle(path)

    def make_team(spec: EnvironmentSpec) -> Team:
        return BundleTeam(
            bundle,
            spec,
            provider=options.provider,
            sample=options.sample,
            instruction_choice=options.instruction_choice,
            name=f"{bundle.manifest.name} (in process)",
        )

    return Source(bundle.manifest.environment.name, dict(bundle.manifest.environment.arguments), make_team)


def _fleet_source(options: Options, path: Path) -> Source:
    endpoints = load_endpoints(path)
    with AgentClient(next(iter(endpoints.values()))) as client:
        name = f"{client.info.bundle_name} (gRPC)"
        environment = json.loads(client.info.environment_json)

    def make_team(spec: EnvironmentSpec) -> Team:
        return FleetTeam(
            endpoints,
            spec,
            sample=options.sample,
            instruction_choice=options.instruction_choice,
            stream=options.stream,
            name=name,
        )

    return Source(environment["name"], environment.get("arguments", {}), make_team)


def _run_source(options: Options, path: Path) -> Source:
    points = entry_points(group="hmarl.policy_sources", name="run")
    try:
        load_team = next(iter(points)).load()
    except (ImportError, StopIteration) as error:
        raise MissingExtraError(getattr(error, "name", None) or "torch", "train", "evaluating a run") from error
    make_team, name, arguments = load_team(
        path,
        variant=options.variant,
        checkpoint=options.checkpoint,
        sample=options.sample,
        instruction_choice=options.instruction_choice,
    )
    return Source(name, dict(arguments), make_team)


def _source(options: Options) -> Source:
    makers = {"bundle": _bundle_source, "endpoints": _fleet_source, "run": _run_source}
    given = [name for name in makers if getattr(options, name) is not None]
    if len(given) != 1:
        raise UsageError(
            f"got {' and '.join('--' + name for name in given) or 'no team'}, "
            "expected exactly one of --bundle, --endpoints and --run"
        )
    return makers[given[0]](options, getattr(options, given[0]))


def _environment(options: Options, source: Source) -> VectorEnvironment:
    """The environment asked for; the source's arguments are the defaults where it is the source's environment."""
    name = options.env or source.environment
    arguments = dict(source.arguments) if name == source.environment else {}
    arguments.update(parse_settings(options.settings)["env"])
    return make(name, batch_size=options.batch_size, **arguments)


def _measure(options: Options, environment: VectorEnvironment, team: Team, console: Console) -> Evaluation:
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"{team.name} on {environment.spec.name}", total=options.episodes)
        return evaluate(
            environment,
            team,
            options.episodes,
            options.seed,
            progress=lambda done, _: progress.update(task, completed=done),
        )


def _print_table(evaluation: Evaluation, console: Console) -> None:
    summary = evaluation.summary()
    low, high = summary["return_ci95"]
    table = Table(title=f"{evaluation.team} on {evaluation.environment}", show_header=False, title_justify="left")
    table.add_row("episodes", str(summary["episodes"]))
    table.add_row("return, IQM [95 % interval]", f"{summary['return_iqm']:.3f} [{low:.3f}, {high:.3f}]")
    table.add_row("return, mean ± std", f"{summary['return_mean']:.3f} ± {summary['return_std']:.3f}")
    table.add_row("return, median", f"{summary['return_median']:.3f}")
    table.add_row("steps an episode", f"{summary['length_mean']:.1f}")
    if summary["success_rate"] is not None:
        table.add_row("success", f"{100 * summary['success_rate']:.1f} %")
    if summary["latency_p50_us"] is not None:
        latency = f"{summary['latency_p50_us']:,.0f} / {summary['latency_p99_us']:,.0f} µs"
        table.add_row(f"latency p50 / p99, {evaluation.latency_of}", latency)
    console.print(table)


def _episodes_csv(evaluation: Evaluation, spec: EnvironmentSpec) -> str:
    """One line per episode."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["episode", "seed", "return", "length", "success", *(f"return_{each}" for each in spec.agent_ids)])
    for episode in range(evaluation.episodes):
        success = "" if evaluation.successes is None else int(evaluation.successes[episode])
        own = evaluation.agent_returns[episode].tolist()
        figures = [evaluation.returns[episode].item(), evaluation.lengths[episode].item(), success, *own]
        writer.writerow([episode, evaluation.seeds[episode].item(), *figures])
    return text.getvalue()


def _write_results(out: Path, evaluation: Evaluation, spec: EnvironmentSpec) -> list[Path]:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: {error.strerror}") from error
    written = [out / "evaluation.json", out / "episodes.csv"]
    write_text(written[0], json.dumps(marl_eval_json([evaluation]), indent=1) + "\n")
    write_text(written[1], _episodes_csv(evaluation, spec))
    return written


def _record(
    out: Path, kind: str, environment: VectorEnvironment, team: Team, evaluation: Evaluation, console: Console
) -> tuple[Recording | None, Path | None]:
    """Play the episode nearest to the median once more, and film it; says why there is no film."""
    typical = int(np.abs(evaluation.returns - np.median(evaluation.returns)).argmin())
    try:
        recording = record_episode(environment, team, int(evaluation.seeds[typical]))
    except EnvironmentFault as error:  # a renderer that takes its process with it
        console.print(f"no video: {error}", markup=False, soft_wrap=True)
        return None, None
    if recording.problem is not None:
        kept = f"the video ends after {len(recording.frames)} pictures" if recording.frames else "no video"
        console.print(f"{kept}: {recording.problem}", markup=False, soft_wrap=True)
    elif not recording.frames:
        console.print(
            "no video: the environment hands out no pictures (one of PettingZoo needs --set env.render_mode=rgb_array)"
        )
    if not recording.frames:
        return recording, None
    period_s = environment.spec.control_period_s or 0.1
    path = out / f"episode.{kind}"
    write_video(path, recording.frames, float(np.clip(1.0 / period_s, 4.0, 30.0)))
    return recording, path


def _write_pictures(
    options: Options, out: Path, environment: VectorEnvironment, team: Team, evaluation: Evaluation, console: Console
) -> list[Path]:
    """Video and report, as far as they are wanted."""
    recording, video, baseline = None, None, None
    if options.report:  # before the film: a renderer may take the environment with it
        baseline = evaluate(environment, RandomTeam(environment.spec), evaluation.episodes, evaluation.seed)
    if options.video is not None:
        recording, video = _record(out, options.video, environment, team, evaluation, console)
    if options.report:
        settings = {
            "environment": evaluation.environment,
            "environment arguments": json.dumps(dict(environment.spec.arguments), default=str),
            "actions": "drawn" if options.sample else "deterministic",
            "instruction choice": options.instruction_choice or ("common" if options.sample else "argmax"),
            "episodes' seeds": f"numpy.random.SeedSequence({evaluation.seed}), one word each",
            "environments side by side": environment.batch_size,
        }
        write_report(
            out / "report.html",
            ReportContent(evaluation, options.command(), settings, baseline, recording, video),
        )
    return [path for path in (out / "report.html" if options.report else None, video) if path is not None]


def run_evaluation(options: Options) -> dict[str, Any]:
    """Everything that the command does; returns what ``--json`` prints.

    Raises:
        UsageError: wrong options, or a team that does not fit the environment.
        BundleError: a damaged bundle.
        AgentError: a fleet that does not answer.
    """
    console = Console(stderr=options.json)
    source = _source(options)
    with closing(_environment(options, source)) as environment, closing(source.make_team(environment.spec)) as team:
        evaluation = _measure(options, environment, team, Console(stderr=True))
        _print_table(evaluation, console)
        written: list[Path] = []
        if options.out is not None:
            written = _write_results(options.out, evaluation, environment.spec)
            missing = [name for name in _EXTRA_PACKAGES if importlib.util.find_spec(name) is None]
            if not missing:
                written += _write_pictures(options, options.out, environment, team, evaluation, console)
            elif options.report or options.video is not None:
                console.print(f"no report and video without {', '.join(missing)}: pip install 'hmarl\\[eval]'")
    for path in written:
        console.print(f"wrote {path}", soft_wrap=True)
    return {
        "environment": evaluation.environment,
        "team": evaluation.team,
        "seed": evaluation.seed,
        **evaluation.summary(),
        "latency_of": evaluation.latency_of,
        "written": [str(path) for path in written],
    }


def evaluate_command(
    *,
    bundle: Annotated[Path | None, typer.Option(help="A bundle, played in this process.")] = None,
    endpoints: Annotated[Path | None, typer.Option(help="The endpoints file of a running hmarl-fleet.")] = None,
    run: Annotated[Path | None, typer.Option(help="A run directory of hmarl-train (needs the extra 'train').")] = None,
    env: Annotated[
        str | None, typer.Option(help="FAMILY/TASK; by default the one that the team was trained in.")
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Number of episodes.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="What the episodes' seeds are derived from.")] = 0,
    sample: Annotated[bool, typer.Option("--sample", help="Draw actions instead of taking the best ones.")] = False,
    instruction_choice: Annotated[
        Literal["argmax", "sample", "common"] | None,
        typer.Option(help="How instructions are chosen; by default 'common' with --sample, else 'argmax'."),
    ] = None,
    variant: Annotated[str | None, typer.Option(help="With --run: local, guider, central …")] = None,
    checkpoint: Annotated[str, typer.Option(help="With --run: best, last or a step.")] = "best",
    provider: Annotated[str, typer.Option(help="With --bundle: cpu, cuda[:DEVICE] or tensorrt[:DEVICE].")] = "cpu",
    stream: Annotated[bool, typer.Option("--stream", help="With --endpoints: streams instead of unary calls.")] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help=f"Environments side by side; by default up to {_DEFAULT_BATCH}.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="env.KEY=VALUE", help="An argument of the environment.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory for results, report and video.")] = None,
    video: Annotated[bool, typer.Option(help="Film one episode.")] = True,
    video_format: Annotated[Literal["gif", "mp4"], typer.Option(help="Of the video.")] = "gif",
    report: Annotated[bool, typer.Option(help="Write an HTML report.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON in the last line.")] = False,
) -> None:
    """Play closed-loop episodes with fixed seeds and print what came out."""
    result = run_evaluation(
        Options(
            bundle=bundle,
            endpoints=endpoints,
            run=run,
            env=env,
            episodes=episodes,
            seed=seed,
            sample=sample,
            instruction_choice=instruction_choice,
            variant=variant,
            checkpoint=checkpoint,
            provider=provider,
            stream=stream,
            batch_size=batch_size or min(episodes, _DEFAULT_BATCH),
            settings=tuple(settings or ()),
            out=out,
            video=video_format if video else None,
            report=report,
            json=as_json,
        )
    )
    if as_json:
        print_json(result)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point; leaves with the exit code."""
    run_command(evaluate_command, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
