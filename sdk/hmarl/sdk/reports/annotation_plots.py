"""Figures of what a team told of itself over an episode: its goals, its clusters and its messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.sdk.evaluation.annotation import TeamAnnotation
from hmarl.sdk.reports.goal_colours import GoalColours, choice_colours, cluster_colour
from hmarl.sdk.reports.plotting import ACCENT, INK, new_axes, new_axes_below_one_another

_Numbers = npt.NDArray[np.float64]
_Flags = npt.NDArray[np.bool_]

# A row of the goals over time in pixels: the goal, below it the cluster, below it nothing.
_GOAL_PIXELS, _CLUSTER_PIXELS, _GAP_PIXELS = 9, 3, 2
_WIDE_INCHES, _ROW_INCHES, _MOST_NAMED_ROWS = 11.0, 0.25, 24
_GROUND_PIXELS = 80


@dataclass(frozen=True)
class AnnotationPlot:
    """A figure of matplotlib, and a sentence or two that say how to read it; wide ones take a page's whole width."""

    title: str
    note: str
    figure: Any
    wide: bool = False


def annotation_plots(annotations: Sequence[TeamAnnotation]) -> list[AnnotationPlot]:
    """The figures for whatever was told.

    Args:
        annotations: of all steps of an episode, at least one.
    """
    colours = GoalColours.of(annotations)
    plots = []
    if colours is not None:
        plots += [_time_plot(annotations, colours), _goals_plot(annotations, colours)]
    if colours is None or annotations[0].told == "goal":  # those who follow instructions hear no one
        plots.append(_messages_plot(annotations))
    return plots


# --- goals over time -------------------------------------------------------------------------------------------------


def _time_plot(annotations: Sequence[TeamAnnotation], colours: GoalColours) -> AnnotationPlot:
    told = annotations[0].told
    note = (
        "One row an agent, one column a step, coloured as in the film: a row that keeps its colour is told the same "
        f"all the time, rows of one colour are told the same as one another. Strokes mark where {told}s were set, "
        "if not at every step; white is who has left."
    )
    pictures, marks, names = [_agent_rows(annotations, colours)], [_set_when(annotations)], _agent_names(annotations)
    there = np.stack([each.active for each in annotations])
    if annotations[0].cluster is not None:
        note += " The thin band below a row is the agent's cluster."
    sub_colours = GoalColours.of_sub_goals(annotations)
    if sub_colours is not None:
        note += " The last rows are what the clusters' sub-managers were told, in colours of their own."
        pictures.append(_cluster_rows(annotations, sub_colours))
        marks.append(_set_when(annotations, sub_goals=True))
        there = np.concatenate([there, np.ones_like(marks[1])], axis=1)
        names += [f"cluster {cluster}" for cluster in range(marks[1].shape[1])]
    picture, set_when = np.concatenate(pictures), np.concatenate(marks, axis=1)
    if (set_when | ~there).all():
        set_when = np.zeros_like(set_when)
    title = f"{told.capitalize()}s over time"
    return AnnotationPlot(title, note, _time_figure(picture, set_when, names), wide=True)


def _agent_names(annotations: Sequence[TeamAnnotation]) -> list[str]:
    return [f"agent {agent}" for agent in range(len(annotations[0].active))]


def _set_when(annotations: Sequence[TeamAnnotation], sub_goals: bool = False) -> _Flags:
    """[T, N], or [T, S]: whose goal was set at which step."""
    if sub_goals:
        return np.stack([np.asarray(each.sub_goals_set) for each in annotations])
    return np.stack([each.goals_set & each.active for each in annotations if each.goals_set is not None])


def _agent_rows(annotations: Sequence[TeamAnnotation], colours: GoalColours) -> _Numbers:
    """[N rows, T, 4] red, green, blue and opacity of all agents' goals and clusters."""
    goals = np.stack([colours(each.goals) for each in annotations if each.goals is not None])
    if annotations[0].cluster is None:
        clusters = np.ones_like(goals)
    else:
        clusters = np.stack([[cluster_colour(c) for c in each.cluster] for each in annotations])  # type: ignore[union-attr]
    return _rows(goals, clusters, np.stack([each.active for each in annotations]))


def _cluster_rows(annotations: Sequence[TeamAnnotation], colours: GoalColours) -> _Numbers:
    """[S rows, T, 4], as ``_agent_rows``."""
    goals = np.stack([colours(each.sub_goals) for each in annotations if each.sub_goals is not None])
    clusters = np.broadcast_to([cluster_colour(c) for c in range(goals.shape[1])], goals.shape)
    return _rows(goals, clusters, np.ones(goals.shape[:2], bool))


def _rows(above: _Numbers, below: _Numbers, there: _Flags) -> _Numbers:
    """[R rows, T, 4] of colours [T, R, 3]; see-through where no agent is there."""
    parts = [(above, _GOAL_PIXELS), (below, _CLUSTER_PIXELS), (np.ones_like(above), _GAP_PIXELS)]
    pixels = np.concatenate([np.repeat(colour[:, :, None], size, axis=2) for colour, size in parts], axis=2)
    opacity = np.broadcast_to(there[:, :, None, None], (*pixels.shape[:3], 1))
    return np.concatenate([pixels, opacity], axis=3).reshape(len(above), -1, 4).swapaxes(0, 1)


def _time_figure(picture: _Numbers, set_when: _Flags, names: Sequence[str]) -> Any:
    steps, rows = set_when.shape
    figure, axes = new_axes("step", "", (_WIDE_INCHES, 0.9 + _ROW_INCHES * max(rows, 4)))
    axes.grid(False)
    axes.imshow(picture, extent=(-0.5, steps - 0.5, rows - 0.5, -0.5), aspect="auto", interpolation="nearest")
    when, whose = np.nonzero(set_when)
    bottom = _GOAL_PIXELS / (_GOAL_PIXELS + _CLUSTER_PIXELS + _GAP_PIXELS)
    axes.vlines(when - 0.5, whose - 0.5, whose - 0.5 + bottom, color=INK, linewidth=1.0)
    named = range(0, rows, -(-rows // _MOST_NAMED_ROWS))
    axes.set_yticks(named, [names[row] for row in named])
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", integer=True)
    return figure


# --- what goals there are --------------------------------------------------------------------------------------------


def _goals_plot(annotations: Sequence[TeamAnnotation], colours: GoalColours) -> AnnotationPlot:
    set_when, told = _set_when(annotations), annotations[0].told
    goals = np.stack([each.goals for each in annotations if each.goals is not None])[set_when]
    if colours.discrete:
        note = f"How often each {told} was set, coloured as in the film. A single bar: {told}s tell the agents nothing."
        return AnnotationPlot(f"Use of the {told}s", note, _usage_figure(goals, told))
    clusters = np.zeros(set_when.shape, np.int64)
    note = f"Every {told} that was set, in the two directions in which they differ most: near one another means alike."
    if annotations[0].cluster is not None:
        note += " Dots have the colour of the agent's cluster;"
        clusters = np.stack([each.cluster for each in annotations if each.cluster is not None])
    else:
        note += f" Dots are {told}s;"
    note += f" the ground has the one in which the film shows such {'an' if told == 'instruction' else 'a'} {told}."
    return AnnotationPlot(f"{told.capitalize()}s", note, _space_figure(goals, clusters[set_when], colours))


def _usage_figure(goals: npt.NDArray[np.float32], told: str) -> Any:
    count = goals.shape[1]
    figure, axes = new_axes(told, "times set")
    axes.bar(np.arange(count), goals.sum(0), color=choice_colours(count), width=0.8)
    axes.grid(False, axis="x")
    axes.locator_params(axis="both", integer=True)
    return figure


def _space_figure(goals: npt.NDArray[np.float32], clusters: npt.NDArray[np.int64], colours: GoalColours) -> Any:
    shares = 100 * colours.components.shares
    labels = [f"component {number} ({share:.0f} % of the variance)" for number, share in enumerate(shares[:2], 1)]
    figure, axes = new_axes(labels[0], labels[1])
    places = colours.components.project(goals)
    half = 1.1 * np.maximum(np.abs(places[:, :2]).max(0), 0.05 * np.abs(places[:, :2]).max() + 1e-6)
    x, y = (np.linspace(-side, side, _GROUND_PIXELS) for side in half)
    ground = colours.of_components(np.stack([*np.meshgrid(x, y), np.zeros((_GROUND_PIXELS, _GROUND_PIXELS))], axis=-1))
    extent = (-half[0], half[0], -half[1], half[1])
    axes.imshow(ground, origin="lower", extent=extent, aspect="auto", alpha=0.45, zorder=0)
    for cluster in np.unique(clusters).tolist():
        x, y, _ = places[clusters == cluster].T
        colour = cluster_colour(cluster)
        axes.plot(x, y, "o", color=colour, markersize=6, markeredgecolor="white", markeredgewidth=0.8)
    return figure


# --- clusters and messages -------------------------------------------------------------------------------------------


def _messages_plot(annotations: Sequence[TeamAnnotation]) -> AnnotationPlot:
    heard, steps = [each.heard for each in annotations], np.arange(len(annotations))
    sizes = _cluster_sizes(annotations)
    if sizes is None:
        note = "How many others an agent hears, in the mean over those who are there; at 0 each is on its own."
        figure, axes = new_axes("step", "others heard")
        panels = [axes]
    else:
        note = (
            "Above, how many agents each cluster has: one that takes all leaves the other sub-managers without work, "
            "and where the whole shrinks agents have left. Below, how many others an agent hears, in the mean."
        )
        figure, panels = new_axes_below_one_another("step", ["agents", "others heard"])
        colours = [cluster_colour(cluster) for cluster in range(len(sizes))]
        panels[0].stackplot(steps, sizes, colors=colours, step="mid", alpha=0.8, linewidth=0)
    panels[-1].step(steps, heard, where="mid", color=ACCENT, linewidth=1.8)
    panels[-1].set_ylim(0, max(1.0, 1.1 * max(heard)))
    for axes in panels:
        axes.locator_params(axis="x", integer=True)
    return AnnotationPlot("Messages" if sizes is None else "Clusters and messages", note, figure)


def _cluster_sizes(annotations: Sequence[TeamAnnotation]) -> npt.NDArray[np.int64] | None:
    """[S, T] agents in each cluster, None without clusters."""
    members = [each.cluster[each.active] for each in annotations if each.cluster is not None]
    if not members:
        return None
    count = 1 + max(int(clusters.max(initial=0)) for clusters in members)
    return np.stack([np.bincount(clusters, minlength=count) for clusters in members], axis=1)
