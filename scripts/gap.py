"""The price of deployment of several teams: trains what is missing, measures it with hmarl-gap, and writes a page.

    python scripts/gap.py                     # trains and measures what has no record, then writes docs/results/gap.md
    python scripts/gap.py --drawn-only        # writes the page from the records alone
    python scripts/gap.py --pages build/gaps  # also one HTML page for each team and seed

A record is the gap.json of one team and seed, kept in docs/results/gaps as soon as it is measured. What was killed goes
on where it stopped; delete a record to measure it again.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from comparison import Variant, selected
from gap_teams import TEAMS, Shown
from study import planned_run, run_name, seeds_of, train_unrecorded

from hmarl.runtime import command_line
from hmarl.runtime.command_line import PATH, flag, option
from hmarl.sdk.evaluation.statistics import mean_interval
from hmarl.sdk.files import write_text
from hmarl.sdk.gap.document import FILE, Difference, Gap, read_gap, write_gap
from hmarl.sdk.reports.gap_page import write_gap_page


def program(name: str) -> str:
    """The command of this very environment, whatever PATH says."""
    return str(Path(sysconfig.get_path("scripts")) / name)


def record_path(shown: Shown, variant: Variant, seed: int, kept: Path) -> Path:
    """Where the record of one team and seed is."""
    return kept / f"{run_name(shown.comparison, variant, seed)}.json"


def words(shown: Shown, run: Path, out: Path) -> list[str]:
    """How one team and seed is measured."""
    faults = [word for each in shown.faults for word in ("--faults", each)]
    resumed = ["--resume"] if (out / "plan.json").exists() else []
    begin = [program("hmarl-gap"), str(run), "--episodes", str(shown.episodes)]
    return [*begin, *faults, "--out", str(out), *resumed]


def measure(shown: Shown, variant: Variant, seed: int, runs: Path, kept: Path) -> None:
    """Train, measure and keep one team and seed; nothing where there is a record.

    Raises:
        CalledProcessError: one of the commands failed.
        IncompleteError: the run failed.
        KeyboardInterrupt: it was stopped.
    """
    record = record_path(shown, variant, seed, kept)
    if record.exists():
        return
    if train_unrecorded([planned_run(shown.comparison, variant, seed)], runs):
        raise KeyboardInterrupt
    run = runs / run_name(shown.comparison, variant, seed)
    out = runs / f"{run.name}.gap"
    lines = [words(shown, run, out)]
    if shown.exported and not (run / "bundle").exists():
        settings = [word for each in shown.exported for word in ("--set", each)]
        lines.insert(0, [program("hmarl-export"), str(run), *settings])
    with (runs / f"{run.name}.gap.log").open("a", encoding="utf-8") as log:
        for line in lines:
            print(shlex.join(line), flush=True)
            subprocess.run(line, check=True, stdout=log, stderr=subprocess.STDOUT)
    kept.mkdir(parents=True, exist_ok=True)
    write_gap(record, read_gap(out / FILE))


def section(shown: Shown, kept: Path) -> Iterator[str]:
    """The paragraphs of one team: its rungs over all seeds, for each of its variants."""
    comparison = shown.comparison
    settings = " ".join(comparison.environment_settings)
    exported = f", exported with `{' '.join(shown.exported)}`" if shown.exported else ""
    found = {
        variant.label: {
            seed: read_gap(path)
            for seed in seeds_of(variant)
            if (path := record_path(shown, variant, seed, kept)).exists()
        }
        for variant in comparison.variants
    }
    yield f"## {comparison.name}: {comparison.environment}{f' {settings}' if settings else ''}"
    measured = {label: gaps for label, gaps in found.items() if gaps}
    if not measured:
        yield "Not measured yet."
        return
    first = next(iter(next(iter(measured.values())).values()))
    yield (
        f"{comparison.steps:,} steps of training; {first.episodes} episodes a rung, {first.actions} actions, deadline "
        f"{first.deadline_s:g} s{exported}. {shown.remark}".strip()
    )
    for label, gaps in measured.items():
        yield f"**{label}**, {len(gaps)} seeds:"
        yield "\n".join(table([*gaps.values()]))
    if len(measured) == 2 and set.intersection(*map(set, measured.values())):
        yield "Both on the same episodes, trained with the same seeds:"
        yield "\n".join(beside(measured))


def table(gaps: Sequence[Gap]) -> Iterator[str]:
    """A row for each rung: returns and differences of each seed, and what is said of them."""
    heads = ("rung", "mean return", "of each seed", "difference", "of each seed [95 %]", "lost in", "first suspect")
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for rung in gaps[0].rungs:
        returns = [gap.rung(rung.name).mean for gap in gaps]
        differences = [each for gap in gaps if (each := difference(gap, rung.name)) is not None]
        yield (
            f"| {rung.title} | {np.mean(returns):.2f} | {', '.join(f'{value:.2f}' for value in returns)} | "
            f"{' | '.join(_compared(differences))} |"
        )


def difference(gap: Gap, name: str) -> Difference | None:
    """Of a rung to the one that it is compared with; None for the first."""
    return next((each for each in (*gap.differences, *gap.under_faults) if each.to == name), None)


def _compared(differences: Sequence[Difference]) -> tuple[str, str, str, str]:
    """The cells of a row that tell of differences."""
    if not differences:
        return "", "", "", ""
    spans = [f"{each.mean:+.2f} [{each.ci95[0]:+.2f}, {each.ci95[1]:+.2f}]" for each in differences]
    lost = [each for each in differences if each.verdict == "lost"]
    rules = dict.fromkeys(each.suspects[0].rule for each in lost)
    mean = np.mean([each.mean for each in differences])
    return f"{mean:+.2f}", "; ".join(spans), f"{len(lost)} of {len(differences)}", ", ".join(rules)


def beside(measured: dict[str, dict[int, Gap]]) -> Iterator[str]:
    """Two variants side by side: what each earns on every rung, and what the second earns more, seed by seed.

    Args:
        measured: for each variant its records by the seed of their training; those of seeds that both have are shown.
    """
    (one, firsts), (other, seconds) = measured.items()
    both = sorted(firsts.keys() & seconds.keys())
    first, second = ([records[seed] for seed in both] for records in (firsts, seconds))
    yield f"| rung | {one} | {other} | difference | of each seed [95 %] |"
    yield "|---|---|---|---|---|"
    for rung in first[0].rungs:
        pairs = [
            np.array(later.rung(rung.name).returns) - np.array(earlier.rung(rung.name).returns)
            for earlier, later in zip(first, second, strict=True)
        ]
        spans = [
            f"{pair.mean():+.2f} [{low:+.2f}, {high:+.2f}]" for pair in pairs for low, high in [mean_interval(pair)]
        ]
        means = [f"{np.mean([gap.rung(rung.name).mean for gap in gaps]):.2f}" for gaps in (first, second)]
        difference = f"{np.mean([pair.mean() for pair in pairs]):+.2f}"
        yield f"| {rung.title} | {' | '.join(means)} | {difference} | {'; '.join(spans)} |"


INTRODUCTION = (
    "# The price of deployment",
    "Made by `python scripts/gap.py` from the records in [gaps](gaps), which hold every episode's return; the "
    "measurement itself is `hmarl-gap RUN` ([docs/gap.md](../gap.md)). The same episodes are played on every rung: by "
    "the team as its training knows it (where it knows more than one agent does), by its local policies in torch, by "
    "their ONNX graphs in one process, served over gRPC by one process per agent, and served under faults. "
    "Differences are paired: each rung is compared with the one before it, or, under faults, with `served`. Intervals "
    "are 95 % bootstraps over episodes, seed by seed; *lost in* counts the seeds whose interval lies below 0. Seeds "
    "are training seeds, from 100 on. Three seeds and a few dozen episodes can tell large losses from none, and no "
    "more.",
)


def page(kept: Path) -> str:
    """The whole page, from the records."""
    paragraphs = [*INTRODUCTION, *(paragraph for shown in TEAMS for paragraph in section(shown, kept))]
    return "\n\n".join(paragraphs) + "\n"


@command_line.command(
    "scripts/gap.py",
    option("--out", "where gap.md goes", PATH, default=Path("docs/results")),
    option("--records", "where records are kept", PATH, default=Path("docs/results/gaps")),
    option("--runs", "where the run directories go", PATH, default=Path("runs/gap")),
    option("--only", "only these teams", many=True),
    option("--pages", "also write an HTML page for each record there", PATH),
    flag("--drawn-only", "train and measure nothing"),
)
def main(out: Path, records: Path, runs: Path, only: tuple[str, ...], pages: Path | None, drawn_only: bool) -> None:
    """Measure what has no record, one after the other, and write the page."""
    wanted = {comparison.name for comparison in selected([shown.comparison for shown in TEAMS], only)}
    for shown in () if drawn_only else TEAMS:
        if shown.comparison.name not in wanted:
            continue
        for variant in shown.comparison.variants:
            for seed in seeds_of(variant):
                measure(shown, variant, seed, runs, records)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "gap.md", page(records))
    for path in sorted(records.glob("*.json")) if pages is not None else ():
        assert pages is not None
        pages.mkdir(parents=True, exist_ok=True)
        write_gap_page(pages / f"{path.stem}.html", read_gap(path))
    print(f"wrote {out / 'gap.md'}")


if __name__ == "__main__":
    sys.exit(command_line.run(main))
