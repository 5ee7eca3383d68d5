"""What hmarl-train says in the end: each checkpoint once, and no figure broken in a narrow terminal."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hmarl.trainer.commands.train import _report

JUDGED = {"return_mean": -1234.5, "return_median": -1300.25, "return_iqm": -1290.75, "success_rate": 0.5}


def shown(width: int, **changes: Any) -> list[str]:
    """What is said of a run in a terminal so wide."""
    teams = {"local": {**JUDGED, "actions": "greedy", "sampled": JUDGED}, "central": {**JUDGED, "actions": "greedy"}}
    summary = {
        "algorithm": "hcpo",
        "environment": "mpe/simple_spread",
        "steps": 201_600,
        "wall_s": 3.0,
        "resumed_at": 0,
        "final": teams,
        "best": {"steps": 201_600, "teams": teams},
        **changes,
    }
    file = io.StringIO()
    _report(Console(file=file, width=width, soft_wrap=True), summary, Path("run"))
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80])
def test_the_table_of_a_run_keeps_every_figure_whole(width: int) -> None:
    best = {"steps": 22_400, "teams": {"local": {**JUDGED, "actions": "greedy"}}}
    lines = shown(width, best=best)
    words = [word for line in lines for word in line.replace("│", " ").split()]
    assert words.count("-1234.50") == 4, lines
    assert words.count("-1290.75") == 4, lines
    assert (words.count("last"), words.count("best")) == (3 + 1, 1), lines
    assert "of the last checkpoint, at 201,600 steps, and the best, at 22,400" in lines
    table = lines[2:-3]
    assert [line for line in table if len(line) > width] == []


def test_a_last_checkpoint_that_is_the_best_is_shown_once() -> None:
    lines = shown(80)
    assert "of the last checkpoint, at 201,600 steps, which is the best" in lines
    assert sum("-1234.50" in line for line in lines) == 3, lines
    assert not any("checkpoint" in line for line in lines[2:])
    assert "of the last checkpoint, at 201,600 steps" in shown(80, best=None)
