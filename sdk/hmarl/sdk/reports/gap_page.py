"""The page of a measurement of what deployment costs: one file with its figures and plots, for light and dark screens.

Plots are drawn by matplotlib as SVG, whose colours are then replaced by those of the page's style.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hmarl.sdk.errors import MissingExtraError
from hmarl.sdk.files import write_text
from hmarl.sdk.gap.card import caution, served_of
from hmarl.sdk.gap.document import Curve, Difference, Gap
from hmarl.sdk.reports.plotting import ACCENT, GRID, INK, MUTED, new_axes

_LOST, _GAINED = "#c2410c", "#15803d"
# The colours of the plots, and what the page calls them.
_VARIABLES = {
    ACCENT: "accent", INK: "ink", GRID: "line", MUTED: "soft", _LOST: "lost", _GAINED: "gained",
}  # fmt: skip
_WIDTH_INCHES = 6.2
_SHOWN_NAMES = {"noise": "noise (in the observation's units)", "delay": "delay (steps)"}


def write_gap_page(path: Path, gap: Gap) -> None:
    """Write the page as one self-contained HTML file, whole or not at all.

    Raises:
        MissingExtraError: a package of the ``eval`` extra is not installed.
    """
    try:
        import jinja2  # noqa: PLC0415 - part of the eval extra
        import matplotlib as mpl  # noqa: F401, PLC0415 - fails here rather than half-way
        from markupsafe import Markup  # noqa: PLC0415 - comes with jinja2
    except ImportError as error:
        raise MissingExtraError(error.name or "jinja2", "eval", "the page") from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hmarl.sdk.reports", "templates"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["number"] = _number
    environment.filters["signed"] = lambda value: _number(value, sign="+")
    page = environment.get_template("gap.html.j2").render(
        gap=gap,
        ladder=[each for each in gap.rungs if not each.faults],
        faulted=[each for each in gap.rungs if each.faults],
        by_rung={each.to: each for each in (*gap.differences, *gap.under_faults)},
        served={each.name: served_of(gap, each.name) for each in gap.rungs},
        lost=[each for each in (*gap.differences, *gap.under_faults) if each.verdict == "lost"],
        caution=caution(gap),
        ladder_plot=Markup(_svg(_plot_ladder(gap))),
        curves=[(each, Markup(_svg(_plot_curve(gap, each)))) for each in gap.curves],
    )
    write_text(path, page)


def _number(value: float | None, digits: int = 2, sign: str = "") -> str:
    """A figure for people: fixed digits, a proper minus sign, a dash for what is not there."""
    if value is None:
        return "–"
    return f"{value:{sign},.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _plot_ladder(gap: Gap) -> Any:
    """The rungs below one another: mean returns with their intervals, and where a step loses or gains."""
    rungs = [each for each in gap.rungs if not each.faults]
    figure, axes = new_axes("mean return", "", (_WIDTH_INCHES, 0.9 + 0.45 * len(rungs)))
    by_rung = {each.to: each for each in gap.differences}
    for place, rung in enumerate(rungs):
        low, high = rung.mean_ci95
        axes.plot([low, high], [place, place], color=ACCENT, linewidth=2.2, solid_capstyle="round")
        axes.plot([rung.mean], [place], "o", color=ACCENT, markersize=6)
        if place and by_rung[rung.name].verdict != "none":
            colour = _colour(by_rung[rung.name])
            axes.plot([rungs[place - 1].mean, rung.mean], [place - 1, place], color=colour, linewidth=1.4, zorder=0)
    axes.set_yticks(range(len(rungs)), [rung.title for rung in rungs])
    axes.set_ylim(len(rungs) - 0.5, -0.5)
    return figure


def _plot_curve(gap: Gap, curve: Curve) -> Any:
    """Mean return over the strength of one fault, with intervals; the dashed line is without any."""
    figure, axes = new_axes(_SHOWN_NAMES.get(curve.fault, curve.fault.replace("_", " ")), "mean return", (4.2, 2.8))
    rungs = [gap.rung(name) for name in curve.rungs]
    axes.fill_between(
        curve.values,
        [rung.mean_ci95[0] for rung in rungs],
        [rung.mean_ci95[1] for rung in rungs],
        color=ACCENT,
        alpha=0.2,
        linewidth=0,
    )
    axes.plot(curve.values, [rung.mean for rung in rungs], "-", color=ACCENT, linewidth=1.8)
    by_rung = {each.to: each for each in gap.under_faults}
    for value, rung in zip(curve.values, rungs, strict=True):
        axes.plot([value], [rung.mean], "o", color=_colour(by_rung.get(rung.name)), markersize=6)
    axes.axhline(rungs[0].mean, color=MUTED, linestyle="--", linewidth=1.0)
    axes.set_xticks(curve.values)
    return figure


def _colour(difference: Difference | None) -> str:
    """Of what a step has come to."""
    verdict = "none" if difference is None else difference.verdict
    return {"lost": _LOST, "gained": _GAINED}.get(verdict, ACCENT)


def _svg(figure: Any) -> str:
    """A figure as part of a page, in the page's own colours and letters."""
    import matplotlib as mpl  # noqa: PLC0415 - part of the eval extra

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "hmarl"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    return _in_page_colours(text, list(_VARIABLES))


def _in_page_colours(svg: str, colours: Sequence[str]) -> str:
    for colour in colours:
        svg = re.sub(re.escape(colour), f"var(--{_VARIABLES[colour]})", svg, flags=re.IGNORECASE)
    return svg
