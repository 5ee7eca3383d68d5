"""What a run writes of its updates, and how it is read again."""

from __future__ import annotations

import math
from pathlib import Path

from hmarl.trainer.records.metrics import read_metrics
from hmarl.trainer.records.recorder import Recorder

CUT_OFF = '{"update": 3, "ret'


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"update": 1, "return": 2.5}\n' + CUT_OFF)
    assert read_metrics(tmp_path) == [{"update": 1, "return": 2.5}]


def test_a_resumed_run_drops_the_lines_that_it_writes_again(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 0, 0)
    for update in (1, 2, 3):
        recorder.write(update, 10 * update, {"return": 0.1 + update, "kl": math.inf})
    recorder.close()
    written = (tmp_path / "metrics.jsonl").read_text()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(CUT_OFF)
    Recorder(tmp_path, 2, 20).close()
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(written.splitlines(keepends=True)[:2])
    assert read_metrics(tmp_path)[1] == {"update": 2, "steps": 20, "return": 2.1, "kl": None}
