"""What the figures of reports have in common."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

INK, GRID, ACCENT, MUTED = "#1f2937", "#e5e7eb", "#2563eb", "#9ca3af"
_SIZE_INCHES = (6.2, 3.4)


def new_axes(x: str, y: str, size_inches: tuple[float, float] = _SIZE_INCHES) -> tuple[Any, Any]:
    """A figure with one plain set of axes."""
    figure, axes = new_axes_below_one_another(x, [y], size_inches)
    return figure, axes[0]


def new_axes_below_one_another(
    x: str, y: Sequence[str], size_inches: tuple[float, float] = _SIZE_INCHES
) -> tuple[Any, list[Any]]:
    """A figure with plain sets of axes that share their x; no global state of matplotlib is touched.

    Args:
        x: their label.
        y: a label for each of them.
        size_inches: of the figure.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - part of the eval extra

    figure = Figure(figsize=size_inches, layout="constrained")
    grid = figure.subplots(len(y), sharex=True, squeeze=False)[:, 0].tolist()
    for axes, label in zip(grid, y, strict=True):
        axes.set_ylabel(label, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(MUTED)
        axes.tick_params(colors=INK, labelsize=9)
        axes.grid(True, color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
    grid[-1].set_xlabel(x, color=INK)
    return figure, grid


def png_url(figure: Any) -> str:
    """A figure as the source of an image in a page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return data_url("image/png", buffer.getvalue())


def data_url(kind: str, content: bytes) -> str:
    """A file as the source of an image or a video in a page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
