"""The page of a comparison: algorithms over tasks and runs, in one file that holds its figures and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hmarl.sdk.evaluation.comparing import AGGREGATES, Band, Comparison, compare
from hmarl.sdk.evaluation.marl_eval import Results, RunCurve
from hmarl.sdk.evaluation.statistics import IntervalEstimate, iqm, iqm_interval
from hmarl.sdk.files import write_text
from hmarl.sdk.reports.pages import number, page_template, surroundings
from hmarl.sdk.reports.plotting import INK, MUTED, new_axes, png_url

COLOURS = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#0891b2", "#65a30d", "#dc2626", "#78716c", "#0f172a")
_CURVE_POINTS = 200


@dataclass(frozen=True)
class ComparisonContent:
    """What the page shows.

    Attributes:
        name: of what is compared.
        results: curves of all runs.
        command: the command line that repeats it.
        definition: of what was run, as text.
        measures: by task, how it is measured, where that is not the return.
        ranges: by task, the values that count as 0 and 1.
        planned: runs that were planned, those that are done included.
        remarks: of single runs: which were cut off, which failed and why.
        sources: other files that are shown beside.
    """

    name: str
    results: Results
    command: str
    definition: str
    measures: Mapping[str, str] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    planned: int = 0
    remarks: Sequence[tuple[str, str]] = ()
    sources: Sequence[str] = ()


def write_comparison(path: Path, content: ComparisonContent) -> None:
    """Write the page as one self-contained HTML file, whole or not at all.

    Raises:
        MissingExtraError: a package of the ``eval`` extra is not installed.
    """
    template = page_template("comparison.html.j2")
    comparison = compare(content.results, content.ranges)
    algorithms = content.results.algorithms()
    colours = {name: COLOURS[at % len(COLOURS)] for at, name in enumerate(algorithms)}
    page = template.render(
        content=content,
        comparison=comparison,
        done=sum(len(runs) for task in content.results.curves.values() for runs in task.values()),
        algorithms=algorithms,
        aggregates=list(AGGREGATES),
        plots=[] if comparison is None else _plots(comparison, colours),
        improvement=[] if comparison is None else _improvement_rows(comparison),
        tasks=[_task(task, runs, content, colours) for task, runs in content.results.curves.items()],
        **surroundings("hmarl", "numpy", "torch", "rliable"),
    )
    write_text(path, page)


# --- all tasks together ----------------------------------------------------------------------------------------------


def _plots(comparison: Comparison, colours: Mapping[str, str]) -> list[dict[str, str]]:
    plots = [
        (
            "Sample efficiency",
            "IQM of the normalised scores over all tasks and runs while they are trained.",
            plot_bands("share of the budget", "IQM of scores", comparison.shares, comparison.curves, colours),
        ),
        (
            "Performance profile",
            "Share of all runs whose score is above the value below: higher is better.",
            plot_bands(
                "normalised score", "share of runs above", comparison.thresholds, comparison.profiles, colours, True
            ),
        ),
        *(
            (name[0].upper() + name[1:], note, _plot_intervals(comparison, name, colours))
            for name, note in (
                ("IQM", "Mean of the middle half of all scores: higher is better."),
                ("optimality gap", "By how much scores fall short of 1: lower is better."),
            )
        ),
    ]
    return [{"title": title, "note": note, "png": png_url(figure)} for title, note, figure in plots]


def plot_bands(
    x: str, y: str, points: np.ndarray, bands: Mapping[str, Band], colours: Mapping[str, str], steps: bool = False
) -> Any:
    """Curves with their intervals over ``points``, which may all be one.

    Args:
        x: label.
        y: label.
        points: rising.
        bands: by algorithm.
        colours: by algorithm.
        steps: whether values hold until the next point.
    """
    figure, axes = new_axes(x, y)
    for name, band in bands.items():
        if points[0] == points[-1]:  # no line can be seen
            axes.plot(points[:1], band.values[:1], "o", color=colours[name], label=name)
            axes.vlines(points[:1], band.low[:1], band.high[:1], color=colours[name], alpha=0.3, linewidth=4)
            continue
        style = {"drawstyle": "steps-post"} if steps else {}
        axes.plot(points, band.values, color=colours[name], linewidth=2, label=name, **style)
        step = "post" if steps else None
        axes.fill_between(points, band.low, band.high, color=colours[name], alpha=0.15, linewidth=0, step=step)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _plot_intervals(comparison: Comparison, aggregate: str, colours: Mapping[str, str]) -> Any:
    names = list(reversed(comparison.algorithms))
    figure, axes = new_axes("normalised score", "", (6.2, max(1.6, 0.42 * len(names) + 1.0)))
    for at, name in enumerate(names):
        estimate = comparison.aggregates[name][aggregate]
        span = estimate.high - estimate.low
        axes.barh(at, span, left=estimate.low, height=0.55, color=colours[name], alpha=0.6)
        axes.vlines(estimate.value, at - 0.32, at + 0.32, color=INK, linewidth=2)
    axes.use_sticky_edges = False  # else the lowest bar begins at the plot's edge
    axes.margins(x=0.08)
    axes.set_yticks(range(len(names)), names)
    return figure


def _improvement_rows(comparison: Comparison) -> list[tuple[str, list[IntervalEstimate | None]]]:
    return [
        (first, [comparison.improvement.get((first, second)) for second in comparison.algorithms])
        for first in comparison.algorithms
    ]


# --- each task -------------------------------------------------------------------------------------------------------


def _task(
    task: str, runs: Mapping[str, Sequence[RunCurve]], content: ComparisonContent, colours: Mapping[str, str]
) -> dict[str, Any]:
    measure = content.measures.get(task, "return").replace("_", " ")
    found = {name: curves for name, curves in runs.items() if curves}
    return {
        "name": task,
        "measure": measure,
        "rows": [(name, task_figures(curves)) for name, curves in found.items()],
        "png": png_url(plot_task(measure, found, colours)) if found else None,
    }


def task_figures(curves: Sequence[RunCurve]) -> dict[str, str]:
    """A row of a task's table: what an algorithm's runs came to, and the fewest steps that are known of one."""
    known = [int(curve.steps[-1]) for curve in curves if curve.steps[-1]]
    final = np.array([curve.values[-1] for curve in curves])
    low, high = iqm_interval(final)
    return {
        "runs": str(len(curves)),
        "IQM": f"{number(float(iqm(final)))} [{number(low)}, {number(high)}]",
        "each": ", ".join(number(float(value)) for value in final),
        "steps": f"{min(known):,}" if known else "unknown",
    }


def plot_task(measure: str, runs: Mapping[str, Sequence[RunCurve]], colours: Mapping[str, str]) -> Any:
    """A task's curves: runs thin, their IQM thick; what was evaluated once is a dot.

    Args:
        measure: what the values are.
        runs: by algorithm, at least one each. Those of unknown steps stand where the last of the others ends.
        colours: by algorithm.
    """
    figure, axes = new_axes("environment steps", measure)
    end = max(curve.steps[-1] for curves in runs.values() for curve in curves)
    for name, curves in runs.items():
        placed = [curve if curve.steps[-1] else RunCurve(np.array([end]), curve.values) for curve in curves]
        for curve in placed:
            marker = "o" if len(curve.steps) == 1 else ""
            style = {"linewidth": 0.8, "alpha": 0.35, "marker": marker, "markersize": 4}
            axes.plot(curve.steps, curve.values, color=colours[name], **style)
        points, values = _iqm_curve(placed)
        axes.plot(points, values, "o" if len(points) == 1 else "-", color=colours[name], linewidth=2.2, label=name)
    if end:
        axes.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4))
        axes.xaxis.get_offset_text().set_color(MUTED)
    else:
        axes.set_xticks([0], ["unknown"])
    axes.legend(frameon=False, fontsize=9)
    return figure


def _iqm_curve(curves: Sequence[RunCurve]) -> tuple[np.ndarray, np.ndarray]:
    """Points and IQM of runs over the steps that all have been evaluated over; at their end alone, of what each came
    to, where there are no such steps.
    """
    first, last = max(curve.steps[0] for curve in curves), min(curve.steps[-1] for curve in curves)
    if first < last:
        points = np.linspace(first, last, _CURVE_POINTS)
        return points, iqm([np.interp(points, curve.steps, curve.values) for curve in curves], axis=0)
    return np.array([max(curve.steps[-1] for curve in curves)]), iqm([[curve.values[-1]] for curve in curves], axis=0)
