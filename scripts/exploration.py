"""Compare how widely algorithms explore: entropy and nearest-neighbour distance of the visited states over training.

    python scripts/exploration.py                        # trains what is missing, then writes the report
    python scripts/exploration.py --only simple_spread
    python scripts/exploration.py RUN... --out reports   # any runs; run.checkpoints_kept=1000 keeps all checkpoints

Every stored checkpoint of a run, and the untrained policies before them, play episodes with the same seeds as they did
in training: with sampled actions, HCPO under its central conductor.
"""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from comparison import Comparison, Variant, algorithms, selected
from matplotlib import pyplot as plt
from study import COLOURS, Runs, colours, planned_run, runs_of, sections_of, seeds_of, train_unrecorded

from hmarl.runtime import command_line
from hmarl.runtime.command_line import PATH, ExitCode, argument, option
from hmarl.sdk import UsageError, make_environment
from hmarl.sdk.evaluation import episode_seeds
from hmarl.sdk.files import write_text
from hmarl.trainer.records.checkpoint import checkpoints_in, find_checkpoint, restore
from hmarl.trainer.runs.building import build_algorithm
from hmarl.trainer.runs.config import RunConfig
from hmarl.trainer.runs.exploration import StateCoordinates, nearest_neighbour_distance, state_entropy, visited_states
from hmarl.trainer.runs.stopping import answering_signals

EPISODE_SEED = 2_000_003
STATES = 2_000  # M, per checkpoint
# Of how many steps M are drawn, and of how many episodes at least.
PLAYED, LEAST_EPISODES = 10_000, 32
UNKNOWN_HORIZON = 200


def comparison(
    name: str,
    environment: str,
    steps: int,
    interval: int,
    variants: tuple[Variant, ...],
    *settings: str,
    remark: str = "",
) -> Comparison:
    """A comparison whose runs keep a checkpoint every ``interval`` updates, and are evaluated at their end alone."""
    kept = ("run.checkpoints_kept=1000", f"run.checkpoint_interval={interval}")
    return Comparison(name, environment, steps, steps, variants, settings=(*kept, *settings), remark=remark)


# What HCPO's preset for mpe changes in HATRPO's, γ aside; undone, the conductor alone is left between the two.
_HATRPO_STEPS = ("algorithm.kl_limit=0.01", "algorithm.instruction_weight=ratio")
COMPARISONS = (
    comparison(
        "simple_spread",
        "mpe/simple_spread",
        1_000_000,
        20,
        (
            *algorithms("hcpo", "hatrpo", "happo", "mappo", seeds=2),
            Variant("hcpo, hatrpo's steps", "hcpo", _HATRPO_STEPS, seeds=2),
        ),
        "algorithm.gamma=0.99",  # the presets' differ
        remark="**As trained, yes, but not because of the conductor.** With its preset HCPO's states are the most "
        "widely spread until, at the end, one of HAPPO's seeds passes them. This is due to the two settings that make "
        "its steps small, which also slow its learning: with HATRPO's (`algorithm.kl_limit=0.01`, "
        "`algorithm.instruction_weight=ratio`) the conductor is the only difference, and both measures are level with "
        "HATRPO's. At equal return (right) the three lie within about 0.7 nats. They explore more widely than MAPPO, "
        "and on average than HAPPO, whose two seeds lie far apart; these two have a third of the entropy bonus. All "
        "ran with γ = 0.99, where their presets differ. The spread shrinks as the return grows; part of it comes from "
        "the random starts, which are the same for all.",
    ),
    comparison(
        "halfcheetah-2x3",
        "mamujoco/HalfCheetah-2x3",
        300_000,
        6,
        algorithms("hcpo", "hatrpo", "happo", "hamdpo", seeds=1),
        "env.threads=1",
        remark="**Slightly, in one seed.** HCPO and HATRPO have the same settings here, so the conductor is the only "
        "difference. HCPO's states are more widely spread than HATRPO's nearly all the way and at equal return "
        "(right), on average by 0.4 nats and by 2 % of the distance; at the end the entropies are level. One seed "
        "cannot tell whether this is more than chance. HAPPO and HAMDPO start narrow, overtake HATRPO for a while and "
        "narrow again; HAPPO ends with the narrowest states and the highest return.",
    ),
    comparison(
        "walker2d-6x1",
        "mamujoco/Walker2d-6x1",
        500_000,
        8,
        algorithms("hcpo", "hatrpo", "a2po", seeds=2),
        "env.threads=1",
        remark="**Yes, on the task that the paper shows.** HCPO's states are more widely spread than HATRPO's and "
        "A2PO's at every checkpoint, in both seeds; early on, by 2.3 and 4.1 nats, and by 15 and 25 % of the "
        "distance. HCPO and HATRPO have the same settings here, so the conductor is the only difference. It costs "
        "time: HCPO learns more slowly at first (473 after this budget, HATRPO 923), and part of its spread comes "
        "from that; at equal return (right) it is ahead of HATRPO by about one nat. A possible benefit shows later: "
        "in three million frames one of HATRPO's three seeds never earns more than 572, and none of HCPO's is stuck "
        "there ([walker2d-6x1](README.md)).",
    ),
)


@dataclass(frozen=True)
class Visits:
    """What one run visited.

    Attributes:
        steps: [C] environment steps at its checkpoints, 0 first.
        states: [C, M, state_size].
        episodes: [M] of which environment they are.
        returns: [C] mean of the episodes played.
    """

    steps: list[int]
    states: torch.Tensor
    episodes: torch.Tensor
    returns: list[float]


def stored_steps(run: Path) -> list[int]:
    """The steps at which a run's checkpoints are, ascending.

    Raises:
        UsageError: it has none.
    """
    steps = [int(path.stem.removeprefix("step-")) for path in checkpoints_in(run / "checkpoints")]
    if not steps:
        raise UsageError(f"RUN: got {run} without checkpoints, expected the directory of a run")
    return steps


def visit(run: Path) -> Visits:
    """Plays episodes at all of a run's checkpoints."""
    config, steps = RunConfig.read(run), [0, *stored_steps(run)]
    config = config.model_copy(update={"run": {**config.run, "device": "cpu"}})
    first = make_environment(config.environment, 1, **config.environment_arguments)
    horizon = first.spec.horizon or UNKNOWN_HORIZON
    first.close()
    episodes = max(LEAST_EPISODES, math.ceil(PLAYED / horizon))
    environment = make_environment(config.environment, episodes, **config.environment_arguments)
    chosen = torch.randperm(episodes * horizon, generator=torch.Generator().manual_seed(0))[:STATES]
    states, returns = [], []
    for step in steps:
        algorithm = build_algorithm(config, environment)
        if step:
            restore({"algorithm": algorithm.components()}, find_checkpoint(run, str(step)).tensors)
        visited, earned = visited_states(algorithm, environment, episode_seeds(EPISODE_SEED, episodes), horizon)
        states.append(visited.flatten(0, 1)[chosen])
        returns.append(float(earned.mean()))
    environment.close()
    print(f"{run}: {len(steps)} checkpoints, {episodes} episodes each", flush=True)
    return Visits(steps, torch.stack(states), chosen % episodes, returns)


@dataclass(frozen=True)
class Line:
    """One line of a comparison, over the checkpoints that all its seeds have.

    Attributes:
        steps: [C].
        entropy: [seeds, C] nats; distance: [seeds, C] standard deviations; returns: [seeds, C].
    """

    steps: np.ndarray
    entropy: np.ndarray
    distance: np.ndarray
    returns: np.ndarray

    @property
    def early(self) -> np.ndarray:
        """[C] bool: the trained checkpoints in the first quarter of the training."""
        return np.asarray((self.steps > 0) & (self.steps <= self.steps[-1] / 4))


Lines = Mapping[str, Line]
"""By the variants' labels."""


def measure(runs: Runs) -> tuple[Lines, int]:
    """The lines of all runs on one environment in common coordinates, and how many coordinates these are."""
    visits = {label: [visit(run) for run in directories] for label, directories in runs.items()}
    pooled = torch.cat([seed.states.flatten(0, 1) for seeds in visits.values() for seed in seeds])
    coordinates = StateCoordinates.of(pooled)
    return {label: line_of(seeds, coordinates) for label, seeds in visits.items()}, coordinates.size


def line_of(seeds: list[Visits], coordinates: StateCoordinates) -> Line:
    """Both measures of what one variant's seeds visited."""
    steps = sorted(set.intersection(*(set(seed.steps) for seed in seeds)))
    at = [[seed.steps.index(step) for step in steps] for seed in seeds]
    points = [([coordinates(seed.states[c]) for c in row], seed.episodes) for seed, row in zip(seeds, at, strict=True)]
    return Line(
        np.array(steps),
        np.array([[state_entropy(states, episodes=of) for states in row] for row, of in points]),
        np.array([[nearest_neighbour_distance(states, of) for states in row] for row, of in points]),
        np.array([[seed.returns[c] for c in row] for seed, row in zip(seeds, at, strict=True)]),
    )


def draw(environment: str, lines: Lines, path: Path) -> None:
    """Entropy and distance over training, and entropy over return: every seed thin, the mean thick."""
    figure, panels = plt.subplots(1, 3, figsize=(13.5, 4.4), layout="constrained")
    colour_of = colours({label: label if label in COLOURS else None for label in lines})
    for label, line in lines.items():
        colour, steps = colour_of[label], line.steps / 1000
        for axes, values in zip(panels, (line.entropy, line.distance), strict=False):
            if len(values) > 1:
                axes.plot(steps, values.T, color=colour, lw=0.7, alpha=0.5)
            axes.plot(steps, values.mean(0), color=colour, lw=2, label=label)
        panels[2].plot(line.returns.mean(0), line.entropy.mean(0), "o-", ms=3, color=colour, lw=1.2)
    entropy, distance = "state entropy (nats)", "mean nearest-neighbour distance (sd)"
    names = (("thousand environment steps", entropy), ("thousand environment steps", distance))
    for axes, (x, y) in zip(panels, (*names, ("return of the same episodes", entropy)), strict=True):
        axes.set(xlabel=x, ylabel=y)
        axes.grid(alpha=0.3)
    figure.suptitle(f"{environment}: the states visited in training")
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=len(lines))
    figure.savefig(path, dpi=100)
    plt.close(figure)


def table(lines: Lines) -> str:
    """Markdown: both measures early, on average (and of each seed) and at the end; what the same episodes returned."""
    columns = [f"{name}, {when}" for name in ("entropy", "distance") for when in ("early", "all (each seed)", "final")]
    rows = [["", *columns, "return, early", "final"]]
    rows.append(["---"] * len(rows[0]))
    for label, line in lines.items():
        row = [label]
        for values, digits in ((line.entropy, 2), (line.distance, 3)):
            trained = values[:, 1:].mean(1)
            seeds = ", ".join(f"{value:.{digits}f}" for value in trained)
            row += [_mean(values[:, line.early], digits), f"{_mean(trained, digits)} ({seeds})"]
            row.append(_mean(values[:, -1], digits))
        rows.append([*row, _mean(line.returns[:, line.early], 1), _mean(line.returns[:, -1], 1)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _mean(values: np.ndarray, digits: int) -> str:
    """The mean in words; a run that kept only its last checkpoints has no early ones."""
    return f"{values.mean():,.{digits}f}" if values.size else "–"


def section(environment: str, runs: Runs, out: Path, training: str = "", remark: str = "") -> str:
    """Measures and draws the runs on one environment; returns its part of the page, from the heading on."""
    lines, size = measure(runs)
    name = f"exploration-{re.sub(r'[^A-Za-z0-9_.-]+', '-', environment)}.png"
    draw(environment, lines, out / name)
    entropy = np.mean([line.entropy[:, 0].mean() for line in lines.values()])
    distance = np.mean([line.distance[:, 0].mean() for line in lines.values()])
    about = f"Untrained policies: entropy {entropy:.2f}, distance {distance:.3f}. The states fill {size} dimensions."
    paragraphs = [f"## {environment}", remark, table(lines), f"{about} {training}", f"![states visited]({name})"]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def trained_by(compared: Comparison) -> str:
    """The command behind a comparison's runs, in words for the report."""
    words = [*planned_run(compared, Variant("", "ALGORITHM"), 0).words, "--out", "RUN"]
    words[words.index("--seed") + 1] = "SEED"
    return f"Trained by `{shlex.join(['hmarl-train', *words])}`."


def grouped(directories: Sequence[Path]) -> dict[str, Runs]:
    """Runs by environment (with its arguments), then by algorithm and the settings in which its runs there differ."""
    configs: dict[str, dict[Path, RunConfig]] = {}
    for run in directories:
        config = RunConfig.read(run)
        environment = " ".join([config.environment, *(f"{k}={v}" for k, v in config.environment_arguments.items())])
        configs.setdefault(environment, {})[run] = config
    groups: dict[str, Runs] = {environment: {} for environment in configs}
    for environment, found in configs.items():
        for run, config in found.items():
            alike = [other.algorithm_settings for other in found.values() if other.algorithm == config.algorithm]
            settings = config.algorithm_settings.items()
            own = [f"{key}={value}" for key, value in settings if any(other[key] != value for other in alike)]
            groups[environment].setdefault(", ".join([config.algorithm, *own]), []).append(run)
    return groups


INTRODUCTION = (
    "Does HCPO explore more widely, as Figs. 6 and 11 of its paper say? At every stored checkpoint the policies play "
    f"{PLAYED:,} steps or more, as in training: with sampled actions, HCPO under its central conductor; the episodes' "
    f"seeds are the same everywhere. {STATES:,} of the states, the same steps everywhere, are standardised by "
    "the mean and deviation of all states compared; constant and redundant directions are dropped.",
    "- **Entropy**: differential, in nats, by the nearest-neighbour estimator of Kozachenko and Leonenko (k = 3); "
    "only differences within a section mean anything.\n"
    "- **Distance**: mean distance to the nearest other state, in standard deviations. In both, states of the same "
    "episode do not count as neighbours.\n"
    "- **Return**: of the same episodes.\n"
    "- **Early** is the first quarter of the training, **all** the mean over it, **final** its last checkpoint; means "
    "over the seeds.",
    "The paper shows t-SNE maps of Walker2d-v2-6x1 early in training, with an entropy and a distance, and does not say "
    "how they are computed. t-SNE keeps neither distances nor densities, so here the states themselves are measured. "
    "Every pair of algorithm and task ran with its preset, unless said otherwise. Wide exploration is not a merit in "
    "itself.",
)


@command_line.command(
    "scripts/exploration.py",
    argument("run", "run directories; without any the comparisons' own", PATH, required=False, many=True),
    option("--out", "where the report goes", PATH, default=Path("docs/results")),
    option("--runs", "where the comparisons' runs go", PATH, default=Path("runs/exploration")),
    option("--only", "only these comparisons", many=True),
)
@answering_signals
def main(run: tuple[Path, ...], out: Path, runs: Path, only: tuple[str, ...]) -> int:
    """Train what is missing, one run after the other, then measure and write exploration.md with its figures.

    With --only the other comparisons stay on the page as they are.
    """
    comparisons = [] if run else selected(COMPARISONS, only)
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    page = out / "exploration.md"
    words = ["python", "scripts/exploration.py", *map(str, run)]
    if run:
        written = {environment: section(environment, found, out) for environment, found in grouped(run).items()}
    else:
        written = sections_of(page)
        for compared in comparisons:
            planned = [
                planned_run(compared, variant, seed) for variant in compared.variants for seed in seeds_of(variant)
            ]
            if train_unrecorded(planned, runs):
                return ExitCode.INTERRUPTED
            found = runs_of(compared, runs)
            written[compared.environment] = section(
                compared.environment, found, out, trained_by(compared), compared.remark
            )
        written = {c.environment: written[c.environment] for c in COMPARISONS if c.environment in written}
    introduction = ["# Exploration", f"Made by `{shlex.join(words)}`.", *INTRODUCTION]
    write_text(page, "\n\n".join([*introduction, *written.values()]) + "\n")
    print(f"wrote {page}")
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(command_line.run(main))
