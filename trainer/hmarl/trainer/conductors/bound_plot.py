"""HCPO's Theorem 1 as a picture: the lower bound beside what the steps brought."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from hmarl.trainer.records.canvas import Points, draw_points, label_axes, new_figure, png, points
from hmarl.trainer.records.metrics import MetricRows


@dataclass(frozen=True)
class ImprovementBoundPlot:
    """The bound, the surrogate and the realised improvement over environment steps, symlog."""

    file: str = "improvement_bound.png"

    def draw(self, rows: MetricRows, title: str) -> bytes | None:
        """None where no bound was recorded."""
        realised, surrogate, bound = realised_points(rows), points(rows, "bound_surrogate"), points(rows, "bound")
        if not bound:
            return None
        figure = new_figure(8, 5.4)
        axes = figure.subplots()
        draw_points(axes, realised, ".", ms=3, color="#777777", label="realised, J from the rollouts")
        draw_points(axes, surrogate, color="#0072b2", lw=1, label="surrogate, without the penalty")
        draw_points(axes, bound, color="#d55e00", lw=1.2, label="lower bound of Theorem 1")
        axes.set_yscale("symlog", linthresh=_linear_range(value for _, value in realised or surrogate))
        values = [value for _, value in realised + surrogate + bound]
        axes.set_ylim(20.0 * min(*values, 0.0), 3.0 * max(*values, 1e-6))
        axes.axhline(0.0, color="black", lw=0.6)
        label_axes(
            [axes],
            xlabel="environment steps",
            ylabel="improvement of J per update (symlog)",
            title=f"{title}: the bound is vacuous in practice",
        )
        axes.legend(frameon=False, fontsize=8, loc="center", bbox_to_anchor=(0.8, 0.32))
        figure.supxlabel(_why_vacuous(rows), fontsize=8, x=0.02, ha="left")
        return png(figure)


def realised_points(rows: MetricRows, of: str = "bound") -> Points:
    """(steps, improvement) of each step that is watched, as the metric ``of`` says: what it brought stands in the next
    update's metrics.
    """
    realised, before = [], None
    for row in rows:
        if before is not None and row.get("realised_improvement") is not None:
            realised.append((before, row["realised_improvement"]))
        if row.get(of) is not None:  # else rolled back: the policy stayed as it was
            before = row["steps"]
    return realised


def _why_vacuous(rows: MetricRows) -> str:
    """What the bound says about this run, in three lines."""
    bounded = [row for row in rows if row.get("bound") is not None]
    largest = max(row["bound_advantage_max"] for row in bounded)
    per_advantage = max(row["bound_constant"] / max(row["bound_advantage_max"], 1e-12) for row in bounded)
    penalty = float(median(row["bound_penalty"] for row in bounded))
    moved = float(median([abs(value) for _, value in realised_points(rows)] or [math.nan]))
    times = f", {penalty / moved:,.0f} times the typical realised change ({moved:.2g})" if moved > 0 else ""
    return (
        f"Vacuous: C = 4γ·max|Â|/(1−γ)² is {per_advantage:,.0f}·max|Â| at this γ, with max|Â| up to {largest:.3g}.\n"
        f"The median penalty C·(KL terms) is {penalty:,.0f}{times}.\n"
        "Such a bound rules nothing out; it only motivates the trust regions. Maxima over visited states approximate "
        "the theorem's."
    )


def _linear_range(values: Iterable[float]) -> float:
    """Where a symlog axis turns linear: a power of ten near the typical size of the values."""
    sizes = [abs(value) for value in values if value]
    return 10.0 ** math.floor(math.log10(float(median(sizes)))) if sizes else 1.0
