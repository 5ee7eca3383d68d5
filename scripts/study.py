"""Compare algorithms and settings on tasks over several seeds: trains what is missing, resumes what was cut off, then
writes curves and tables.

    python scripts/study.py --out docs/results --runs runs/study --jobs 2
    python scripts/study.py --list
    python scripts/study.py --only hcpo-instructions

Every run is an ordinary run directory, trained as hmarl-suite trains its own; a study that was killed goes on where it
stopped.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from comparison import Comparison, Variant, selected
from comparisons import COMPARISONS
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from study_tables import Records, conductor_table, conductors_of, returns_table, table

from hmarl.runtime import command_line
from hmarl.runtime.choices import CHOICES
from hmarl.runtime.command_line import PATH, ExitCode, flag, integer, option
from hmarl.sdk import evaluate, make_environment
from hmarl.sdk.files import write_text
from hmarl.trainer.algorithms.hcpo import HcpoSettings
from hmarl.trainer.export.policy_source import load_team
from hmarl.trainer.records.problems import IncompleteError
from hmarl.trainer.runs.presets import find_preset
from hmarl.trainer.runs.stopping import answering_signals, stop_on_signals
from hmarl.trainer.suite.engine import Engine, Limits, Places, failures
from hmarl.trainer.suite.executor import LocalExecutor
from hmarl.trainer.suite.ledger import Ledger
from hmarl.trainer.suite.live_table import LiveTable
from hmarl.trainer.suite.planned import PlannedRun, has_ended
from hmarl.trainer.suite.records import Record, curve, read_record, record_of, write_record
from hmarl.trainer.suite.suite import STOPPING

COLOURS = {
    "hcpo": "#d55e00",
    "hatrpo": "#0072b2",
    "happo": "#009e73",
    "hamdpo": "#cc79a7",
    "a2po": "#e69f00",
    "haa2c": "#56b4e9",
    "mappo": "#999999",
    "ippo": "#000000",
    "maven": "#c9b400",
    "magpo": "#d62728",
    "mat": "#9467bd",
    "sable": "#8c564b",
    "ctds": "#17becf",
    "guided-hcpo": "#bcbd22",
    "himpo": "#4b0082",
}
FIRST_SEED = 100
_NO_RECORDS = (
    "*Runs from before records were kept, or with presets of then: nothing of this section can be drawn again, and the "
    "same command may give other figures today.*"
)
_AT_RIGHT = ("axes fraction", "data")
_WITHIN = 4  # names of so many curves stand within the plot, of more below it


def run_name(comparison: Comparison, variant: Variant, seed: int) -> str:
    """What a run is called; runs with the same settings are shared between comparisons."""
    slug = "-".join([re.sub("[/:]", "-", comparison.environment), *comparison.environment_settings])
    name = "-".join([variant.algorithm, *([variant.preset] if variant.preset else [])])
    if variant.settings:
        name = "-".join([name, *(setting.removeprefix("algorithm.") for setting in variant.settings)])
    return f"{slug}-{comparison.steps}-{name}-seed{seed}"


def planned_run(comparison: Comparison, variant: Variant, seed: int) -> PlannedRun:
    """A run of a comparison, as the suite's engine trains it."""
    words = [variant.algorithm, "--env", comparison.environment, "--steps", str(comparison.steps)]
    words += ["--seed", str(seed), *(["--preset", variant.preset] if variant.preset else [])]
    common = ("run.threads=1", f"run.evaluation_interval={comparison.evaluation_interval}")
    environment = tuple(f"env.{setting}" for setting in comparison.environment_settings)
    for setting in (*common, *comparison.settings, *environment, *variant.settings):
        words += ["--set", setting]
    name = run_name(comparison, variant, seed)
    return PlannedRun(name, variant.label, comparison.name, seed, comparison.steps, tuple(words))


def seeds_of(variant: Variant) -> range:
    """The seeds of a variant."""
    return range(FIRST_SEED, FIRST_SEED + variant.seeds)


Runs = dict[str, list[Path]]
"""Run directories per variant's label."""


def runs_of(comparison: Comparison, folder: Path) -> Runs:
    """The directories of the runs that are done; variants without one are left out."""
    found = {
        variant.label: [folder / run_name(comparison, variant, seed) for seed in seeds_of(variant)]
        for variant in comparison.variants
    }
    done = {label: [run for run in runs if (run / "summary.json").exists()] for label, runs in found.items()}
    return {label: runs for label, runs in done.items() if runs}


def keep(comparison: Comparison, variant: Variant, seed: int, folder: Path, kept: Path) -> None:
    """Writes the record of a run that is done, unless it is there and holds what the comparison shows.

    Raises:
        CheckpointError: a file of the run is damaged, or its last evaluation missing.
    """
    run = folder / run_name(comparison, variant, seed)
    path = record_path(run.name, kept)
    asks = comparison.instruction_choices and variant.label == "hcpo"
    there = path.exists() and (not asks or read_record(path).choices)
    if there or not (run / "summary.json").exists():
        return
    record = record_of(run)
    if asks:
        record = replace(record, choices=returns_by_choice(run))
    kept.mkdir(parents=True, exist_ok=True)
    write_record(record, path)


Planned = tuple[Comparison, Variant, int]
"""A run: the comparison and variant that it belongs to, its seed."""


def without_record(chosen: Sequence[Comparison], kept: Path) -> list[Planned]:
    """The runs that are still to be trained; one that several comparisons show only once.

    Raises:
        ValueError: two comparisons give runs of one name other settings: the record of one would stand for both.
    """
    planned: dict[str, tuple[PlannedRun, Planned]] = {}
    for comparison in chosen:
        for variant in comparison.variants:
            for seed in seeds_of(variant):
                run = planned_run(comparison, variant, seed)
                other, _ = planned.setdefault(run.name, (run, (comparison, variant, seed)))
                if other.words != run.words:
                    raise ValueError(f"{run.name}: of {other.task} and {run.task}, which train it with other settings")
    return [run for name, (_, run) in planned.items() if not record_path(name, kept).exists()]


def train_runs(
    runs: Sequence[PlannedRun],
    folder: Path,
    keep: Callable[[PlannedRun], None],
    kept: Callable[[PlannedRun], bool],
    limits: Limits,
) -> bool:
    """Trains runs; see ``Engine``.

    Returns:
        Whether it was stopped: all runs are saved then, and the same command goes on.

    Raises:
        IncompleteError: runs that failed; the others are done.
    """
    places, ledger = Places(folder, folder / "failed"), Ledger()
    with stop_on_signals() as stop, LiveTable("study", runs, places, limits.jobs) as table:
        stop.postponing = STOPPING
        Engine(runs, places, keep, kept, LocalExecutor(), limits, ledger, table).train(stop)
        stopped = stop()
    if failed := failures(ledger, runs):
        told = ", ".join(f"{name} ({error})" for name, error in failed.items())
        raise IncompleteError(f"runs failed: {told}; the same command goes on where they stopped")
    return stopped


def train_unrecorded(runs: Sequence[PlannedRun], folder: Path) -> bool:
    """Trains runs of which no record is kept, one after the other, each until it has come to its end; see above."""
    return train_runs(runs, folder, lambda run: None, lambda run: has_ended(folder / run.name), Limits())


def train_all(chosen: Sequence[Comparison], folder: Path, kept: Path, limits: Limits) -> bool:
    """Trains every run that has no record, and writes each one's record as it ends; see ``train_runs``."""
    missing = {planned_run(*run): run for run in without_record(chosen, kept)}
    return train_runs(
        list(missing),
        folder,
        lambda run: keep(*missing[run], folder, kept),
        lambda run: record_path(run.name, kept).exists(),
        limits,
    )


def record_path(name: str, kept: Path) -> Path:
    """Where the record of a run of this name is kept."""
    return kept / f"{name}.json"


def records_of(comparison: Comparison, kept: Path) -> Records:
    """What is kept of a comparison's runs; variants without a record are left out."""
    found: Records = {}
    for variant in comparison.variants:
        paths = [record_path(run_name(comparison, variant, seed), kept) for seed in seeds_of(variant)]
        if records := [read_record(path) for path in paths if path.exists()]:
            found[variant.label] = records
    return found


def colours(lines: Mapping[str, str | None]) -> dict[str, str]:
    """By label: an algorithm's own colour; where it has none, that of COLOURS which is farthest from the others'.

    Args:
        lines: by label the algorithm whose colour a line has, None for one that differs by its settings.
    """
    chosen = {label: COLOURS[algorithm] for label, algorithm in lines.items() if algorithm is not None}
    pool = np.array([to_rgb(colour) for colour in COLOURS.values()])
    for label in (label for label, algorithm in lines.items() if algorithm is None):
        taken = np.array([to_rgb(colour) for colour in chosen.values()]).reshape(-1, 3)
        apart = np.linalg.norm(pool[:, None] - taken, axis=-1).min(axis=1, initial=np.inf)
        chosen[label] = list(COLOURS.values())[apart.argmax()]
    return chosen


def draw(comparison: Comparison, runs: Records, path: Path) -> None:
    """The measure of the deployed policies: every seed thin, the mean thick."""
    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    colour_of = colours({v.label: None if v.settings or v.preset else v.algorithm for v in comparison.variants})
    for label, records in runs.items():
        colour = colour_of[label]
        steps, values = curve(records, records[0].measured(comparison.measure))
        for row in values:
            axes.plot(steps, row, color=colour, lw=0.7, alpha=0.4)
        whole_team = records[0].judged_by != "local"
        axes.plot(steps, values.mean(0), color=colour, lw=2, label=f"{label}, whole team" if whole_team else label)
    for label, value in comparison.references:
        axes.axhline(value, color="#777777", lw=0.8, ls="--")
        axes.annotate(label, (0.01, value), xycoords=("axes fraction", "data"), ha="left", va="bottom", fontsize=7)
    measure = "return of the team" if comparison.measure == "return_mean" else "share of episodes won"
    axes.set(xlabel="environment steps", ylabel=measure, title=f"{comparison.task}, deployed policies")
    axes.grid(alpha=0.3)
    name_lines(figure, axes)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def name_lines(figure: Figure, axes: Axes) -> None:
    """The lines' names where they leave the plot its width, however long they are."""
    lines = len(axes.get_legend_handles_labels()[1])
    if lines <= _WITHIN:
        axes.legend(frameon=False, loc="best")
        return
    rows = -(-lines // 2)
    figure.set_figheight(figure.get_figheight() + 0.22 * rows)
    figure.legend(frameon=False, loc="outside lower center", ncols=2)


def instructions_of(comparison: Comparison) -> int:
    """K of the comparison's plain HCPO."""
    preset = find_preset("hcpo", comparison.environment)
    settings = {} if preset is None else preset.algorithm_settings
    return int(settings.get("instructions", HcpoSettings.model_fields["instructions"].default))


def draw_conductors(comparison: Comparison, records: list[Record], path: Path) -> None:
    """HCPO under its conductors, and the instructions' entropy."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, colour in conductors_of(records).items():
        steps, returns = curve(records, f"evaluation/{name}/return_mean")
        left.plot(steps, returns.mean(0), "o-", ms=3, color=colour, label=f"{name} conductor")
        left.fill_between(steps, returns.min(0), returns.max(0), color=colour, alpha=0.15)
    left.set(xlabel="environment steps", ylabel="return of the team", title=f"HCPO on {comparison.environment}")
    steps, entropy = curve(records, "instruction_entropy")
    right.plot(steps, entropy.T, color="#0072b2", lw=0.7)
    count = instructions_of(comparison)
    right.axhline(np.log(count), color="#777777", lw=0.8, ls="--")
    right.annotate(f"uniform over {count}", (0.99, np.log(count)), xycoords=_AT_RIGHT, ha="right", va="top")
    right.set(xlabel="environment steps", ylabel="entropy of the conductor (nats)", title="every seed")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def returns_by_choice(run: Path) -> dict[str, list[float]]:
    """[E] returns of HCPO's deployed agents by how they choose their instructions."""
    returns: dict[str, list[float]] = {}
    for choice in CHOICES:
        make_team, name, arguments = load_team(run, checkpoint="last", instruction_choice=choice)
        environment = make_environment(name, 16, **arguments)
        returns[choice] = evaluate(environment, make_team(environment.spec), 100, seed=0).returns.tolist()
    return returns


def heading(comparison: Comparison) -> str:
    """Of a comparison's part of the page."""
    return f"## {comparison.name}: {comparison.task}, {comparison.steps:,} frames"


def section(comparison: Comparison, runs: Records, out: Path) -> str:
    """Draws a comparison; returns its part of the page, from the heading on."""
    draw(comparison, runs, out / f"{comparison.name}.png")
    paragraphs = [
        heading(comparison),
        comparison.remark,
        table(comparison, runs),
        f"![curves]({comparison.name}.png)",
    ]
    if "hcpo" in runs:
        draw_conductors(comparison, runs["hcpo"], out / f"{comparison.name}-conductors.png")
        paragraphs += [
            "HCPO under its conductors:",
            conductor_table(runs["hcpo"]),
            f"![conductors]({comparison.name}-conductors.png)",
        ]
    choosing = runs.get("hcpo", []) if comparison.instruction_choices else []
    if choosing and all(run.choices for run in choosing):  # older records have none, and their runs may be gone
        paragraphs += [
            "HCPO's policies, deterministic actions, instructions chosen by every agent in one of three ways:",
            returns_table("instruction choice", {name: [run.choices[name] for run in choosing] for name in CHOICES}),
        ]
    if "guided-hcpo" in runs:
        paragraphs += ["Guided HCPO under its four conductors:", conductor_table(runs["guided-hcpo"])]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def section_without_records(comparison: Comparison, written: str) -> str:
    """A part of the page as it was written, with a word of why nothing of it can be drawn again."""
    body = written.partition("\n")[2].strip().removeprefix(_NO_RECORDS).strip()
    return "\n\n".join((heading(comparison), _NO_RECORDS, body))


def sections_of(page: Path) -> dict[str, str]:
    """The parts of a page that was written before, by their headings up to a colon."""
    _, *parts = re.split(r"^## ", page.read_text(encoding="utf-8") if page.exists() else "", flags=re.MULTILINE)
    return {part.splitlines()[0].split(":")[0]: f"## {part.rstrip()}" for part in parts}


@command_line.command(
    "scripts/study.py",
    option("--out", "where the report goes", PATH, default=Path("docs/results")),
    option("--runs", "where the run directories go", PATH, default=Path("runs/study")),
    option("--only", "only these comparisons", many=True),
    option("--jobs", "runs at the same time, one thread each", integer(1), default=1),
    option("--retries", "how often a run that failed is started again", integer(0), default=1),
    flag("--train/--no-train", "train what is missing", default=True, parameter="missing"),
    flag("--report/--no-report", "write the report", default=True),
    flag("--list", "list the comparisons and stop", parameter="names"),
)
@answering_signals
def main(
    out: Path, runs: Path, only: tuple[str, ...], jobs: int, retries: int, missing: bool, report: bool, names: bool
) -> int:
    """Train what is missing, then draw what is done into one Markdown page with plots.

    What the page shows of a run is kept in its folder's records/, and a run that has a record there is not trained
    again: delete the record, or choose another --out, to have it repeated. With --only the other comparisons stay on
    the page as they are; so do those without a record, which say so.
    """
    if names:
        for comparison in COMPARISONS:
            print(f"{comparison.name}: {', '.join(variant.label for variant in comparison.variants)}")
        return ExitCode.DONE
    comparisons, kept = selected(COMPARISONS, only), out / "records"
    if missing and train_all(comparisons, runs, kept, Limits(jobs, retries)):
        return ExitCode.INTERRUPTED
    if not report:
        return ExitCode.DONE
    out.mkdir(parents=True, exist_ok=True)
    page = out / "README.md"
    written = sections_of(page)
    for comparison in comparisons:
        for variant in comparison.variants:
            for seed in seeds_of(variant):
                keep(comparison, variant, seed, runs, kept)
        if done := records_of(comparison, kept):
            written[comparison.name] = section(comparison, done, out)
    introduction = [
        "# Learning results",
        f"Made by `python scripts/study.py`; seeds from {FIRST_SEED} on. Returns are those of the deployed (local) "
        "policies over 100 episodes with fixed seeds (32 on large tasks, see scripts/comparisons.py); "
        "those of mat, sable and himpo are of the whole team acting centrally. *actions* says how they were chosen: "
        "greedy (the likeliest) or sampled (drawn); where the cell is empty, the run is older than this column, and "
        "actions were greedy unless the preset draws them. An interval [95 %] comes from resampling the seeds and the "
        "episodes of each (for a single seed, and in sections that cannot be drawn again, the episodes alone, which "
        "is too narrow for what another seed would earn). Teams with a guider also show the other mode, the best "
        "checkpoint (chosen on the very episodes that are shown, so it looks slightly too good) and the gap: guider "
        "minus deployed policies, means of the same mode. Every pair of algorithm and task ran with its preset, with "
        "one thread per run. Where a setting is compared, one variant differs from the next in that setting alone. "
        "frames/s include evaluations and suffered from other work on the machine; the benchmarks measure speed. The "
        "median of the last ten evaluations is the HCPO paper's measure (its C.1), mean ± sd over seeds (runs with "
        "ten evaluations or fewer: of all, from the start on).",
        "Elsewhere: [what the papers claim](claims.md); [the imitation gap](imitation_gap.md); [the price of "
        "deployment](gap.md); [how widely the algorithms explore](exploration.md); [who goes where on "
        "simple_spread](roles.md); [what students keep](students.md); [which algorithm runs in which family of "
        "environments](families.md); [speed](speed.md).",
    ]
    for comparison in COMPARISONS:
        if comparison.name in written and not records_of(comparison, kept):
            written[comparison.name] = section_without_records(comparison, written[comparison.name])
    ordered = [written[comparison.name] for comparison in COMPARISONS if comparison.name in written]
    write_text(page, "\n\n".join([*introduction, *ordered]) + "\n")
    print(f"wrote {page}")
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(command_line.run(main))
