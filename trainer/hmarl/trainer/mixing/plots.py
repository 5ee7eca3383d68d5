"""What is drawn of algorithms that learn mixed utilities."""

from __future__ import annotations

from hmarl.trainer.records.plots import Panel, PanelPlot, Plot

VALUE_PLOTS: tuple[Plot, ...] = (
    PanelPlot(
        "diagnostics.png",
        (Panel("loss of the values", ("td_loss",)), Panel("mean target (scaled)", ("q_mean",))),
    ),
)
