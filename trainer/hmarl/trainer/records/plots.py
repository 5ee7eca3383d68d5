"""Plots of a run, from its metrics: PNG files in RUN/plots/ and in a bundle. Which there are, its algorithm says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hmarl.runtime.bundle import replace_file
from hmarl.trainer.records.canvas import draw_points, label_axes, new_figure, png, points
from hmarl.trainer.records.metrics import MetricRows, evaluation_metric


class Plot(Protocol):
    """One picture of a run."""

    @property
    def file(self) -> str:
        """Its file's name."""
        ...

    def draw(self, rows: MetricRows, title: str) -> bytes | None:
        """PNG; None where nothing was recorded that it shows.

        Args:
            rows: metrics by update, see ``read_metrics``.
            title: what was trained, and where.
        """
        ...


def draw_plots(rows: MetricRows, title: str, plots: Iterable[Plot]) -> dict[str, bytes]:
    """Those of the plots for which there are metrics, PNG by file name."""
    drawn = {plot.file: plot.draw(rows, title) for plot in plots}
    return {file: content for file, content in drawn.items() if content is not None}


def write_plots(run: Path, drawn: dict[str, bytes]) -> None:
    """Put plots into RUN/plots/."""
    for file, content in drawn.items():
        replace_file(run / "plots" / file, content)


@dataclass(frozen=True)
class EvaluationCurve:
    """How a plot shows the evaluations of one team.

    Attributes:
        team: its name in metrics.jsonl.
        label: who acted, for the legend.
        colour: matplotlib's.
    """

    team: str
    label: str
    colour: str


@dataclass(frozen=True)
class ReturnPlot:
    """Training and evaluation returns over environment steps.

    Attributes:
        evaluations: in the legend's order.
        file: its name.
    """

    evaluations: tuple[EvaluationCurve, ...]
    file: str = "return.png"

    def draw(self, rows: MetricRows, title: str) -> bytes | None:
        """None where neither an episode of training nor one of an evaluation has ended."""
        training = points(rows, "return")
        evaluated = {each: points(rows, evaluation_metric(each.team, "return_mean")) for each in self.evaluations}
        if not training and not any(evaluated.values()):
            return None
        figure = new_figure(7, 4)
        axes = figure.subplots()
        draw_points(axes, training, color="#56b4e9", lw=1, label="training (sampled actions)")
        for each, drawn in evaluated.items():
            draw_points(axes, drawn, "o-", ms=3, color=each.colour, label=f"evaluation, {each.label}")
        label_axes([axes], xlabel="environment steps", ylabel="return of the team", title=title)
        axes.legend(frameon=False, fontsize=8)
        return png(figure)


@dataclass(frozen=True)
class Panel:
    """Metrics of one unit, in one pair of axes.

    Attributes:
        label: quantity and unit.
        metrics: those that were recorded are drawn, under their names.
    """

    label: str
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class PanelPlot:
    """Metrics over environment steps, panels side by side."""

    file: str
    panels: tuple[Panel, ...]

    def draw(self, rows: MetricRows, title: str) -> bytes | None:
        """None where none of the metrics was recorded."""
        drawn = [{metric: points(rows, metric) for metric in panel.metrics} for panel in self.panels]
        if not any(any(curves.values()) for curves in drawn):
            return None
        figure = new_figure(4.5 * len(self.panels), 3.4)
        for axes, panel, curves in zip(figure.subplots(1, len(self.panels)), self.panels, drawn, strict=True):
            for metric, curve in curves.items():
                draw_points(axes, curve, lw=1, label=metric.replace("_", " "))
            label_axes([axes], xlabel="environment steps", ylabel=panel.label)
            if axes.lines:
                axes.legend(frameon=False, fontsize=8)
        return png(figure)


def diagnostics(entropies: tuple[str, ...], divergences: tuple[str, ...]) -> PanelPlot:
    """How far policies still vary, and how far they moved.

    Args:
        entropies: metrics in nats.
        divergences: metrics in nats, mean KL(old ‖ new).
    """
    panels = (Panel("entropy (nats)", entropies), Panel("mean KL(old ‖ new) (nats)", divergences))
    return PanelPlot("diagnostics.png", panels)
