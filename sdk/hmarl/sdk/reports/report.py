"""The HTML report of an evaluation: one file that holds its figures, plots and video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hmarl.sdk.evaluation.closed_loop import Evaluation
from hmarl.sdk.evaluation.statistics import IntervalEstimate, probability_of_improvement
from hmarl.sdk.files import write_text
from hmarl.sdk.reports.annotation_plots import annotation_plots
from hmarl.sdk.reports.pages import number, page_template, surroundings
from hmarl.sdk.reports.plotting import ACCENT, INK, MUTED, data_url, new_axes, png_url
from hmarl.sdk.reports.video import Recording

_VIDEO_TYPES = {".gif": "image/gif", ".mp4": "video/mp4"}


@dataclass(frozen=True)
class ReportContent:
    """What a report shows.

    Attributes:
        evaluation: the team's.
        command: the command line that repeats it.
        settings: name → value, as they were in force.
        baseline: the same episodes played by random actions.
        recording: one of the episodes, for the plot of its reward.
        video: that episode's GIF or MP4, which is embedded.
        remarks: sentences that stand below the figures.
    """

    evaluation: Evaluation
    command: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    baseline: Evaluation | None = None
    recording: Recording | None = None
    video: Path | None = None
    remarks: Sequence[str] = ()


def write_report(path: Path, content: ReportContent) -> None:
    """Write the report as one self-contained HTML file, whole or not at all.

    Raises:
        MissingExtraError: a package of the ``eval`` extra is not installed.
    """
    page = page_template("report.html.j2").render(
        evaluation=content.evaluation,
        rows=_table(content),
        remarks=content.remarks,
        tiles=_tiles(content),
        plots=_plots(content),
        video=_embedded(content.video),
        recording=content.recording,
        told_plots=_told_plots(content.recording),
        recording_plot=None if content.recording is None else png_url(_plot_recording(content.recording)),
        command=content.command,
        settings=content.settings,
        **surroundings("hmarl", "numpy", "onnxruntime", "grpcio"),
    )
    write_text(path, page)


def _improvement(content: ReportContent) -> IntervalEstimate | None:
    if content.baseline is None:
        return None
    return probability_of_improvement(content.evaluation.returns, content.baseline.returns, resamples=500)


def _tiles(content: ReportContent) -> list[dict[str, str]]:
    """The headline figures."""
    summary = content.evaluation.summary()
    low, high = summary["return_ci95"]
    tiles = [
        {
            "label": "Return (IQM)",
            "value": number(summary["return_iqm"]),
            "note": f"95 % CI {number(low)} to {number(high)}",
        },
        {
            "label": "Return (mean)",
            "value": number(summary["return_mean"]),
            "note": f"median {number(summary['return_median'])}",
        },
    ]
    if summary["success_rate"] is not None:
        rate = number(100 * summary["success_rate"], 0)
        tiles.append({"label": "Success", "value": f"{rate} %", "note": f"of {summary['episodes']} episodes"})
    improvement = _improvement(content)
    if improvement is not None:
        span = f"95 % CI {number(100 * improvement.low, 0)} to {number(100 * improvement.high, 0)} %"
        tiles.append(
            {"label": "Beats random actions", "value": f"{number(100 * improvement.value, 0)} %", "note": span}
        )
    if summary["latency_p50_us"] is not None:
        note = f"p99 {number(summary['latency_p99_us'], 0)} µs · {content.evaluation.latency_of}"
        tiles.append({"label": "Latency (median)", "value": f"{number(summary['latency_p50_us'], 0)} µs", "note": note})
    return tiles


def _table(content: ReportContent) -> list[tuple[str, dict[str, Any]]]:
    """Rows of the comparison: name and summary."""
    evaluations = [content.evaluation] + ([content.baseline] if content.baseline is not None else [])
    return [(evaluation.team, evaluation.summary()) for evaluation in evaluations]


def _plots(content: ReportContent) -> list[dict[str, str]]:
    plots = [
        ("Distribution of returns", "Dashed: interquartile mean.", _plot_returns(content)),
        (
            "Return of every episode",
            "In the order of their seeds; the band is the IQM's 95 % interval.",
            _plot_episodes(content),
        ),
        ("Latency", f"Time of {content.evaluation.latency_of}.", _plot_latencies(content.evaluation)),
    ]
    return [
        {"title": title, "note": note, "png": png_url(figure)} for title, note, figure in plots if figure is not None
    ]


def _plot_returns(content: ReportContent) -> Any:
    figure, axes = new_axes("return of an episode", "episodes")
    axes.locator_params(axis="y", integer=True)
    shown = [(content.evaluation, ACCENT)] + ([(content.baseline, MUTED)] if content.baseline is not None else [])
    edges = np.histogram_bin_edges(np.concatenate([evaluation.returns for evaluation, _ in shown]), 24)
    for evaluation, colour in shown:
        axes.hist(evaluation.returns, edges, color=colour, alpha=0.75, label=evaluation.team, edgecolor="white")
        axes.axvline(evaluation.summary()["return_iqm"], color=colour, linestyle="--", linewidth=1.6)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _plot_episodes(content: ReportContent) -> Any:
    figure, axes = new_axes("episode", "return")
    axes.locator_params(axis="x", integer=True)
    low, high = content.evaluation.summary()["return_ci95"]
    if content.baseline is not None:
        axes.plot(content.baseline.returns, ".", color=MUTED, markersize=5, label=content.baseline.team)
    axes.plot(content.evaluation.returns, ".", color=ACCENT, markersize=6, label=content.evaluation.team)
    axes.axhspan(low, high, color=ACCENT, alpha=0.18, linewidth=0)
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return figure


def _plot_latencies(evaluation: Evaluation) -> Any | None:
    if evaluation.latencies_s.size == 0:
        return None
    figure, axes = new_axes("microseconds (logarithmic)", "calls")
    microseconds = np.maximum(evaluation.latencies_s * 1e6, 1e-3)
    low, high = np.log10(microseconds.min()), np.log10(microseconds.max())
    axes.hist(
        microseconds, np.logspace(low, high + 1e-6, 50), color=ACCENT, alpha=0.75, edgecolor="white", linewidth=0.4
    )
    axes.set_xscale("log")
    for quantile, style in ((0.5, "-"), (0.99, "--")):
        value = float(np.quantile(microseconds, quantile))
        axes.axvline(value, color=INK, linestyle=style, linewidth=1.2, label=f"p{quantile * 100:.0f}  {value:,.0f} µs")
    axes.legend(frameon=False, fontsize=9)
    return figure


def _told_plots(recording: Recording | None) -> list[dict[str, Any]]:
    """The figures of what the team told of itself."""
    if recording is None or not recording.annotations:
        return []
    plots = annotation_plots(recording.annotations)
    return [{"title": plot.title, "note": plot.note, "png": png_url(plot.figure), "wide": plot.wide} for plot in plots]


def _plot_recording(recording: Recording) -> Any:
    figure, axes = new_axes("step", "cumulative reward")
    axes.locator_params(axis="x", integer=True)
    total = np.concatenate([[0.0], np.cumsum(recording.rewards)])
    axes.plot(total, color=ACCENT, linewidth=2)
    axes.fill_between(np.arange(len(total)), total, color=ACCENT, alpha=0.12, linewidth=0)
    return figure


def _embedded(video: Path | None) -> dict[str, str] | None:
    if video is None:
        return None
    kind = _VIDEO_TYPES[video.suffix]
    return {"kind": kind, "source": data_url(kind, video.read_bytes())}
