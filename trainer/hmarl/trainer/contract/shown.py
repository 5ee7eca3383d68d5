"""What an algorithm says of how training shows it: who plays in its evaluations, gaps between them, its plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hmarl.sdk.team import Team
from hmarl.trainer.records.plots import EvaluationCurve, Plot, ReturnPlot


class EvaluatedTeam(Team, Protocol):
    """A way to play with what was learnt, in evaluations and in their plot.

    Attributes:
        label: who acts, for a legend.
        colour: of its curve, matplotlib's.
    """

    label: str
    colour: str


@dataclass(frozen=True)
class ReturnGap:
    """What one team earns more than another, recorded with each evaluation of both.

    Attributes:
        name: of the metric.
        of: name of the team that earns more, as is to be expected.
        over: name of the other.
    """

    name: str
    of: str
    over: str

    @property
    def metric(self) -> str:
        """What metrics.jsonl calls it."""
        return f"evaluation/{self.name}"


def gap_metrics(gaps: Sequence[ReturnGap], returns: Mapping[str, float]) -> dict[str, float]:
    """The gaps between mean returns by team, of those teams that have one."""
    return {
        gap.metric: returns[gap.of] - returns[gap.over] for gap in gaps if gap.of in returns and gap.over in returns
    }


def return_plot(teams: Mapping[str, EvaluatedTeam]) -> Plot:
    """The returns in training and in the evaluations of an algorithm's teams."""
    return ReturnPlot(tuple(EvaluationCurve(name, team.label, team.colour) for name, team in teams.items()))
