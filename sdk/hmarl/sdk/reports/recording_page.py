"""The HTML page of a recording: one file that holds its tables and plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.recording.v1 import recording_pb2 as pb
from hmarl.runtime.recording.replay import ReplayReport
from hmarl.sdk.drawing.frames import as_frame
from hmarl.sdk.errors import MissingExtraError
from hmarl.sdk.files import write_text
from hmarl.sdk.reports.plotting import ACCENT, INK, MUTED, new_axes, png_url
from hmarl.sdk.reports.recorded_episodes import EpisodeSummary, ShownEpisode

WRONG = "#dc2626"
_COLOURS = (ACCENT, "#059669", "#d97706", "#7c3aed", "#db2777", "#0891b2", "#65a30d", "#475569")
_MOST_ROWS, _MOST_EPISODES, _MOST_PICTURES = 200, 200, 8
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class PageContent:
    """What the page shows.

    Attributes:
        recording: where it is.
        episodes: all of them in short.
        shown: one of them, as each agent and client saw it.
        report: of running it again; None where that was not asked for.
        command: the command line that makes the page again.
        about: of the processes that recorded, name → value.
    """

    recording: Path
    episodes: Sequence[EpisodeSummary]
    shown: Sequence[ShownEpisode]
    report: ReplayReport | None
    command: str
    about: dict[str, str]


def write_recording_page(path: Path, content: PageContent) -> None:
    """Write the page as one self-contained HTML file, whole or not at all.

    Raises:
        MissingExtraError: a package of the ``eval`` extra is not installed.
    """
    try:
        import jinja2  # noqa: PLC0415 - part of the eval extra
        import matplotlib as mpl  # noqa: F401, PLC0415 - fails here rather than half-way
    except ImportError as error:
        raise MissingExtraError(error.name or "jinja2", "eval", "the page of a recording") from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hmarl.sdk.reports", "templates"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("recording.html.j2").render(
        recording=content.recording,
        tiles=_tiles(content),
        sections=[_section(each) for each in content.shown],
        seed=content.shown[0].summary.said.start.seed if content.shown else None,
        differences=[] if content.report is None else content.report.differences,
        rows=[_summary_row(each) for each in content.episodes[:_MOST_EPISODES]],
        more=max(0, len(content.episodes) - _MOST_EPISODES),
        command=content.command,
        about=content.about,
    )
    write_text(path, page)


def _tiles(content: PageContent) -> list[dict[str, str]]:
    episodes, report = content.episodes, content.report
    acts = sum(len(each.latencies_us) for each in episodes)
    fallbacks, refused = sum(each.fallbacks for each in episodes), sum(each.refused for each in episodes)
    missing = sum(each.missing for each in episodes)
    verdict = {"label": "Run again", "value": "–", "note": "give --bundle to run it again"}
    if report is not None:
        verdict["value"] = "the same" if report.same else "differs"
        verdict["note"] = f"{report.differing_bytes:,} of {report.compared_bytes:,} bytes differ"
    tiles = [
        verdict,
        {
            "label": "Acts",
            "value": f"{acts:,}",
            "note": f"in {len(episodes):,} episodes · {missing:,} not recorded",
        },
        {
            "label": "Fallbacks",
            "value": f"{fallbacks:,}",
            "note": f"acts of clients without a fresh action · {refused:,} refused",
        },
    ]
    for side, what in (("agent", "of policies alone"), ("client", "of clients")):
        latencies = np.concatenate([np.zeros(0), *(each.latencies_us for each in episodes if each.side == side)])
        if len(latencies):
            p50, p99 = np.quantile(latencies, [0.5, 0.99])
            tile = {"label": "Latency (median)", "value": f"{p50:,.0f} µs", "note": f"{what} · p99 {p99:,.0f} µs"}
            tiles.append(tile)
    return tiles


def _summary_row(each: EpisodeSummary) -> dict[str, Any]:
    said = each.said
    return {
        "who": each.who,
        "number": said.episode,
        "seed": said.start.seed,
        "bundle": said.bundle_sha256[:12],
        "steps": "–" if each.first_step is None else f"{each.first_step} to {each.last_step}",
        "acts": len(each.latencies_us),
        "fallbacks": each.fallbacks,
        "refused": each.refused,
        "missing": each.missing,
        "p50": f"{np.median(each.latencies_us):,.0f}" if each.latencies_us else "–",
        "reason": each.reason or "open",
    }


def _section(shown: ShownEpisode) -> dict[str, Any]:
    """One agent's, or client's, part of the episode."""
    start = shown.summary.said.start
    how = "actions drawn" if start.sample else "the likeliest actions"
    plots = [
        ("Actions", "What the agent did at each step.", _plot_actions(shown)),
        ("Latency", _latency_note(shown), _plot_latencies(shown)),
        ("Observations", "One row a number, one column an act.", _plot_table(shown.observations, shown, "number")),
        ("Pictures", "Of those that were observed, evenly spread.", _plot_pictures(shown)),
    ]
    plots += [
        (f"Output {name}", "As the policy computed it.", _plot_table(table, shown, "number"))
        for name, table in shown.further().items()
    ]
    return {
        "title": shown.summary.who,
        "note": f"Episode {shown.summary.said.episode}, {how}, {len(shown.acts)} acts.",
        "plots": [
            {"title": title, "note": note, "png": png_url(figure)}
            for title, note, figure in plots
            if figure is not None
        ],
        "events": _events(shown.acts),
    }


def _latency_note(shown: ShownEpisode) -> str:
    if shown.summary.side == "agent":
        return "Of the policy alone, without the way to it."
    return "Of all that act() did; dashed: what it may take."


def _events(acts: Sequence[pb.Act]) -> list[dict[str, Any]]:
    """What went wrong, in order."""
    events = []
    for act in acts:
        if act.HasField("refusal"):
            events.append({"step": act.request.step, "what": act.refusal.kind, "text": act.refusal.message})
        elif act.HasField("delivery") and not act.delivery.fresh:
            text = f"after {act.latency_us / 1000:,.1f} ms"
            events.append({"step": act.request.step, "what": f"fallback: {act.delivery.fallback_kind}", "text": text})
    return events[:_MOST_EPISODES]


def _steps_label(shown: ShownEpisode) -> str:
    begin = shown.counted_from
    return f"step, counted from {begin}" if begin else "step"


def _plot_actions(shown: ShownEpisode) -> Any | None:
    actions, steps = shown.actions, shown.steps
    if not actions.size:
        return None
    figure, axes = new_axes(_steps_label(shown), "action")
    axes.locator_params(axis="x", integer=True)
    for index in range(min(actions.shape[1], len(_COLOURS))):
        name = None if actions.shape[1] == 1 else f"[{index}]"
        axes.plot(steps, actions[:, index], ".-", color=_COLOURS[index], linewidth=1, markersize=4, label=name)
    _mark(axes, steps[shown.fallbacks], actions[shown.fallbacks], "fallback")
    for step in steps[shown.refused]:
        axes.axvline(step, color=WRONG, linewidth=1, linestyle=":")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, ncols=4, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return figure


def _plot_pictures(shown: ShownEpisode) -> Any | None:
    """Side by side, each as its step says."""
    pictures = shown.pictures(_MOST_PICTURES)
    if not pictures:
        return None
    frames = [_frame(picture) for picture in pictures.values()]
    height, width = (max(sides) for sides in zip(*(frame.shape[:2] for frame in frames), strict=True))
    gap = max(width // 20, 1)
    strip = np.full((height, len(frames) * (width + gap) - gap, 3), 255, np.uint8)
    for number, frame in enumerate(frames):
        left = number * (width + gap)
        strip[: frame.shape[0], left : left + frame.shape[1]] = frame
    figure, axes = new_axes("step", "")
    axes.grid(False)
    axes.imshow(strip, interpolation="nearest")
    axes.set_yticks([])
    axes.set_xticks([number * (width + gap) + width / 2 for number in range(len(frames))], list(map(str, pictures)))
    return figure


def _frame(picture: Array) -> Array:
    """[height, width, 3] uint8, grey where the channels are no colours."""
    coloured = picture.shape[-1] in (1, 3, 4)
    frame = as_frame(picture if coloured else picture.mean(-1, keepdims=True).astype(picture.dtype))
    assert frame is not None
    return frame


def _plot_latencies(shown: ShownEpisode) -> Any | None:
    latencies, steps = np.maximum(shown.latencies_us, 1e-3), shown.steps
    if not latencies.size:
        return None
    wide = latencies.max() > 20 * latencies.min()
    figure, axes = new_axes(_steps_label(shown), "microseconds (logarithmic)" if wide else "microseconds")
    axes.locator_params(axis="x", integer=True)
    axes.plot(steps, latencies, ".-", color=ACCENT, linewidth=1, markersize=4)
    if wide:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    if shown.timeout_us is not None:
        axes.axhline(shown.timeout_us, color=INK, linestyle="--", linewidth=1.2)
    _mark(axes, steps[shown.fallbacks], latencies[shown.fallbacks][:, None], "fallback")
    if shown.fallbacks.any():
        axes.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return figure


def _mark(axes: Any, steps: Array, values: Array, name: str) -> None:
    """Red rings where something is not as it should be."""
    for index in range(values.shape[1] if len(steps) else 0):
        label = name if index == 0 else None
        axes.plot(steps, values[:, index], "o", markerfacecolor="none", color=WRONG, markersize=7, label=label)


def _plot_table(table: Array, shown: ShownEpisode, label: str) -> Any | None:
    """Few numbers as lines, many as a map of colours."""
    if not table.size or np.isnan(table).all():
        return None
    figure, axes = new_axes(_steps_label(shown), "value" if table.shape[1] <= 3 else label)
    axes.locator_params(axis="x", integer=True)
    if table.shape[1] <= 3:
        for index, column in enumerate(table.T):
            axes.plot(shown.steps, column, ".-", color=_COLOURS[index], linewidth=1, markersize=4)
        return figure
    rows = table[:, :_MOST_ROWS].T
    largest = float(np.nanmax(np.abs(rows))) or 1.0
    axes.grid(False)
    steps = shown.steps
    image = axes.pcolormesh(
        np.append(steps, steps[-1] + 1) - 0.5 if (np.diff(steps) > 0).all() else np.arange(len(steps) + 1) - 0.5,
        np.arange(rows.shape[0] + 1) - 0.5,
        rows,
        cmap="RdBu_r",
        vmin=-largest,
        vmax=largest,
    )
    axes.locator_params(axis="y", integer=True)
    axes.set_facecolor("#f3f4f6")
    bar = figure.colorbar(image, ax=axes)
    bar.outline.set_edgecolor(MUTED)
    bar.ax.tick_params(colors=INK, labelsize=8)
    return figure
