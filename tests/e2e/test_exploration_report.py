"""The study of exploration as a command, on two runs of a second."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scripts_loaded import load_script
from training_runs import tiny_config, train

SCRIPT = Path(__file__).parents[2] / "scripts" / "exploration.py"

pytestmark = pytest.mark.slow


def test_report_of_given_runs(tmp_path: Path) -> None:
    """Two algorithms, one of them with two settings, on one environment: three lines, a figure."""
    settings = {"kl": {"kl_limit": 0.02}, "other": {}}
    runs = {"hatrpo": tmp_path / "hatrpo", **{f"hcpo-{name}": tmp_path / name for name in settings}}
    train(tiny_config("hatrpo", "mpe/simple_spread"), runs["hatrpo"])
    for name, changed in settings.items():
        train(tiny_config("hcpo", "mpe/simple_spread", changed), runs[f"hcpo-{name}"])
    words = [sys.executable, str(SCRIPT), *map(str, runs.values()), "--out", str(tmp_path / "report")]
    subprocess.run(words, check=True, timeout=240)
    report = (tmp_path / "report" / "exploration.md").read_text()
    assert [line.split(" | ")[0] for line in report.splitlines() if line.startswith("| h")] == [
        "| hatrpo",
        "| hcpo, kl_limit=0.02",
        "| hcpo, kl_limit=0.005",
    ]
    assert "nan" not in report
    assert (tmp_path / "report" / "exploration-mpe-simple_spread.png").stat().st_size > 10_000


def test_other_comparisons_stay_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those known, in their order, with one that is measured now between them."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    script = load_script("exploration")
    names = ("lbf/6x6-2p-1f-coop", "mpe/simple_spread", "coordsum/3x10-30")
    few = ("run.environments=2", "run.rollout_length=4", "run.evaluation_episodes=2")
    made = [
        script.comparison(name.split("/")[0], name, 16, 1, script.algorithms("mappo", seeds=1), *few) for name in names
    ]
    monkeypatch.setattr(script, "COMPARISONS", tuple(made))
    monkeypatch.setattr(script, "PLAYED", 50)
    page = tmp_path / "exploration.md"
    page.write_text("# Old title\n\n## coordsum/3x10-30\n\nKept: here.\n\n## gone/task\n\nNot this.\n")
    script.main(["--only", "mpe", "--out", str(tmp_path), "--runs", str(tmp_path / "runs")], standalone_mode=False)
    text = page.read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## mpe/simple_spread",
        "## coordsum/3x10-30",
    ]
    assert text.endswith("## coordsum/3x10-30\n\nKept: here.\n")


def test_a_folder_without_checkpoints_is_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_config("hatrpo", "mpe/simple_spread"), run)
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    words = [sys.executable, str(SCRIPT), str(run), "--out", str(tmp_path / "report")]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert f"got {run} without checkpoints, expected the directory of a run" in done.stderr
