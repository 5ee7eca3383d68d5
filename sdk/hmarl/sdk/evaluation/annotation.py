"""What a team can tell about how it decided: who heard whom, who belonged together, who was told what."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from hmarl.sdk.errors import UsageError


@dataclass(frozen=True)
class TeamAnnotation:
    """How one environment's team came to its actions at one step.

    Attributes:
        edges: [E, 2] int64, a pair (i, j) where agent i heard agent j.
        active: [N] bool, who was there.
        cluster: [N] int64, the cluster that each agent belonged to, or None.
        goals: [N, G] float32, what each agent had been told; one-hot where goals are discrete. Or None.
        goals_set: [N] bool, whose goal was set at this very step, all of them where the team cannot tell; None where
            ``goals`` is.
        sub_goals: [S, G] float32, what each cluster's sub-manager had been told, or None.
        sub_goals_set: [S] bool, as ``goals_set``.
        discrete: goals are one of G.
        told: what goals are called: a superior's goals, or a conductor's instructions.

    Raises:
        UsageError: arrays of shapes that do not fit one another, or an agent or cluster that there is not.
    """

    edges: npt.NDArray[np.int64]
    active: npt.NDArray[np.bool_]
    cluster: npt.NDArray[np.int64] | None = None
    goals: npt.NDArray[np.float32] | None = None
    goals_set: npt.NDArray[np.bool_] | None = None
    sub_goals: npt.NDArray[np.float32] | None = None
    sub_goals_set: npt.NDArray[np.bool_] | None = None
    discrete: bool = False
    told: Literal["goal", "instruction"] = "goal"

    def __post_init__(self) -> None:
        agents, told = len(self.active), None if self.goals is None else len(self.goals)
        expected = {"cluster": agents, "goals": agents, "goals_set": told}
        expected["sub_goals_set"] = None if self.sub_goals is None else len(self.sub_goals)
        for name, length in expected.items():
            array = getattr(self, name)
            if (array is not None or name.endswith("_set")) and (None if array is None else len(array)) != length:
                raise UsageError(f"annotation '{name}': got {array!r}, expected {length} entries")
        clusters = math.inf if self.sub_goals is None else len(self.sub_goals)
        for name, limit in (("edges", agents), ("cluster", clusters)):
            indices = getattr(self, name)
            if indices is not None and ((indices < 0) | (indices >= limit)).any():
                raise UsageError(f"annotation '{name}': got {indices!r}, expected 0 to below {limit}")

    def silent(self) -> TeamAnnotation:
        """The same team at a step of which it told nothing: as if no agent were there."""
        none = np.zeros_like(self.active)
        goals_set = None if self.goals_set is None else none
        sub_goals_set = None if self.sub_goals_set is None else np.zeros_like(self.sub_goals_set)
        edges = np.zeros((0, 2), np.int64)
        return replace(self, edges=edges, active=none, goals_set=goals_set, sub_goals_set=sub_goals_set)

    @property
    def heard(self) -> float:
        """How many others an agent heard, in the mean over those who were there."""
        return len(self.edges) / max(int(self.active.sum()), 1)


@runtime_checkable
class Explains(Protocol):
    """A team that can tell how it decided; optional."""

    def explain(self, index: int = 0) -> TeamAnnotation | None:
        """How the actions of environment ``index`` at the last ``act`` came about; None before the first."""
        ...


def explanation(team: Any, index: int = 0) -> TeamAnnotation | None:
    """What the team tells of its last step in environment ``index``, None where it tells nothing."""
    return team.explain(index) if isinstance(team, Explains) else None
