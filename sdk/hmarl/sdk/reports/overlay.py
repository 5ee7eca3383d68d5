"""An episode's pictures with what the team told of itself drawn over them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hmarl.sdk.drawing.canvas import Canvas, Colour, Frame
from hmarl.sdk.evaluation.annotation import TeamAnnotation
from hmarl.sdk.reports.goal_colours import GoalColours, cluster_colour

_Numbers = npt.NDArray[np.float64]

_WHITE, _INK = (1.0, 1.0, 1.0), (0.16, 0.18, 0.22)
# Lengths in pixels of a picture of this size; they grow with the picture.
_NORMAL_SIZE, _SMALLEST_UNIT = 320.0, 0.5
_MESSAGE_WIDTH, _MESSAGE_OPACITY, _ARROW_SIZE = 1.2, 0.6, 6.0
_RING_WIDTH, _RING_GAP, _SMALLEST_RING, _HALO = 2.2, 1.5, 5.0, 0.8
_SPOKE_WIDTH, _SPOKE_OPACITY = 3.0, 0.35
_PATCH_SIZES, _PATCH_BORDER = (5.5, 8.0), 1.2  # of the smallest and of the largest agents


def draw_over(
    frames: Sequence[Frame], annotations: Sequence[TeamAnnotation], places: Sequence[_Numbers]
) -> list[Frame]:
    """New pictures of the same size with messages, clusters and goals.

    A thin dark line is a message, with an arrow at the one who heard it unless both did. A ring in a cluster's colour
    is around each of its agents, with a light line to the middle of the cluster. The patch beside an agent is its goal,
    the one in the middle of a cluster its sub-manager's: equal colours are equal goals. Agents have their numbers.

    Args:
        frames: of an episode's first steps.
        annotations: of all its steps; all their goals together give the colours.
        places: for each frame [N, 3] as ``LocatesAgents.agent_pixels`` returns them.
    """
    goals, sub_goals = GoalColours.of(annotations), GoalColours.of_sub_goals(annotations)
    drawn = []
    for frame, told, place in zip(frames, annotations, places, strict=False):
        overlay = _Overlay(frame, told, place)
        overlay.draw_clusters()
        overlay.draw_messages()
        overlay.draw_rings()
        overlay.draw_goals(goals, sub_goals)
        overlay.draw_numbers()
        drawn.append(overlay.canvas.picture())
    return drawn


class _Overlay:
    """What is drawn over one picture."""

    def __init__(self, frame: Frame, told: TeamAnnotation, places: _Numbers) -> None:
        self.canvas, self._told = Canvas(frame), told
        self._size = np.array([frame.shape[1], frame.shape[0]], np.float64)
        self._unit = max(float(self._size.min()) / _NORMAL_SIZE, _SMALLEST_UNIT)
        self._shown = told.active & np.isfinite(places).all(1)
        self._centres = places[:, :2]
        self._rings = np.maximum(places[:, 2] + _RING_GAP * self._unit, _SMALLEST_RING * self._unit)
        self._patches = np.clip(0.45 * self._rings, _PATCH_SIZES[0] * self._unit, _PATCH_SIZES[1] * self._unit)
        self._clusters: dict[int, npt.NDArray[np.int64]] = {}
        if told.cluster is not None:
            numbers = np.unique(told.cluster[self._shown]).tolist()
            self._clusters = {number: np.flatnonzero(self._shown & (told.cluster == number)) for number in numbers}

    def draw_clusters(self) -> None:
        """A light line from every agent to the middle of its cluster."""
        for cluster, members in self._clusters.items():
            for agent in members:
                self._line(
                    self._middle(cluster),
                    self._centres[agent],
                    _SPOKE_WIDTH,
                    cluster_colour(cluster),
                    _SPOKE_OPACITY,
                    self._rings[agent],
                )

    def draw_messages(self) -> None:
        """Lines between those who hear one another, arrows to those who hear alone."""
        heard = {(int(i), int(j)) for i, j in self._told.edges if self._shown[i] and self._shown[j]}
        for i, j in sorted(heard):
            mutual = (j, i) in heard
            if not mutual or i < j:
                self._message(j, i, mutual)

    def _message(self, sender: int, hearer: int, mutual: bool) -> None:
        start, end = self._centres[sender], self._centres[hearer]
        arrow = 0.0 if mutual else _ARROW_SIZE * self._unit
        direction = (end - start) / max(float(np.hypot(*(end - start))), 1e-9)
        self._line(start, end, _MESSAGE_WIDTH, _INK, _MESSAGE_OPACITY, self._rings[hearer] + arrow, self._rings[sender])
        if not mutual:
            tip = end - direction * self._rings[hearer]
            self.canvas.arrowhead(tip, direction, arrow, _INK, _MESSAGE_OPACITY)

    def _line(
        self,
        start: _Numbers,
        end: _Numbers,
        width: float,
        colour: Colour,
        opacity: float,
        before_end: float,
        after_start: float = 0.0,
    ) -> None:
        """A line that leaves out its first and last pixels; none where nothing is left."""
        length = float(np.hypot(*(end - start)))
        if length > before_end + after_start:
            direction = (end - start) / length
            first, last = start + direction * after_start, end - direction * before_end
            self.canvas.line(first, last, width * self._unit, colour, opacity)

    def draw_rings(self) -> None:
        """Around every agent, in its cluster's colour."""
        width = _RING_WIDTH * self._unit
        for cluster, members in self._clusters.items():
            for agent in members:
                centre, radius = self._centres[agent], self._rings[agent]
                self.canvas.ring(centre, radius, width + 2 * _HALO * self._unit, _WHITE)
                self.canvas.ring(centre, radius, width, cluster_colour(cluster))

    def draw_goals(self, goals: GoalColours | None, sub_goals: GoalColours | None) -> None:
        """A patch up right of every agent, and one in the middle of every cluster (up left of who is alone in it)."""
        if goals is not None and self._told.goals is not None:
            for agent in np.flatnonzero(self._shown).tolist():
                colour = goals(self._told.goals[agent])
                self._patch(self._beside(agent, 1.0), self._patches[agent], colour, _INK)
        if sub_goals is not None and self._told.sub_goals is not None:
            for cluster, members in self._clusters.items():
                centre = self._middle(cluster) if len(members) > 1 else self._beside(members[0], -1.0)
                colour = sub_goals(self._told.sub_goals[cluster])
                self._patch(centre, self._patches[members].max(), colour, cluster_colour(cluster))

    def draw_numbers(self) -> None:
        """The agents' numbers, down left of them."""
        for agent in np.flatnonzero(self._shown).tolist():
            scale = max(1, round(min(self._rings[agent] / 8.0, 2.0 * self._unit)))
            away = 0.72 * self._rings[agent] + 2.5 * scale
            self.canvas.number(agent, self._centres[agent] + np.array([-away, away]), scale, _INK, _WHITE)

    def _beside(self, agent: int, side: float) -> _Numbers:
        """Where a patch above an agent is, to its right (1) or left (-1)."""
        away = 0.72 * self._rings[agent] + 0.5 * self._patches[agent] + _PATCH_BORDER * self._unit
        return np.asarray(self._centres[agent] + away * np.array([side, -1.0]))

    def _patch(self, centre: _Numbers, side: float, colour: _Numbers, border: Colour) -> None:
        """A square with two borders, white outside, moved into the picture where it would stick out."""
        width = _PATCH_BORDER * self._unit
        half = side / 2 + 2 * width
        inside = np.clip(centre, half, self._size - half)
        self.canvas.square(inside, side + 4 * width, _WHITE, 0.9)
        self.canvas.square(inside, side + 2 * width, border)
        self.canvas.square(inside, side, colour)

    def _middle(self, cluster: int) -> _Numbers:
        return np.asarray(self._centres[self._clusters[cluster]].mean(0))
