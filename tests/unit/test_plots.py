"""What plots are drawn from."""

from __future__ import annotations

from pathlib import Path

from hmarl.trainer.plots import read_metrics


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"update": 1, "return": 2.5}\n{"update": 2, "ret')
    assert read_metrics(tmp_path) == [{"update": 1, "return": 2.5}]
