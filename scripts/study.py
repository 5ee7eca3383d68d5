"""Compare algorithms and settings on tasks over several seeds: trains what is missing, resumes what was cut off, then
writes curves and tables.

    python scripts/study.py --out docs/results --runs runs/study --jobs 2
    python scripts/study.py --list
    python scripts/study.py --only hcpo-instructions

Every run is an ordinary run directory; a study that was killed goes on where it stopped.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from comparisons import COMPARISONS, Comparison, Variant
from matplotlib import pyplot as plt
from records import Record, curve, read_record, record_of, write_record

from hmarl.runtime import command_line
from hmarl.runtime.choices import CHOICES
from hmarl.runtime.command_line import PATH, flag, integer, option
from hmarl.sdk import UsageError, evaluate, make_environment
from hmarl.sdk.errors import unknown_name
from hmarl.sdk.evaluation.statistics import iqm, iqm_interval
from hmarl.sdk.files import write_text
from hmarl.trainer.export.policy_source import load_team

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
OTHER_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")
CONDUCTORS = {"local": "#0072b2", "central": "#d55e00", "random": "#999999", "none": "#cc79a7"}
FIRST_SEED = 100


def run_name(comparison: Comparison, variant: Variant, seed: int) -> str:
    """What a run is called; runs with the same settings are shared between comparisons."""
    slug = "-".join([comparison.environment.replace("/", "-"), *comparison.environment_settings])
    name = variant.algorithm
    if variant.settings:
        name = "-".join([name, *(setting.removeprefix("algorithm.") for setting in variant.settings)])
    return f"{slug}-{comparison.steps}-{name}-seed{seed}"


def command(comparison: Comparison, variant: Variant, seed: int, run: Path) -> list[str]:
    """How to train one run, from the start or from its last checkpoint."""
    words = [sys.executable, "-m", "hmarl.trainer.commands.train"]
    if any((run / "checkpoints").glob("*.json")):
        return [*words, "--resume", str(run)]
    words += [variant.algorithm, "--env", comparison.environment, "--steps", str(comparison.steps)]
    words += ["--seed", str(seed), "--out", str(run)]
    common = ("run.threads=1", f"run.evaluation_interval={comparison.evaluation_interval}")
    environment = tuple(f"env.{setting}" for setting in comparison.environment_settings)
    for setting in (*common, *comparison.settings, *environment, *variant.settings):
        words += ["--set", setting]
    return words


def train(comparison: Comparison, variant: Variant, seed: int, folder: Path) -> None:
    """One run, or nothing when it is done; its output goes to a file beside it."""
    run = folder / run_name(comparison, variant, seed)
    if (run / "summary.json").exists():
        return
    words = command(comparison, variant, seed, run)
    print(" ".join(words), flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{run.name}.log").open("a", encoding="utf-8") as log:
        subprocess.run(words, check=True, stdout=log, stderr=subprocess.STDOUT)


def seeds_of(variant: Variant) -> range:
    """The seeds of a variant."""
    return range(FIRST_SEED, FIRST_SEED + variant.seeds)


Runs = dict[str, list[Path]]
"""Run directories per variant's label."""

Records = dict[str, list[Record]]
"""What is kept of finished runs, per variant's label."""


def runs_of(comparison: Comparison, folder: Path) -> Runs:
    """The directories of the runs that are done; variants without one are left out."""
    found = {
        variant.label: [folder / run_name(comparison, variant, seed) for seed in seeds_of(variant)]
        for variant in comparison.variants
    }
    done = {label: [run for run in runs if (run / "summary.json").exists()] for label, runs in found.items()}
    return {label: runs for label, runs in done.items() if runs}


def keep(comparison: Comparison, folder: Path, kept: Path) -> None:
    """Writes the records of the runs that are done and whose directories are there."""
    for label, runs in runs_of(comparison, folder).items():
        for run in runs:
            record = record_of(run)
            if comparison.instruction_choices and label == "hcpo":
                record = replace(record, choices=returns_by_choice(run))
            kept.mkdir(exist_ok=True)
            write_record(record, record_path(run.name, kept))


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


def colours(comparison: Comparison) -> dict[str, str]:
    """By label: an algorithm's own colour, or one a setting."""
    others = cycle(OTHER_COLOURS)
    return {
        variant.label: next(others) if variant.settings else COLOURS[variant.algorithm]
        for variant in comparison.variants
    }


def draw(comparison: Comparison, runs: Records, path: Path) -> None:
    """The measure of the deployed policies: every seed thin, the mean thick."""
    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    colour_of = colours(comparison)
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
    axes.legend(frameon=False, loc="best")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def conductors_of(records: list[Record]) -> dict[str, str]:
    """The conductors under which runs were evaluated, each with its colour: no central one where agents have copies."""
    return {name: colour for name, colour in CONDUCTORS.items() if name in records[0].returns}


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
    right.axhline(np.log(10), color="#777777", lw=0.8, ls="--")
    right.annotate("uniform over 10", (0.99, np.log(10)), xycoords=("axes fraction", "data"), ha="right", va="top")
    right.set(xlabel="environment steps", ylabel="entropy of the conductor (nats)", title="every seed")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def table(comparison: Comparison, runs: Records) -> str:
    """Markdown: per variant the final IQM, the mean of each seed, the paper's measure, an early value, frames/s."""
    header = ["", "IQM of the final returns [95 %]", "mean of each seed", "median of the last ten evaluations"]
    won = comparison.measure == "success_rate"
    header += ["won, each seed, median of the last ten"] if won else []
    header += [f"at {comparison.early:,} frames"] if comparison.early else []
    guided = {label for label, records in runs.items() if "guider" in records[0].returns}
    header += ["guider's IQM [95 %]"] if guided else []
    rows = [[*header, "frames/s"]]
    for label, records in runs.items():
        returns = np.stack([record.final_returns for record in records])
        steps, curves = curve(records, records[0].measured("return_mean"))
        means = ", ".join(f"{v:.2f}" for v in returns.mean(1))
        row = [label, _iqm_with_interval(returns), means, _mean_and_deviation(np.median(curves[:, -10:], axis=1))]
        if won:
            _, shares = curve(records, records[0].measured(comparison.measure))
            row.append(", ".join(f"{v:.0%}" for v in np.median(shares[:, -10:], axis=1)))
        if comparison.early:
            at = min(int(np.searchsorted(steps, comparison.early)), len(steps) - 1)
            row.append(f"{curves[:, at].mean():.2f} (at {steps[at]:,})")
        if guided:
            row.append(
                _iqm_with_interval(np.array([record.returns["guider"] for record in records]))
                if label in guided
                else ""
            )
        rows.append([*row, f"{np.median([record.steps_per_s for record in records]):,.0f}"])
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _mean_and_deviation(values: np.ndarray) -> str:
    """Mean ± standard deviation over seeds, as the HCPO paper reports (C.1)."""
    return f"{values.mean():.2f} ± {values.std(ddof=1):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def _iqm_with_interval(returns: np.ndarray) -> str:
    low, high = iqm_interval(returns.ravel())
    return f"{float(iqm(returns.ravel())):.2f} [{low:.2f}, {high:.2f}]"


def returns_table(by: str, returns: Mapping[str, list[list[float]]]) -> str:
    """Markdown: the IQM and the means of teams that act in several ways, each with returns [seeds, E]."""
    lines = [f"| {by} | IQM [95 % bootstrap interval] | mean of each seed |", "|---|---|---|"]
    for name, values in returns.items():
        means = ", ".join(f"{np.mean(of_seed):.2f}" for of_seed in values)
        lines.append(f"| {name} | {_iqm_with_interval(np.array(values))} | {means} |")
    return "\n".join(lines)


def conductor_table(records: list[Record]) -> str:
    """Markdown: teams under their conductors at the last evaluation."""
    return returns_table(
        "conductor", {name: [record.returns[name] for record in records] for name in conductors_of(records)}
    )


def returns_by_choice(run: Path) -> dict[str, list[float]]:
    """[E] returns of HCPO's deployed agents by how they choose their instructions."""
    returns: dict[str, list[float]] = {}
    for choice in CHOICES:
        make_team, name, arguments = load_team(run, checkpoint="last", instruction_choice=choice)
        environment = make_environment(name, 16, **arguments)
        returns[choice] = evaluate(environment, make_team(environment.spec), 100, seed=0).returns.tolist()
    return returns


def section(comparison: Comparison, runs: Records, out: Path) -> str:
    """Draws a comparison; returns its part of the page, from the heading on."""
    draw(comparison, runs, out / f"{comparison.name}.png")
    paragraphs = [
        f"## {comparison.name}: {comparison.task}, {comparison.steps:,} frames",
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
    if comparison.instruction_choices:
        paragraphs += [
            "HCPO's policies, deterministic actions, instructions chosen by every agent in one of three ways:",
            returns_table(
                "instruction choice", {name: [run.choices[name] for run in runs["hcpo"]] for name in CHOICES}
            ),
        ]
    if "guided-hcpo" in runs:
        paragraphs += ["Guided HCPO under its four conductors:", conductor_table(runs["guided-hcpo"])]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def sections_of(page: Path) -> dict[str, str]:
    """The parts of a page that was written before, by the name of their comparison."""
    _, *parts = re.split(r"^## ", page.read_text(encoding="utf-8") if page.exists() else "", flags=re.MULTILINE)
    return {part.split(":")[0]: f"## {part.rstrip()}" for part in parts}


@command_line.command(
    "scripts/study.py",
    option("--out", "where the report goes", PATH, default=Path("docs/results")),
    option("--runs", "where the run directories go", PATH, default=Path("runs/study")),
    option("--only", "only these comparisons", many=True),
    option("--jobs", "runs at the same time, one thread each", integer(1), default=1),
    flag("--train/--no-train", "train what is missing", default=True, parameter="missing"),
    flag("--report/--no-report", "write the report", default=True),
    flag("--list", "list the comparisons and stop", parameter="names"),
)
def main(out: Path, runs: Path, only: tuple[str, ...], jobs: int, missing: bool, report: bool, names: bool) -> None:
    """Train what is missing, then draw what is done into one Markdown page with plots.

    What the page shows of a run is kept in its folder's records/, and a run that has a record there is not trained
    again: delete the record, or choose another --out, to have it repeated. With --only the other comparisons stay on
    the page as they are; so do those without a record.
    """
    if names:
        for comparison in COMPARISONS:
            print(f"{comparison.name}: {', '.join(variant.label for variant in comparison.variants)}")
        return
    for name in only:
        if name not in (known := [comparison.name for comparison in COMPARISONS]):
            raise UsageError(f"--only: {unknown_name('comparison', name, known)}")
    kept = out / "records"
    chosen = [comparison for comparison in COMPARISONS if not only or comparison.name in only]
    if missing:
        with ThreadPoolExecutor(jobs) as pool:
            started = [
                pool.submit(train, comparison, variant, seed, runs)
                for comparison in chosen
                for variant in comparison.variants
                for seed in seeds_of(variant)
                if not record_path(run_name(comparison, variant, seed), kept).exists()
            ]
            for run in started:
                run.result()
    if not report:
        return
    out.mkdir(parents=True, exist_ok=True)
    page = out / "README.md"
    written = sections_of(page)
    for comparison in chosen:
        keep(comparison, runs, kept)
        if done := records_of(comparison, kept):
            written[comparison.name] = section(comparison, done, out)
    introduction = [
        "# Learning results",
        f"Made by `python scripts/study.py`; seeds from {FIRST_SEED} on. Returns are those of the deployed (local, "
        "deterministic) policies over 100 episodes with fixed seeds (32 on large tasks, see scripts/comparisons.py); "
        "those of mat, sable and himpo are of the whole team acting centrally. Every pair of algorithm and task ran "
        "with its preset, one thread a run. Where a setting is compared, one variant differs from the next in that "
        "setting alone. frames/s count evaluations and suffered from other work on the machine; the benchmarks "
        "measure speed. The median of the last ten evaluations is the HCPO paper's measure (its C.1), mean ± sd over "
        "seeds (runs with ten evaluations or fewer: of all, from the start on).",
        "Elsewhere: [the imitation gap](imitation_gap.md); [how widely the algorithms explore](exploration.md); "
        "[what students keep](students.md); [which algorithm runs in which family of environments](families.md); "
        "[speed](speed.md).",
    ]
    ordered = [written[comparison.name] for comparison in COMPARISONS if comparison.name in written]
    write_text(page, "\n\n".join([*introduction, *ordered]) + "\n")
    print(f"wrote {page}")


if __name__ == "__main__":
    sys.exit(command_line.run(main))
