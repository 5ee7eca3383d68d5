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
from typing import Any, Literal, NoReturn

import numpy as np
from rich.console import Console

from hmarl.runtime.bundle import EnvironmentModel, from_json, load_bundle
from hmarl.runtime.choices import CHOICES, InstructionChoice
from hmarl.runtime.command_line import AS_JSON, PATH, choice, command, flag, integer, option, trust_option
from hmarl.runtime.errors import one_line
from hmarl.runtime.settings import PROVIDER
from hmarl.runtime.trial import try_graphs
from hmarl.sdk.clients.client import AgentClient
from hmarl.sdk.clients.endpoints import load_endpoints, load_security, nothing_listens, refusing, start_advice
from hmarl.sdk.clients.wires import is_frames
from hmarl.sdk.commands._common import CHECKPOINT, parse_settings, print_json, run, settings_option
from hmarl.sdk.commands._console import make_console, print_table, progress_bar
from hmarl.sdk.commands._sources import kind_of, refuse_code
from hmarl.sdk.environment import VectorEnvironment
from hmarl.sdk.environments import make
from hmarl.sdk.environments.copies import few_copies
from hmarl.sdk.environments.faulty import is_faults
from hmarl.sdk.errors import AgentError, EnvironmentFault, MissingExtraError, UsageError
from hmarl.sdk.evaluation.closed_loop import (
    STEP_LIMIT,
    Evaluation,
    evaluate,
    marl_eval_json,
    serving_remark,
    unfinished_remark,
)
from hmarl.sdk.evaluation.deployed_teams import BundleTeam, FleetTeam
from hmarl.sdk.files import check_writable, make_directory, write_text
from hmarl.sdk.reports.report import ReportContent, write_report
from hmarl.sdk.reports.video import Recording, record_played, write_video
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.sdk.team import RandomTeam, Team

_EXTRA_PACKAGES = ("jinja2", "matplotlib", "imageio", "rliable")
_DEFAULT_BATCH = 16
_CHECKPOINT = "best"
# Options that say something of one kind of team, with their defaults.
_ONLY_WITH: dict[str, tuple[str, object]] = {
    "trust": ("bundle", ()),
    "provider": ("bundle", PROVIDER),
    "stream": ("endpoints", False),
    "variant": ("run", None),
    "checkpoint": ("run", _CHECKPOINT),
}
_WHY = {"trust": ": what is signed is a bundle", "provider": ": served agents have their own"}


@dataclass(frozen=True)
class Options:
    """The command line, as it was understood."""

    bundle: Path | None
    endpoints: Path | None
    run: Path | None
    trust: tuple[Path, ...]
    env: str | None
    episodes: int
    seed: int
    sample: bool
    instruction_choice: InstructionChoice | None
    variant: str | None
    checkpoint: str
    provider: str
    stream: bool
    batch_size: int | None
    step_limit: int | None
    faults: tuple[str, ...]
    settings: tuple[str, ...]
    out: Path | None
    video: Literal["gif", "mp4"] | None
    report: bool
    json: bool

    def command(self, batch_size: int) -> str:
        """A command line that repeats the evaluation, with as many environments side by side."""
        words = ["hmarl-eval"]
        for name in ("bundle", "endpoints", "run", "env", "episodes", "seed", "instruction_choice", "variant", "out"):
            value = getattr(self, name)
            if value is not None:
                words += [f"--{name.replace('_', '-')}", str(value)]
        words += ["--checkpoint", self.checkpoint] if self.run else []
        words += ["--provider", self.provider] if self.bundle else []
        for path in self.trust:
            words += ["--trust", str(path)]
        words += ["--stream"] if self.stream else []
        words += ["--sample"] if self.sample else []
        words += ["--batch-size", str(batch_size)]
        words += ["--step-limit", str(self.step_limit)] if self.step_limit else []
        for fault in self.faults:
            words += ["--faults", fault]
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
    bundle = load_bundle(path, options.trust or None)
    try_graphs(bundle, rows=(1, options.batch_size or min(options.episodes, _DEFAULT_BATCH)))

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
    security = load_security(path)
    absent = refusing(endpoints, security)
    if len(absent) == len(endpoints):
        raise nothing_listens(absent, endpoints, start_advice(path))
    present = next(address for name, address in endpoints.items() if name not in absent)
    with AgentClient(present, security=security) as client:
        name = f"{client.info.bundle_name} ({'frames' if is_frames(present) else 'gRPC'})"
        try:
            environment = from_json(EnvironmentModel, client.info.environment_json)
        except ValueError as error:
            raise AgentError(f"endpoints {path}: an agent does not say its environment: {one_line(error)}") from error

    def make_team(spec: EnvironmentSpec) -> Team:
        return FleetTeam(
            path,
            spec,
            sample=options.sample,
            instruction_choice=options.instruction_choice,
            stream=options.stream,
            wait=False,
            name=name,
        )

    return Source(environment.name, dict(environment.arguments), make_team)


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
            f"team: got {' and '.join('--' + name for name in given) or 'none'}, "
            "expected exactly one of --bundle, --endpoints and --run"
        )
    for name, (team, default) in _ONLY_WITH.items():
        if getattr(options, name) != default and given[0] != team:
            raise UsageError(f"--{name}: got it with --{given[0]}, expected it with --{team}{_WHY.get(name, '')}")
    path = getattr(options, given[0])
    _check_kind(given[0], path)
    return makers[given[0]](options, path)


def _check_kind(option: str, path: Path) -> None:
    """Refuse what another option is for.

    Raises:
        UsageError: names that option.
    """
    found = kind_of(path)
    if found is None or found == option:
        return
    what = {"bundle": "a bundle", "endpoints": "an endpoints file", "run": "a run directory of hmarl-train"}
    more = f"; hmarl-export {shlex.quote(str(path))} makes a bundle of it" if found == "run" else ""
    raise UsageError(
        f"--{option}: got {what[found]}, {path}, expected {what[option]}: use --{found} {shlex.quote(str(path))}{more}"
    )


def _environment(options: Options, source: Source) -> VectorEnvironment:
    """The environment asked for; the source's arguments are the defaults where it is the source's environment."""
    name = options.env or source.environment
    arguments = dict(source.arguments) if name == source.environment else {}
    own = parse_settings(options.settings)["env"]
    if options.run is None:
        taken = {key: arguments[key] for key in arguments.keys() - own.keys() if not is_faults(key)}
        refuse_code(name if options.env is None else "", taken)
    if options.faults:  # instead of those that the team was trained with
        arguments = {key: value for key, value in arguments.items() if not is_faults(key)}
        arguments["faults"] = list(options.faults)
    arguments.update(own)
    batch_size = options.batch_size or few_copies(name, min(options.episodes, _DEFAULT_BATCH))
    return make(name, batch_size=batch_size, **arguments)


def _measure(options: Options, environment: VectorEnvironment, team: Team, console: Console) -> Evaluation:
    with progress_bar(console) as progress:
        task = progress.add_task("playing", total=options.episodes)  # what and where has been said in full
        return evaluate(
            environment,
            team,
            options.episodes,
            options.seed,
            progress=lambda done, _: progress.update(task, completed=done),
            step_limit=options.step_limit,
        )


def _print_table(evaluation: Evaluation, console: Console) -> None:
    summary = evaluation.summary()
    low, high = summary["return_ci95"]
    rows = [
        ("episodes", str(summary["episodes"])),
        *([("faults", evaluation.faults)] if evaluation.faults else []),
        ("return, IQM [95 % interval]", f"{summary['return_iqm']:.3f} [{low:.3f}, {high:.3f}]"),
        ("return, mean ± std", f"{summary['return_mean']:.3f} ± {summary['return_std']:.3f}"),
        ("return, median", f"{summary['return_median']:.3f}"),
        ("steps an episode", f"{summary['length_mean']:.1f}"),
    ]
    if evaluation.unfinished:
        rows.append(("unfinished episodes", str(evaluation.unfinished)))
    if serving_remark(evaluation) is not None:
        losses = f"{summary['rejoins']:,} / {summary['state_resets']:,} / {summary['missed_steps']:,}"
        rows.append(("joined again / forgot / missed steps", losses))
    if summary["success_rate"] is not None:
        rows.append(("success", f"{100 * summary['success_rate']:.1f} %"))
    if summary["latency_p50_us"] is not None:
        latency = f"{summary['latency_p50_us']:,.0f} / {summary['latency_p99_us']:,.0f} µs"
        rows.append((f"latency p50 / p99, {evaluation.latency_of}", latency))
    print_table(console, f"{evaluation.team} on {evaluation.environment}", ("", ""), rows)
    for remark in _remarks(evaluation):
        console.print(remark)


def _remarks(evaluation: Evaluation) -> list[str]:
    """What stands beside the figures."""
    found = (unfinished_remark(evaluation, "--step-limit"), serving_remark(evaluation))
    return [remark for remark in found if remark is not None]


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
    make_directory(out)
    written = [out / "evaluation.json", out / "episodes.csv"]
    write_text(written[0], json.dumps(marl_eval_json([evaluation]), indent=1) + "\n")
    write_text(written[1], _episodes_csv(evaluation, spec))
    return written


def _record(
    out: Path, kind: str, environment: VectorEnvironment, team: Team, evaluation: Evaluation, console: Console
) -> tuple[Recording | None, Path | None]:
    """Play the episode nearest to the median once more, and film it; says why there is no film, or another one."""
    try:
        recording = record_played(environment, team, evaluation, evaluation.typical)
    except EnvironmentFault as error:  # a renderer that takes its process with it
        console.print(f"no video: {error}")
        return None, None
    if recording.differs is not None:
        console.print(f"the film: {recording.differs}")
    if recording.problem is not None:
        kept = f"the video ends after {len(recording.frames)} pictures" if recording.frames else "no video"
        console.print(f"{kept}: {recording.problem}")
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
        baseline = evaluate(
            environment,
            RandomTeam(environment.spec),
            evaluation.episodes,
            evaluation.seed,
            step_limit=options.step_limit,
        )
    if options.video is not None:
        recording, video = _record(out, options.video, environment, team, evaluation, console)
    if options.report:
        settings = {
            "environment": evaluation.environment,
            "environment arguments": json.dumps(dict(environment.spec.arguments), default=str),
            "faults": evaluation.faults or "none",
            "actions": "drawn" if options.sample else "deterministic",
            "instruction choice": options.instruction_choice or "as the policies say",
            "episodes' seeds": f"numpy.random.SeedSequence({evaluation.seed}), one word each",
            "environments side by side": environment.batch_size,
        }
        write_report(
            out / "report.html",
            ReportContent(
                evaluation,
                options.command(environment.batch_size),
                settings,
                baseline,
                recording,
                video,
                _remarks(evaluation),
            ),
        )
    return [path for path in (out / "report.html" if options.report else None, video) if path is not None]


def run_evaluation(options: Options) -> dict[str, Any]:
    """Everything that the command does; returns what ``--json`` prints.

    Raises:
        UsageError: wrong options, or a team that does not fit the environment.
        BundleError: a damaged bundle.
        AgentError: a fleet that does not answer.
    """
    console = make_console(stderr=options.json)
    if options.out is not None:
        check_writable(options.out, f"--out {options.out}")  # not after hours of playing
    source = _source(options)
    with closing(_environment(options, source)) as environment, closing(source.make_team(environment.spec)) as team:
        progress = make_console(stderr=True)
        faults = f", with the faults {environment.spec.faults}" if environment.spec.faults else ""
        progress.print(
            f"playing {options.episodes} episodes of {environment.spec.name} with {team.name}, "
            f"up to {environment.batch_size} side by side{faults}"
        )
        evaluation = _measure(options, environment, team, progress)
        _print_table(evaluation, console)
        bundles = dict(team.bundles) if isinstance(team, FleetTeam) else {}
        if len(bundles) > 1:
            parts = ", ".join(f"{episodes} episodes on {sha256}" for sha256, episodes in bundles.items())
            console.print(f"the fleet was given another bundle meanwhile, and the figures are of all: {parts}")
        written: list[Path] = []
        if options.out is not None:
            written = _write_results(options.out, evaluation, environment.spec)
            missing = [name for name in _EXTRA_PACKAGES if importlib.util.find_spec(name) is None]
            if not missing:
                written += _write_pictures(options, options.out, environment, team, evaluation, console)
            elif options.report or options.video is not None:
                console.print(f"no report and video without {', '.join(missing)}: pip install 'hmarl[eval]'")
    for path in written:
        console.print(f"wrote {path}")
    return {
        "environment": evaluation.environment,
        "team": evaluation.team,
        "seed": evaluation.seed,
        **evaluation.summary(),
        "latency_of": evaluation.latency_of,
        **({"bundles": bundles} if bundles else {}),
        "written": [str(path) for path in written],
    }


@command(
    "hmarl-eval",
    option("--bundle", "a bundle, played in this process", PATH),
    option("--endpoints", "the endpoints file of a running hmarl-fleet", PATH, shown="FILE"),
    option("--run", "a run directory of hmarl-train (needs the extra 'train')", PATH, shown="DIR"),
    option("--env", "by default the one that the team was trained in", shown="FAMILY/TASK"),
    option("--episodes", "number of episodes", integer(1), default=100),
    option("--seed", "what the episodes' seeds are derived from", integer(0), default=0),
    flag("--sample", "draw actions instead of taking the best ones"),
    option(
        "--instruction-choice",
        f"how instructions are chosen: {', '.join(CHOICES)}; by default as the policies say",
        choice(*CHOICES),
        shown="NAME",
    ),
    option("--variant", "with --run: local, guider, central ...", shown="NAME"),
    option("--checkpoint", "with --run: best, last or a number of steps", CHECKPOINT, default=_CHECKPOINT),
    trust_option(),
    option("--provider", "with --bundle: cpu, cuda[:DEVICE] or tensorrt[:DEVICE]", default=PROVIDER, shown="NAME"),
    flag("--stream", "with --endpoints: streams instead of unary calls"),
    option("--batch-size", f"environments side by side; by default as many as fit, up to {_DEFAULT_BATCH}", integer(1)),
    option("--step-limit", f"steps of an episode; by default the horizon, {STEP_LIMIT:,} without", integer(1)),
    option(
        "--faults",
        "what goes wrong on purpose, e.g. delay=2,loss=0.1 or agent_0:out=50, instead of what the team was trained "
        "with; none: nothing; repeatable",
        many=True,
        shown="[AGENT:]NAME=VALUE,...",
    ),
    settings_option("env.KEY=VALUE", "an argument of the environment"),
    option("--out", "directory for results, report and video", PATH, shown="DIR"),
    flag("--video/--no-video", "film one episode", default=True),
    option("--video-format", "of the video: gif or mp4", choice("gif", "mp4"), default="gif", shown="NAME"),
    flag("--report/--no-report", "write an HTML report", default=True),
    AS_JSON,
    examples=(
        "hmarl-eval --bundle models/simple-spread-hcpo --episodes 20",
        "hmarl-eval --endpoints endpoints.json --out report",
        "hmarl-eval --run runs/mine --variant central --checkpoint last",
        "hmarl-eval --bundle models/simple-spread-hcpo --faults delay=2,loss=0.1",
    ),
)
def evaluate_command(video: bool, video_format: Literal["gif", "mp4"], as_json: bool, **given: Any) -> None:
    """Play closed-loop episodes with fixed seeds and print what came out.

    The team is one of --bundle, --endpoints and --run.
    """
    result = run_evaluation(Options(video=video_format if video else None, json=as_json, **given))
    if as_json:
        print_json(result)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point; leaves with the exit code."""
    sys.exit(run(evaluate_command, arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
