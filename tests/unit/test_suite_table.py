"""What is shown of a suite while it goes on, by hand-made figures."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from hmarl.trainer.suite.engine import Places
from hmarl.trainer.suite.ledger import Entry, Ledger
from hmarl.trainer.suite.live_table import LiveTable, eta_s, rows_of
from hmarl.trainer.suite.planned import PlannedRun
from hmarl.trainer.suite.progress import Progress, progress_of


def run(label: str, seed: int) -> PlannedRun:
    return PlannedRun(f"{label}{seed}", label, "mpe/simple_spread with many arguments", seed, 1000, ())


RUNS = [run("mappo", 1), run("mappo", 2), run("happo", 1), run("happo", 2)]
LEDGER = Ledger({"mappo1": Entry("done"), "mappo2": Entry("running"), "happo1": Entry("failed"), "happo2": Entry()})
FAR = {
    "mappo1": Progress(1000, 50.0, 3.0),
    "mappo2": Progress(400, 100.0, 1.0),
    "happo1": Progress(),
    "happo2": Progress(),
}


def test_rows_and_the_time_that_is_left_by_hand() -> None:
    mappo, happo = rows_of(RUNS, LEDGER, lambda each: FAR[each.name])
    assert (mappo.done, mappo.planned, mappo.going, mappo.share) == (1, 2, True, 0.7)
    assert (mappo.steps_per_s, mappo.value) == (100.0, 2.0)
    assert mappo.left_s == 600 / 75, "600 steps at the mean rate of its runs"
    assert (happo.done, happo.going, happo.share, happo.left_s) == (0, False, 0.5, 1000 / 75)
    assert eta_s([mappo, happo], jobs=2) == pytest.approx((600 + 1000) / 75 / 2)
    unknown = rows_of(RUNS, Ledger(), lambda each: Progress())
    assert eta_s(unknown, 1) is None


def shown(columns: int, height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=columns, height=height, force_terminal=True, color_system=None)
    table = LiveTable("mine", RUNS, Places(Path("none"), Path("none")), 2, console)
    console.print(table.table(rows_of(RUNS, LEDGER, lambda each: FAR[each.name]), LEDGER))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_the_table_fits_80_columns_and_the_height() -> None:
    lines = shown(80, 24)
    assert lines[0] == "mine · 1/4 done · 1 running · 1 waiting · 1 failed · ETA 0:00:11"
    assert lines[1].split() == ["done", "%", "steps/s", "ETA", "return"]
    assert max(map(len, lines)) <= 80
    assert lines[2].split()[-5:] == ["1/2", "70%", "100", "0:00:08", "2"]
    assert lines[3].startswith("happo · mpe/simple_spread")
    assert shown(80, 6)[-1] == "and 1 more"


def test_how_far_a_run_is_survives_a_line_that_is_being_written(tmp_path: Path) -> None:
    assert progress_of(tmp_path) == Progress()
    (tmp_path / "metrics.jsonl").write_text('{"steps": 8, "steps_per_s": 2.0, "return": null}\n{"steps": 16, "st')
    assert progress_of(tmp_path) == Progress(8, 2.0, None)
