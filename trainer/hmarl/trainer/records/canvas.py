"""What all pictures of a run have in common: points over environment steps, a figure, PNG."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

from hmarl.trainer.records.metrics import MetricRows

Points = list[tuple[float, float]]


def points(rows: MetricRows, metric: str) -> Points:
    """(steps, value) wherever a metric was recorded."""
    return [(row["steps"], row[metric]) for row in rows if row.get(metric) is not None]


def draw_points(axes: Any, drawn: Points, style: str = "-", **options: Any) -> None:
    """Put points into axes; none draw nothing.

    Args:
        axes: matplotlib's.
        drawn: (steps, value).
        style: matplotlib's format, e.g. ``o-``.
        options: of the line.
    """
    if drawn:
        axes.plot(*zip(*drawn, strict=True), style, **options)


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches, which belongs to no window."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - takes long to import, and a broken one must not stop training

    return Figure(figsize=(width, height), layout="constrained")


def label_axes(axes: Iterable[Any], **labels: str) -> None:
    """Label axes, and lay a grid behind what they show."""
    for each in axes:
        each.set(**labels)
        each.grid(alpha=0.3)


def png(figure: Any) -> bytes:
    """A figure as PNG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90, metadata={"Software": None})
    return buffer.getvalue()
