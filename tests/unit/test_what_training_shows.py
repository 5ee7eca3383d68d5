"""An algorithm says which of its metrics are shown live, how its plots are grouped, and who is evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hmarl.trainer.algorithms import ALGORITHMS
from hmarl.trainer.contract.shown import ReturnGap, gap_metrics, return_plot
from hmarl.trainer.records.live_progress import LiveProgress
from hmarl.trainer.records.plots import EvaluationCurve, Panel, PanelPlot, ReturnPlot, draw_plots
from training_runs import new_algorithm, of_use, tiny_config, train

pytestmark = pytest.mark.usefixtures("single_thread")

TOY = "toy_environments:masked_discrete"
COLOURS = {
    "local": "#0072b2",
    "central": "#d55e00",
    "random": "#999999",
    "none": "#cc79a7",
    "guider": "#009e73",
    "hierarchy": "#e69f00",
}
# What an update measures, and what shows it.
LIVE = {"imitation_kl", "conductor_kl", "instruction_entropy", "agent_kl", "explained_variance"}
DRAWN = {
    "imitation_kl": "imitation.png",
    "bound": "improvement_bound.png",
    "promised_improvement": "improvement.png",
    "agent_kl": "diagnostics.png",
}


def updated(name: str) -> tuple[Any, dict[str, float]]:
    """An algorithm after two updates, and the metrics of the second."""
    small = {"embedding_size": 8, "goal_size": 3, "conductor_hidden_sizes": (8,), "replay_capacity": 40}
    algorithm, rollout, collector = new_algorithm(name, TOY, 4, 10, None, **of_use(name, small))
    metrics: dict[str, float] = {}
    for progress in (0.0, 0.5):
        collector.collect(algorithm)
        metrics = algorithm.update(rollout, progress)
    return algorithm, metrics


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_shows_what_it_measures(name: str) -> None:
    algorithm, metrics = updated(name)
    assert set(algorithm.live_metrics) <= metrics.keys(), "shown live, but not measured"
    assert LIVE & metrics.keys() <= set(algorithm.live_metrics), "measured, but not shown live"
    drawn = draw_plots([{"steps": 40, **metrics}], "x", (return_plot(algorithm.teams()), *algorithm.plots))
    expected = {file for metric, file in DRAWN.items() if metric in metrics}
    assert drawn.keys() == expected | {"diagnostics.png"}
    for panel in next(plot for plot in algorithm.plots if isinstance(plot, PanelPlot)).panels:
        assert set(panel.metrics) <= metrics.keys(), f"{panel.label}: drawn, but not measured"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_teams_and_gaps_are_those_of_the_evaluations(name: str) -> None:
    algorithm, *_ = new_algorithm(name, TOY, 2, 4)
    teams = algorithm.teams()
    assert {team: each.colour for team, each in teams.items() if team in COLOURS}.items() <= COLOURS.items()
    assert len({each.colour for each in teams.values()}) == len(teams)
    assert len({each.label for each in teams.values()}) == len(teams)
    both = {"local", "guider"} <= teams.keys()
    assert [gap.metric for gap in algorithm.gaps] == ["evaluation/imitation_gap"] * both


def test_a_gap_is_what_one_earns_more_than_the_other() -> None:
    assert gap_metrics([ReturnGap("gap", "b", "a")], {"a": 2.0, "b": 5.0}) == {"evaluation/gap": 3.0}
    assert gap_metrics([], {"a": 2.0, "b": 5.0}) == {}


def test_every_evaluated_team_is_in_the_plot_of_the_returns() -> None:
    plot = ReturnPlot((EvaluationCurve("hierarchy", "whole hierarchy", "#e69f00"),))
    training = {"steps": 10, "return": 1.0}
    without = plot.draw([training], "x")
    with_evaluation = plot.draw([{**training, "evaluation/hierarchy/return_mean": 2.0}], "x")
    other = plot.draw([{**training, "evaluation/unheard-of/return_mean": 2.0}], "x")
    assert None not in (without, with_evaluation)
    assert without == other
    assert without != with_evaluation
    assert plot.draw([{"steps": 10}], "x") is None


def test_a_panel_plot_is_drawn_where_one_of_its_metrics_was_recorded() -> None:
    plot = PanelPlot("p.png", (Panel("left", ("a", "b")), Panel("right", ("c",))))
    assert plot.draw([{"steps": 10, "d": 1.0}, {"steps": 20, "a": None}], "x") is None
    drawn = plot.draw([{"steps": 10, "c": 1.0}], "x")
    assert drawn is not None
    assert drawn.startswith(b"\x89PNG")


def test_live_progress_shows_the_metrics_that_it_is_told_in_that_order(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveProgress("x", 40, 0, ("b_side", "missing", "a")) as progress:
        progress.update(40, {"a": 1.0, "b_side": 2.0, "c": 3.0})
    line = capsys.readouterr().err
    assert "b side 2 · a 1" in line
    assert "c 3" not in line


@pytest.mark.parametrize(("name", "shown"), [("happo", "agent kl"), ("magpo", "imitation kl"), ("maven", "td loss")])
def test_a_run_shows_what_its_algorithm_says(
    name: str, shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_config(name, "mpe/simple_spread", of_use(name, {"embedding_size": 8})), tmp_path / "run")
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("100.0%"))
    assert " · return " in line
    assert f" · {shown} " in line
