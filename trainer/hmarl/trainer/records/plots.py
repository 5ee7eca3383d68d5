"""Plots of a run, from its metrics: PNG files in RUN/plots/ and in a bundle."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt

from hmarl.runtime.bundle import replace_file
from hmarl.trainer.records.recorder import Rows, read_metrics

Points = list[tuple[float, float]]

_COLOURS = {
    "local": "#0072b2", "central": "#d55e00", "random": "#999999", "none": "#cc79a7", "guider": "#009e73",
    "training": "#56b4e9",
}  # fmt: skip
_PLAYED_BY = {
    "local": "deployed policies", "central": "central conductor", "random": "random conductor", "none": "no conductor",
    "guider": "guider",
}  # fmt: skip


def write_run_plots(run: Path, title: str) -> list[Path]:
    """Draw a run's metrics into RUN/plots/; returns what was written."""
    written = []
    for name, content in run_plots(read_metrics(run), title).items():
        path = run / "plots" / name
        replace_file(path, content)
        written.append(path)
    return written


def run_plots(rows: Rows, title: str) -> dict[str, bytes]:
    """All plots for which there are metrics, PNG by file name."""
    plots = {}
    if _points(rows, "return"):
        plots["return.png"] = return_plot(rows, title)
        plots["diagnostics.png"] = diagnostics_plot(rows)
    if _points(rows, "imitation_kl"):
        plots["imitation.png"] = imitation_plot(rows, title)
    if _points(rows, "bound"):
        plots["improvement_bound.png"] = improvement_bound_plot(rows, title)
    return plots


def return_plot(rows: Rows, title: str) -> bytes:
    """Training and evaluation returns over environment steps, PNG."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    training = _points(rows, "return")
    axes.plot(*zip(*training, strict=True), color=_COLOURS["training"], lw=1, label="training (sampled actions)")
    for name, label in _PLAYED_BY.items():
        points = _points(rows, f"evaluation/{name}/return_mean")
        if points:
            axes.plot(*zip(*points, strict=True), "o-", ms=3, color=_COLOURS[name], label=f"evaluation, {label}")
    axes.set(xlabel="environment steps", ylabel="return of the team", title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def diagnostics_plot(rows: Rows) -> bytes:
    """Entropies and divergences over environment steps, PNG."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axes, keys, label in (
        (left, ("agent_entropy", "learner_entropy", "instruction_entropy"), "entropy (nats)"),
        (right, ("agent_kl", "conductor_kl"), "mean KL(old ‖ new) (nats)"),
    ):
        for key in keys:
            points = _points(rows, key)
            if points:
                axes.plot(*zip(*points, strict=True), lw=1, label=key.replace("_", " "))
        axes.set(xlabel="environment steps", ylabel=label)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def imitation_plot(rows: Rows, title: str) -> bytes:
    """How far guider and local policies part: divergence, actions out of bounds, δ and the gap in return, PNG."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 5.4), layout="constrained", sharex=True)
    gap = [(row["steps"], row["evaluation/imitation_gap"]) for row in rows if "evaluation/imitation_gap" in row]
    for axis, points, label, style in (
        (axes[0, 0], _points(rows, "imitation_kl"), "KL(μ ‖ π) an agent (nats)", "-"),
        (axes[0, 1], _points(rows, "outside_share"), "share of actions outside (1/δ, δ)", "-"),
        (axes[1, 0], gap, "return, guider − local policies", "o-"),
        (axes[1, 1], _points(rows, "delta"), "δ", "-"),
    ):
        if points:
            axis.plot(*zip(*points, strict=True), style, ms=3, lw=1, color=_COLOURS["guider"])
        axis.set(ylabel=label)
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set(xlabel="environment steps")
        axis.ticklabel_format(axis="x", style="sci", scilimits=(0, 3))
    axes[1, 0].axhline(0.0, color="black", lw=0.6)
    figure.suptitle(f"{title}: how far the guider and its local policies part", fontsize=10)
    return _png(figure)


def improvement_bound_plot(rows: Rows, title: str) -> bytes:
    """HCPO's Theorem 1 against what the steps brought, over environment steps, symlog, PNG."""
    figure, axes = plt.subplots(figsize=(8, 5.4), layout="constrained")
    realised, surrogate, bound = realised_points(rows), _points(rows, "bound_surrogate"), _points(rows, "bound")
    if realised:
        axes.plot(*zip(*realised, strict=True), ".", ms=3, color="#777777", label="realised, J from the rollouts")
    axes.plot(*zip(*surrogate, strict=True), color="#0072b2", lw=1, label="surrogate, without the penalty")
    axes.plot(*zip(*bound, strict=True), color="#d55e00", lw=1.2, label="lower bound of Theorem 1")
    axes.set_yscale("symlog", linthresh=_linear_range(value for _, value in realised or surrogate))
    values = [value for _, value in realised + surrogate + bound]
    axes.set_ylim(20.0 * min(*values, 0.0), 3.0 * max(*values, 1e-6))
    axes.axhline(0.0, color="black", lw=0.6)
    axes.set(
        xlabel="environment steps",
        ylabel="improvement of J per update (symlog)",
        title=f"{title}: the bound is vacuous in practice",
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="center", bbox_to_anchor=(0.8, 0.32))
    figure.supxlabel(_why_vacuous(rows), fontsize=8, x=0.02, ha="left")
    return _png(figure)


def realised_points(rows: Rows) -> Points:
    """(steps, improvement) of each step that Theorem 1 bounds: what it brought stands in the next update's metrics."""
    points, before = [], None
    for row in rows:
        if before is not None and row.get("realised_improvement") is not None:
            points.append((before, row["realised_improvement"]))
        if row.get("bound") is not None:  # else rolled back: the policy stayed as it was
            before = row["steps"]
    return points


def _why_vacuous(rows: Rows) -> str:
    """What the bound says about this run, in three lines."""
    last = [row for row in rows if row.get("bound") is not None]
    largest = max(row["bound_advantage_max"] for row in last)
    per_advantage = max(row["bound_constant"] / max(row["bound_advantage_max"], 1e-12) for row in last)
    penalty = float(np.median([row["bound_penalty"] for row in last]))
    moved = float(np.median([abs(value) for _, value in realised_points(rows)] or [math.nan]))
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
    return float(10.0 ** math.floor(math.log10(float(np.median(sizes))))) if sizes else 1.0


def _points(rows: Rows, key: str) -> Points:
    """(steps, value) wherever a metric was recorded."""
    return [(row["steps"], row[key]) for row in rows if row.get(key) is not None]


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()
