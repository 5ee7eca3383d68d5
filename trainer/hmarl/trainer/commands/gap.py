"""hmarl-gap: what deployment costs a team, from its training to a bad link."""

from __future__ import annotations

import importlib.util
import logging
import shlex
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from hmarl.runtime.command_line import (
    AS_JSON,
    PATH,
    POSITIVE,
    argument,
    choice,
    command,
    flag,
    integer,
    option,
    trust_option,
)
from hmarl.sdk.commands import _common
from hmarl.sdk.commands._common import parse_settings, print_json, settings_option
from hmarl.sdk.commands._console import make_console
from hmarl.sdk.commands._sources import kind_of, refuse_code
from hmarl.sdk.errors import UsageError
from hmarl.sdk.files import check_writable
from hmarl.trainer.commands.shared import check_makeable, need_extra, need_torch, read_config

if TYPE_CHECKING:
    from hmarl.runtime.bundle import Bundle
    from hmarl.sdk.gap.document import Difference, Gap
    from hmarl.sdk.gap.judging import Measured
    from hmarl.sdk.gap.kept import Wave
    from hmarl.sdk.gap.ladder import Rung
    from hmarl.sdk.gap.playing import Games

_DEFAULT_BATCH = 16
_PAGE_PACKAGES = ("jinja2", "matplotlib")


@dataclass(frozen=True)
class Options:
    """The command line, as it was understood."""

    run: Path | None
    bundle: Path | None
    endpoints: Path | None
    env: str | None
    episodes: int
    seed: int
    actions: str | None
    faults: tuple[str, ...]
    deadline_s: float
    stream: bool
    batch_size: int | None
    step_limit: int | None
    settings: tuple[str, ...]
    trust: tuple[Path, ...]
    out: Path | None
    resume: bool

    @property
    def target(self) -> Path:
        """Where everything is written."""
        if self.out is not None:
            return self.out
        if self.run is not None:
            return self.run / "gap"
        assert self.bundle is not None
        return self.bundle.with_name(f"{self.bundle.name.removesuffix('.zip')}.gap")


@command(
    "hmarl-gap",
    argument("run", "run directory of hmarl-train; without it, begin at --bundle", PATH, required=False),
    option("--bundle", "its bundle, exported first where it is missing; by default RUN/bundle", PATH),
    option("--episodes", "episodes of each rung, the same for all", integer(2), default=100),
    option("--seed", "what the episodes' seeds are derived from", integer(0), default=0),
    option(
        "--actions", "greedy or sampled; by default as the run was evaluated", choice("greedy", "sampled"), shown="NAME"
    ),
    option(
        "--faults",
        "a rung under these faults, as of hmarl-eval, instead of the usual curves; none: no such rungs; repeatable",
        many=True,
        shown="[AGENT:]NAME=VALUE,...",
    ),
    option(
        "--deadline-s", "of one act of a served agent; then its fallback acts", POSITIVE, default=1.0, shown="SECONDS"
    ),
    option("--endpoints", "serve by this running hmarl-fleet instead of one of our own", PATH, shown="FILE"),
    flag("--stream", "streams instead of unary calls"),
    option("--batch-size", f"environments side by side; by default as many as fit, up to {_DEFAULT_BATCH}", integer(1)),
    option("--step-limit", "steps of an episode; by default the horizon, 5,000 without", integer(1)),
    option("--env", "by default the one that the team was trained in", shown="FAMILY/TASK"),
    settings_option("env.KEY=VALUE", "an argument of the environment"),
    trust_option(),
    option(
        "--out",
        "directory for all that is written; without RUN it is BUNDLE.gap, by default RUN/gap",
        PATH,
        shown="DIR",
    ),
    flag("--resume", "go on with what --out holds"),
    AS_JSON,
    examples=(
        "hmarl-gap runs/mine",
        "hmarl-gap runs/mine --resume",
        "hmarl-gap runs/mine --faults delay=2,loss=0.2 --faults agent_0:out=10",
        "hmarl-gap --bundle models/simple-spread-hcpo --out spread.gap",
    ),
)
def gap(as_json: bool, **given: Any) -> None:
    """Measure what deployment costs: the same episodes, rung by rung.

    A team is played as its training knows it (central: with its conductor, guider or hierarchy), by its local policies
    in torch, by their ONNX graphs in this process, served by one process an agent, and served under faults: late, lost
    and noisy observations, agents that are out. Neighbours are compared episode by episode. Where return is lost is
    told with a 95 % interval and the first suspect; a difference whose interval holds 0 is none.

    Without faults all rungs play in the environment without any, whatever the team was trained with.

    Every episode is kept as it ends: what was stopped or killed goes on with --resume, and comes to the same. gap.json
    has all figures, gap.html shows them, card.md is a section for a model card. A bundle is never changed, since its
    hash and signature are of its card too: hmarl-export RUN puts the section into the card of a bundle that it writes
    when RUN/gap has figures of the very same graphs.
    """
    result = measure(Options(**given))
    if as_json:
        print_json(result)


def measure(options: Options) -> dict[str, Any]:
    """Everything that the command does; returns what ``--json`` prints.

    Raises:
        UsageError: wrong options, or a run, bundle and fleet that do not belong together.
        BundleError: a damaged bundle.
        AgentError: a fleet that does not answer.
    """
    console = make_console(stderr=True)
    _check(options)
    told = f"hmarl-gap: {options.run or options.bundle}, {options.episodes} episodes a rung, into {options.target}"
    if options.run is None:
        bundle = _bundle(options, console)
        console.print(told)
    else:
        console.print(told)
        need_torch("hmarl-gap")
        _quiet()
        bundle = _bundle(options, console)
    from hmarl.runtime.trial import try_graphs
    from hmarl.sdk.gap.judging import judge
    from hmarl.trainer.commands._gap_shown import show
    from hmarl.trainer.runs.lock import RunLock

    try_graphs(bundle, rows=(1, options.batch_size or min(options.episodes, _DEFAULT_BATCH)))
    with RunLock(options.target, "--out"), ExitStack() as stack:
        plan = _planned(options, bundle, stack)
        result = judge(plan.rungs, _played(plan, options, console), plan.measured)
        written = _written(options.target, result, console)
    show(make_console(), result)
    for path in written:
        console.print(f"wrote {path}")
    document = {"name": result.name, "environment": result.environment, "episodes": result.episodes}
    document |= {"rungs": {each.name: {"mean": each.mean, "ci95": each.mean_ci95} for each in result.rungs}}
    lost = [_brief(each) for each in (*result.differences, *result.under_faults) if each.verdict == "lost"]
    return {**document, "lost": lost, "written": [str(path) for path in written]}


def _brief(difference: Difference) -> dict[str, Any]:
    first = difference.suspects[0]
    return {
        "start": difference.start,
        "to": difference.to,
        "mean": difference.mean,
        "ci95": difference.ci95,
        "suspect": first.rule,
    }


# --- what is measured ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """What is to be played, and what it is of."""

    rungs: list[Rung]
    games: Games
    measured: Measured

    def plain(self) -> dict[str, Any]:
        """By which it is recognised."""
        of = self.measured
        return {
            "bundle_sha256": of.bundle.sha256,
            "environment": self.games.environment,
            "arguments": dict(self.games.arguments),
            "episodes": self.games.episodes,
            "seed": self.games.seed,
            "batch_size": self.games.batch_size,
            "step_limit": self.games.step_limit,
            "actions": "sampled" if of.sample else "greedy",
            "deadline_s": of.deadline_s,
            "rungs": [rung.name for rung in self.rungs],
        }


def _check(options: Options) -> None:
    """Refuse what can be refused at once."""
    from hmarl.sdk.gap.kept import refuse_begun

    if options.run is None and options.bundle is None:
        raise UsageError("RUN: got nothing, expected hmarl-gap RUN, or hmarl-gap --bundle BUNDLE without its run")
    if options.run is not None:
        _check_run(options.run)
    if not options.resume:
        refuse_begun(options.target)  # not after minutes of exporting
    check_writable(options.target, f"--out {options.target}")


def _check_run(run: Path) -> None:
    """Refuse what is no run."""
    if kind_of(run) == "bundle":
        bundle = shlex.quote(str(run))
        raise UsageError(f"RUN: got a bundle, {run}, expected a run directory of hmarl-train: use --bundle {bundle}")
    need_extra("hmarl-gap")
    read_config(run)  # is there a run?


def _bundle(options: Options, console: Console) -> Bundle:
    """The bundle, exported where there is none yet."""
    from hmarl.runtime.bundle import load_bundle

    path = options.bundle
    if path is None:
        assert options.run is not None
        path = options.run / "bundle"
        if not path.exists():
            from hmarl.trainer.export.export import export_run

            console.print(f"exporting {options.run} to {path}, as hmarl-export does")
            export_run(options.run, path)
    return load_bundle(path, options.trust or None)


def _planned(options: Options, bundle: Bundle, stack: ExitStack) -> _Plan:
    """All rungs, and what they play; what has to be closed is put on ``stack``."""
    from hmarl.runtime.verify import verify_bundle
    from hmarl.sdk.environments import make
    from hmarl.sdk.gap.deployed import Deployment, deployed_rungs
    from hmarl.sdk.gap.faulted import asked_faults
    from hmarl.sdk.gap.judging import Measured
    from hmarl.sdk.gap.serving import OwnFleet
    from hmarl.sdk.gap.suspects import Facts

    games = _games(options, bundle)
    environment = make(games.environment, batch_size=1, **games.arguments)
    agent_ids = environment.spec.agent_ids
    environment.close()
    manifest = bundle.manifest
    sample = not manifest.deterministic_by_default if options.actions is None else options.actions == "sampled"
    own = stack.enter_context(OwnFleet(bundle.path))
    endpoints = own.endpoints if options.endpoints is None else partial(Path, options.endpoints)
    deployment = Deployment(bundle, sample, endpoints, options.deadline_s, options.stream)
    rungs = deployed_rungs(deployment, asked_faults(options.faults, agent_ids))
    if options.run is not None:
        from hmarl.trainer.export.gap_teams import torch_rungs

        rungs = [*torch_rungs(options.run, bundle, sample), *rungs]

    def broken_graphs() -> list[str]:
        return [problem for report in verify_bundle(bundle) for problem in report.problems]

    facts = Facts(manifest, agent_ids, broken_graphs)
    return _Plan(rungs, games, Measured(bundle, facts, games, sample, options.deadline_s, options.run is not None))


def _games(options: Options, bundle: Bundle) -> Games:
    """What is played, without any faults of the training. A run is trusted, a bundle may be anyone's."""
    from hmarl.sdk.environments.copies import few_copies
    from hmarl.sdk.gap.playing import Games, without_faults

    source, given = bundle.manifest.environment.name, bundle.manifest.environment.arguments
    if options.run is not None:
        config = read_config(options.run)
        source, given = config.environment, config.environment_arguments
    name = options.env or source
    own = parse_settings(options.settings)["env"]
    taken = without_faults(given) if name == source else {}
    if options.run is None:
        chosen = {key: value for key, value in taken.items() if key not in own}
        refuse_code(name if options.env is None else "", chosen)
    arguments = {**taken, **own}
    if len(without_faults(arguments)) < len(arguments):
        raise UsageError("--set: got env.faults, expected --faults: each is a rung of its own")
    check_makeable("hmarl-gap", name, arguments)
    batch_size = options.batch_size or few_copies(name, min(options.episodes, _DEFAULT_BATCH))
    return Games(name, arguments, options.episodes, options.seed, batch_size, options.step_limit)


def _quiet() -> None:
    """Errors alone."""
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s: %(message)s")
    logging.getLogger("hmarl").setLevel(logging.WARNING)


# --- playing ---------------------------------------------------------------------------------------------------------


def _played(plan: _Plan, options: Options, console: Console) -> list[Wave]:
    """All rungs' episodes."""
    from hmarl.sdk.gap.kept import Kept
    from hmarl.sdk.gap.playing import play
    from hmarl.trainer.commands._gap_shown import Progress

    kept = Kept(options.target, plan.plain(), options.resume)
    total = len(plan.rungs) * plan.games.episodes
    try:
        with Progress(console, total) as progress:
            return play(plan.rungs, plan.games, kept, progress)
    except KeyboardInterrupt:
        console.print(f"\nstopped; all episodes that have ended are kept in {options.target}: --resume goes on")
        raise


# --- what is shown ---------------------------------------------------------------------------------------------------


def _written(target: Path, result: Gap, console: Console) -> list[Path]:
    """The figures, the section for a card and the page."""
    from hmarl.sdk.files import write_text
    from hmarl.sdk.gap.card import card_section
    from hmarl.sdk.gap.document import FILE, write_gap

    written = [target / FILE, target / "card.md"]
    write_gap(written[0], result)
    write_text(written[1], card_section(result) + "\n")
    missing = [name for name in _PAGE_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        console.print(f"no page without {', '.join(missing)}: pip install 'hmarl[eval]'")
        return written
    from hmarl.sdk.reports.gap_page import write_gap_page

    write_gap_page(target / "gap.html", result)
    return [*written, target / "gap.html"]


def gap_main() -> None:
    """Entry point of hmarl-gap."""
    sys.exit(_common.run(gap))


if __name__ == "__main__":
    gap_main()
