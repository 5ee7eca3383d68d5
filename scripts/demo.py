"""The whole road once: train, export, verify, serve one process per agent, evaluate over gRPC.

The game is ``coordsum``: three agents see the same number and each names one; theirs must add up to it, and an
adversary learns what the first agent likes to name. So the agents must keep changing what they name, all at the same
time, and cannot talk. HCPO learns a conductor of which every agent carries a copy: all copies draw the same instruction
from common random numbers.

Every step is a command that can be typed by hand; it is printed before it runs. Six teams then play the same episodes,
and the fleet's actions are compared one by one with torch's.

Exit codes: 0 done, 1 when the fleet's actions differ from torch's, else that of the step that failed; 130 interrupted.
"""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Console
from rich.table import Table

from hmarl.runtime.bundle import AgentModel
from hmarl.runtime.command_line import PATH, POSITIVE, command, integer, option, run
from hmarl.runtime.parity import tie_gap
from hmarl.sdk import (
    Bundle,
    BundleTeam,
    Evaluation,
    FleetTeam,
    HmarlError,
    InstructionChoice,
    LocalAgent,
    RandomTeam,
    Team,
    VectorEnvironment,
    evaluate,
    load_bundle,
    make_environment,
)
from hmarl.sdk.environment import as_numpy
from hmarl.sdk.files import write_text
from hmarl.sdk.reports.report import ReportContent, write_report
from hmarl.sdk.reports.video import record_played, write_video

TASK = "coordsum/3x10-30"
# What can be earned, see docs/results.
BEST_TABLE, BEST_COMMON, BEST_MEMORY = 119.0, 164.5, 181.0
FLEET_START_LIMIT_S = 60.0
FLEET_STOP_LIMIT_S = 30.0
FRAMES_PER_SECOND = 4.0
EXIT_DIFFERENT = 1
# Rows of the table.
TRAINED, IN_PROCESS, SERVED = "all draw alike, torch", "all draw alike, ONNX", "all draw alike, served"
NEAR_TIE = 1.0  # in what two scores of that size may be apart at a near tie


class StepFailed(HmarlError):
    """A step of the demo did not end well."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Comparison:
    """The fleet's actions against torch's, on the same episodes.

    Attributes:
        episodes: compared episodes.
        actions: compared actions, of one agent at one step each; after the first near tie of an episode the two teams
            see different worlds, so that its further actions are not compared.
        differences: actions that differ although their scores are apart.
        near_ties: actions that differ at a near tie (see ``hmarl.runtime.parity``).
    """

    episodes: int
    actions: int
    differences: int
    near_ties: int


@dataclass(frozen=True)
class Options:
    """The command line, as it was understood."""

    minutes: float
    steps: int | None
    seed: int
    episodes: int
    out: Path
    settings: tuple[str, ...]


@command(
    "demo",
    option("--minutes", "training stops then", POSITIVE, default=3.0),
    option("--steps", "environment steps of training; by default the preset's", integer(1)),
    option("--seed", "of the training", integer(0), default=1),
    option("--episodes", "evaluated episodes", integer(1), default=100),
    option("--out", "directory for everything", PATH, default=Path("demo")),
    option("--set", "a setting of hmarl-train; repeatable", many=True, shown="KEY=VALUE", parameter="settings"),
    examples=("make demo DEMO_ARGS='--minutes 10 --seed 2'",),
)
def main(**given: Any) -> int:
    """The whole road once: train, export, verify, serve one process per agent, evaluate over gRPC.

    Exit code 1 when the fleet's actions differ from torch's; that of the step that failed when one fails.
    """
    return demo(Options(**given), Console())


def demo(options: Options, console: Console) -> int:
    """All steps, one after the other; returns the exit code."""
    run, bundle_path = options.out / "run", options.out / "bundle"
    if (run / "config.json").exists():
        shutil.rmtree(run)  # the run of an earlier demo
    checkpoint = _train(options, run, console)
    _command(console, "hmarl-export", run, "--out", bundle_path, "--checkpoint", checkpoint)
    _command(console, "hmarl-verify", bundle_path)
    bundle = load_bundle(bundle_path)
    with (
        closing(make_environment(TASK, 1, **bundle.manifest.environment.arguments)) as environment,
        serving(bundle_path, options.out / "endpoints.json", console) as endpoints,
        closing(FleetTeam(endpoints, environment.spec)) as fleet,
    ):
        console.rule(f"{options.episodes} episodes of {TASK}")
        teams = _teams(bundle, environment, run, checkpoint, fleet)
        evaluations = {
            name: evaluate(environment, team, options.episodes, seed=0, record=True) for name, team in teams.items()
        }
        console.print(_table(evaluations))
        _explain(console)
        found = compare(environment, bundle, evaluations[TRAINED], evaluations[SERVED])
        with closing(FleetTeam(endpoints, environment.spec, diagnostics=True)) as telling:
            written = _write(options.out, environment, telling, evaluations, found)
    _announce(console, found, evaluations)
    for path in written:
        console.print(f"wrote {path}", soft_wrap=True)
    return EXIT_DIFFERENT if found.differences else 0


# --- steps -----------------------------------------------------------------------------------------------------------


def _program(name: str) -> str:
    """The command of this very environment, whatever PATH says."""
    return str(Path(sysconfig.get_path("scripts")) / name)


def _announced(console: Console, name: str, *arguments: object) -> list[str]:
    words = [str(argument) for argument in arguments]
    console.print(f"\n$ {shlex.join([name, *words])}", style="bold", highlight=False, markup=False, soft_wrap=True)
    return [_program(name), *words]


def _command(console: Console, name: str, *arguments: object) -> None:
    code = subprocess.run(_announced(console, name, *arguments), check=False).returncode
    if code:
        raise StepFailed(f"{name} ended with exit code {code}", code)


def _train(options: Options, run: Path, console: Console) -> str:
    """Train until the steps or the minutes are over; returns the checkpoint to export."""
    words: list[object] = ["hcpo", "--env", TASK, "--seed", options.seed, "--out", run]
    words += [] if options.steps is None else ["--steps", options.steps]
    words += [word for setting in options.settings for word in ("--set", setting)]
    console.print(
        f"\ntraining stops after {options.minutes:g} minutes, with what is learnt by then; the ETA is of all steps",
        highlight=False,
        soft_wrap=True,
    )
    process = subprocess.Popen(_announced(console, "hmarl-train", *words))
    try:
        code = process.wait(60.0 * options.minutes)
        if code:
            raise StepFailed(f"hmarl-train ended with exit code {code}", code)
        return "best"
    except subprocess.TimeoutExpired:
        console.print(f"{options.minutes:g} minutes are over: training is told to save and stop", highlight=False)
        process.send_signal(signal.SIGTERM)  # saves a checkpoint and ends
        code = process.wait()
        if code not in (0, 130, -signal.SIGTERM):
            raise StepFailed(f"hmarl-train ended with exit code {code}", code) from None
        if not any(run.glob("checkpoints/step-*.json")):
            raise StepFailed("training was stopped before its first checkpoint; give it more --minutes", 4) from None
        return "last"
    finally:
        if process.poll() is None:  # Ctrl-C: the training has received it too, and saves
            process.wait()


@contextmanager
def serving(bundle: Path, endpoints: Path, console: Console) -> Iterator[Path]:
    """A running hmarl-fleet; gives its endpoints file."""
    endpoints.unlink(missing_ok=True)  # of an earlier fleet, whose addresses are dead
    process = subprocess.Popen(_announced(console, "hmarl-fleet", bundle, "--out", endpoints))
    try:
        deadline = time.monotonic() + FLEET_START_LIMIT_S
        while not (endpoints.exists() and json.loads(endpoints.read_text())["bundle"] == str(bundle.absolute())):
            if process.poll() is not None:
                raise StepFailed(f"hmarl-fleet ended with exit code {process.returncode}", process.returncode or 4)
            if time.monotonic() > deadline:
                raise StepFailed(f"hmarl-fleet is not serving after {FLEET_START_LIMIT_S:g} s", 4)
            time.sleep(0.02)
        yield endpoints
    finally:
        process.terminate()
        code = process.wait(FLEET_STOP_LIMIT_S)
    if code:
        raise StepFailed(f"hmarl-fleet ended with exit code {code}", code)


def _teams(
    bundle: Bundle, environment: VectorEnvironment, run: Path, checkpoint: str, fleet: FleetTeam
) -> dict[str, Team]:
    """The rows of the table."""
    choice = bundle.manifest.agents[0].instruction_choice
    return {
        "random numbers": RandomTeam(environment.spec),
        "no instruction": _torch_team(environment, run, checkpoint, "none"),
        "each draws its own": BundleTeam(bundle, environment.spec, instruction_choice="sample"),
        TRAINED: _torch_team(environment, run, checkpoint, "local", choice),
        IN_PROCESS: BundleTeam(bundle, environment.spec),
        SERVED: fleet,
    }


def _torch_team(
    environment: VectorEnvironment,
    run: Path,
    checkpoint: str,
    variant: str,
    instruction_choice: InstructionChoice | None = None,
) -> Team:
    """The trainer's own policies, found as ``hmarl-eval --run`` finds them."""
    (source,) = entry_points(group="hmarl.policy_sources", name="run")
    make_team, _, _ = source.load()(run, variant=variant, checkpoint=checkpoint, instruction_choice=instruction_choice)
    team: Team = make_team(environment.spec)
    return team


# --- comparison ------------------------------------------------------------------------------------------------------


def compare(environment: VectorEnvironment, bundle: Bundle, torch: Evaluation, fleet: Evaluation) -> Comparison:
    """Compare two evaluations of the same episodes action by action (discrete actions).

    Args:
        environment: the one they were played in, B = 1.
        bundle: what the fleet serves; its logits tell whether a difference is a near tie.
        torch: the reference.
        fleet: what was served.
    """
    ours, theirs = (_all_agents(environment, each) for each in (fleet, torch))
    actions = differences = near_ties = 0
    for episode in range(fleet.episodes):
        length = int(min(fleet.lengths[episode], torch.lengths[episode]))
        wrong = ours[episode, :length] != theirs[episode, :length]
        steps = np.flatnonzero(wrong.any(axis=-1))
        last = int(steps[0]) if steps.size else length - 1
        actions += (last + 1) * wrong.shape[-1]
        if steps.size:
            gaps = _smallest_gaps(environment, bundle, int(fleet.seeds[episode]), ours[episode, : last + 1])
            tied = gaps <= NEAR_TIE
            near_ties += int((wrong[last] & tied).sum())
            differences += int((wrong[last] & ~tied).sum())
    return Comparison(fleet.episodes, actions, differences, near_ties)


def _all_agents(environment: VectorEnvironment, evaluation: Evaluation) -> npt.NDArray[np.int64]:
    """The recorded discrete actions as [E, T, N]."""
    assert evaluation.actions is not None
    columns: dict[int, npt.NDArray[np.int64]] = {}
    for group, block in zip(environment.spec.groups, evaluation.actions, strict=True):
        columns |= {agent: block[:, :, member] for member, agent in enumerate(group.agents)}
    return np.stack([columns[agent] for agent in sorted(columns)], axis=-1)


def _smallest_gaps(
    environment: VectorEnvironment, bundle: Bundle, seed: int, actions: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Per agent, how far its two best scores were apart where the last of the actions [T, N] was decided, in units
    of what they may be apart at a near tie.

    With an instruction that is held for several steps, the decision may lie at any earlier step.
    """
    agents = [LocalAgent(bundle, each.id) for each in environment.spec.agents]
    models = [bundle.agent(each.id) for each in environment.spec.agents]
    tolerance = bundle.manifest.parity_tolerance["cpu"]
    gaps = np.full((len(actions), len(agents)), np.inf)
    observation = as_numpy(environment.reset(np.asarray([seed])))
    for agent in agents:
        agent.reset(seed)
    for step, chosen in enumerate(actions):
        for group, block in zip(environment.spec.groups, observation.observations, strict=True):
            for member, index in enumerate(group.agents):
                diagnostics = agents[index].act(np.ascontiguousarray(block[0, member])).diagnostics
                scores = [each for name, each in diagnostics.items() if name.endswith("logits")]
                gaps[step, index] = min(_gap(each, models[index], tolerance) for each in scores)
        blocks = tuple(chosen[None, list(group.agents)] for group in environment.spec.groups)
        observation = as_numpy(environment.step(blocks).observation)
    recurrent = np.array([bool(model.states) for model in models])
    return np.asarray(np.where(recurrent, gaps.min(axis=0), gaps[-1]))


def _gap(scores: npt.NDArray[Any], agent: AgentModel, tolerance: float) -> float:
    best = np.sort(scores)[-2:]
    near = tie_gap(agent, np.abs(best).max(), tolerance)
    return float((best[-1] - best[0]) / near) if len(scores) > 1 else float("inf")


# --- results ---------------------------------------------------------------------------------------------------------


def _table(evaluations: dict[str, Evaluation]) -> Table:
    title = "return: sum over agents and steps; latency: of one agent's act"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("team", no_wrap=True)
    for column in ("mean", "IQM", "95 % interval", "p50 µs", "p99 µs"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, evaluation in evaluations.items():
        row = evaluation.summary()
        low, high = row["return_ci95"]
        latency = ("", "")
        if name in (IN_PROCESS, SERVED):  # the others act for the whole team at once
            latency = (f"{row['latency_p50_us']:,.0f}", f"{row['latency_p99_us']:,.0f}")
        figures = (f"{row['return_mean']:.2f}", f"{row['return_iqm']:.2f}", f"[{low:.2f}, {high:.2f}]")
        table.add_row(name, *(each.replace("[", r"\[") for each in figures), *latency)
    return table


def _explain(console: Console) -> None:
    console.print(
        f"What can be had: {BEST_TABLE:g} with one fixed answer to every number, {BEST_COMMON:g} with common random "
        f"numbers used evenly, {BEST_MEMORY:g} with a memory of all that was named.",
        highlight=False,
    )


def _announce(console: Console, found: Comparison, evaluations: dict[str, Evaluation]) -> None:
    verdict = "equal" if not found.differences else "do NOT equal"
    console.print(
        f"the fleet's actions {verdict} torch's one by one: {found.episodes} episodes, "
        f"{found.actions:,} actions, {found.differences} differences, {found.near_ties} near ties",
        style="bold green" if not found.differences else "bold red",
        highlight=False,
        soft_wrap=True,
    )
    same = np.array_equal(evaluations[SERVED].returns, evaluations[TRAINED].returns)
    console.print(f"all {found.episodes} returns are {'equal' if same else 'not equal'}", highlight=False)


def _write(
    out: Path, environment: VectorEnvironment, fleet: Team, evaluations: dict[str, Evaluation], found: Comparison
) -> list[Path]:
    """Results, video and report of the served team; returns their paths."""
    paths = {name: out / name for name in ("report.html", "episode.gif", "results.json")}
    served = evaluations[SERVED]
    recording = record_played(environment, fleet, served, served.typical)
    write_video(paths["episode.gif"], recording.frames, FRAMES_PER_SECOND)
    command = f"hmarl-eval --endpoints {out / 'endpoints.json'} --env {TASK} --episodes {served.episodes} --seed 0"
    content = ReportContent(
        served,
        command,
        {"environment": served.environment, "actions": "deterministic", "served by": "one process per agent"},
        evaluations["random numbers"],
        recording,
        paths["episode.gif"],
    )
    write_report(paths["report.html"], content)
    document = {
        "teams": {name: evaluation.summary() for name, evaluation in evaluations.items()},
        "comparison": asdict(found),
    }
    write_text(paths["results.json"], json.dumps(document, indent=1) + "\n")
    return list(paths.values())


if __name__ == "__main__":
    sys.exit(run(main))
