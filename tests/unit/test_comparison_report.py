"""Curves of a task on a comparison's page, where runs were evaluated once, or not all over the same steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmarl.sdk.evaluation.comparing import Band
from hmarl.sdk.evaluation.marl_eval import Results, RunCurve
from hmarl.sdk.evaluation.statistics import iqm
from hmarl.sdk.reports.comparison_report import ComparisonContent, plot_bands, plot_task, task_figures, write_comparison
from hmarl.sdk.reports.pages import number

pytest.importorskip("matplotlib")

COLOURS = {"theirs": "#d97706", "ours": "#2563eb"}
FIVE = (10.0, 50.0, 60.0, 70.0, 400.0)  # IQM 60, mean 118


def curve(**points: float) -> RunCurve:
    """``_10=1.0``: evaluated to 1 after 10 steps."""
    return RunCurve(np.array([int(name[1:]) for name in points]), np.array([*points.values()]))


def unknown(*values: float) -> list[RunCurve]:
    return [curve(_0=value) for value in values]


def drawn(runs: Mapping[str, Sequence[RunCurve]]) -> dict[str, Any]:
    """By name, the line or dot that stands for all of its runs."""
    axes = plot_task("return", runs, COLOURS).axes[0]
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def dot(line: Any) -> tuple[float, float]:
    assert (line.get_marker(), len(line.get_xdata())) == ("o", 1)
    return float(line.get_xdata()[0]), float(line.get_ydata()[0])


def thin(runs: Mapping[str, Sequence[RunCurve]]) -> list[tuple[list[float], list[float], bool]]:
    """Steps and values of single runs, and whether they can be seen."""
    lines = [line for line in plot_task("return", runs, COLOURS).axes[0].lines if line.get_label().startswith("_")]
    return [
        (list(each.get_xdata()), list(each.get_ydata()), len(each.get_xdata()) > 1 or each.get_marker() == "o")
        for each in lines
    ]


def test_runs_of_unknown_steps_are_a_dot_at_the_others_end_as_the_table_has_it() -> None:
    runs = {"theirs": unknown(*FIVE), "ours": [curve(_100=1.0, _1000=2.0), curve(_100=1.0, _900=2.0)]}
    assert dot(drawn(runs)["theirs"]) == (1000.0, 60.0)
    assert task_figures(runs["theirs"])["IQM"].startswith("60.00 [")
    assert thin(runs)[:5] == [([1000], [value], True) for value in FIVE]
    assert task_figures(runs["theirs"])["steps"] == "unknown"


def test_where_no_steps_are_known_the_axis_says_so() -> None:
    axes = plot_task("return", {"theirs": unknown(10.0, 50.0, 60.0)}, COLOURS).axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["unknown"]
    assert dot(axes.lines[-1]) == (0.0, 40.0)


def test_runs_with_one_evaluation_each_are_a_dot_of_all_of_them() -> None:
    runs = {"ours": [curve(_100=value) for value in FIVE]}
    assert dot(drawn(runs)["ours"]) == (100.0, 60.0)
    at_other_steps = {"ours": [curve(_100=10.0), curve(_120=50.0), curve(_90=60.0)]}
    assert dot(drawn(at_other_steps)["ours"]) == (120.0, 40.0)


def test_runs_without_common_steps_have_no_line_but_a_dot_of_what_they_came_to() -> None:
    runs = {"ours": [curve(_20000=1.0), curve(_50000=3.0, _100000=9.0)]}
    assert dot(drawn(runs)["ours"]) == (100_000.0, 5.0)
    assert thin(runs) == [([20_000], [1.0], True), ([50_000, 100_000], [3.0, 9.0], True)]


def test_the_thick_line_is_the_iqm_as_far_as_all_have_been_evaluated() -> None:
    runs = {"ours": [curve(_10=0.0, _30=value) for value in FIVE] + [curve(_20=100.0, _40=100.0)]}
    line = drawn(runs)["ours"]
    steps, values = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    assert (steps[0], steps[-1]) == (20.0, 30.0)
    assert (values[0], values[-1]) == (pytest.approx(iqm([*(v / 2 for v in FIVE), 100.0])), iqm([*FIVE, 100.0]))
    assert np.all(np.diff(steps) > 0)


def test_a_band_over_one_point_can_be_seen() -> None:
    """Sample efficiency where no run was evaluated before the end of the budget."""
    one, values = np.ones(21), np.full(21, 0.5)
    axes = plot_bands("share", "IQM", one, {"ours": Band(values, values - 0.25, values + 0.25)}, COLOURS).axes[0]
    assert dot(axes.lines[0]) == (1.0, 0.5)
    (interval,) = axes.collections
    assert interval.get_segments()[0].tolist() == [[1.0, 0.25], [1.0, 0.75]]


def test_a_page_whose_runs_all_have_one_evaluation_shows_them(tmp_path: Path) -> None:
    results = Results({"a/one": {"theirs": unknown(10.0, 50.0, 60.0), "ours": unknown(20.0, 30.0)}})
    write_comparison(tmp_path / "index.html", ComparisonContent("mine", results, "hmarl-suite x.toml", ""))
    page = (tmp_path / "index.html").read_text()
    assert f"<td>{number(40.0)} [" in page
    assert "<td>unknown</td>" in page
    assert "their mean" not in page
