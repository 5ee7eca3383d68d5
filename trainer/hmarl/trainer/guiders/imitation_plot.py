"""How far a guider and its local policies part: the gap that is recorded, and a picture."""

from __future__ import annotations

from dataclasses import dataclass

from hmarl.trainer.contract.local_team import LocalTeam
from hmarl.trainer.contract.shown import ReturnGap
from hmarl.trainer.guiders.teams import CentralTeam
from hmarl.trainer.records.canvas import draw_points, label_axes, new_figure, png, points
from hmarl.trainer.records.metrics import MetricRows

IMITATION_GAP = ReturnGap("imitation_gap", of=CentralTeam.name, over=LocalTeam.name)


@dataclass(frozen=True)
class ImitationPlot:
    """Divergence, actions out of bounds, δ and the gap in return over environment steps."""

    file: str = "imitation.png"

    def draw(self, rows: MetricRows, title: str) -> bytes | None:
        """None where no imitation was recorded."""
        divergence = points(rows, "imitation_kl")
        if not divergence:
            return None
        figure = new_figure(9, 5.4)
        axes = figure.subplots(2, 2, sharex=True)
        for axis, drawn, label, style in (
            (axes[0, 0], divergence, "KL(μ ‖ π) an agent (nats)", "-"),
            (axes[0, 1], points(rows, "outside_share"), "share of actions outside (1/δ, δ)", "-"),
            (axes[1, 0], points(rows, IMITATION_GAP.metric), "return, guider − local policies", "o-"),
            (axes[1, 1], points(rows, "delta"), "δ", "-"),
        ):
            draw_points(axis, drawn, style, ms=3, lw=1, color=CentralTeam.colour)
            label_axes([axis], ylabel=label)
        for axis in axes[1]:
            axis.set(xlabel="environment steps")
            axis.ticklabel_format(axis="x", style="sci", scilimits=(0, 3))
        axes[1, 0].axhline(0.0, color="black", lw=0.6)
        figure.suptitle(f"{title}: how far the guider and its local policies part", fontsize=10)
        return png(figure)
