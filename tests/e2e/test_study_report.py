"""The study of learning as a command, on runs of a second where it looks for its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from training_runs import tiny_config, train

SCRIPT = Path(__file__).parents[2] / "scripts" / "study.py"


def report(comparison: str, runs: Path, out: Path) -> str:
    """The page that the study writes of the runs at hand."""
    words = [sys.executable, str(SCRIPT), "--no-train", "--only", comparison, "--runs", str(runs), "--out", str(out)]
    subprocess.run(words, check=True, timeout=240)
    return (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("comparison", "task", "run", "algorithm", "rows"),
    [
        ("lbf", "lbf/6x6-2p-1f-coop", "lbf-6x6-2p-1f-coop-300000-mappo", "mappo", ["mappo"]),
        # With tables of its conductors and of how instructions are chosen.
        pytest.param(
            "coordsum",
            "coordsum/3x10-30",
            "coordsum-3x10-30-1000000-hcpo-conductor_sees=state-gamma=0.9-entropy_coefficient=0.01-"
            "conductor_entropy_coefficient=0.02-instruction_scale=1",
            "hcpo",
            ["hcpo", "local", "central", "random", "none", "argmax", "sample", "common"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_page_outlives_its_runs(
    comparison: str, task: str, run: str, algorithm: str, rows: list[str], tmp_path: Path
) -> None:
    """Drawn again without the run directories the page says the same; sections without records stay, and say so."""
    runs, out = tmp_path / "runs", tmp_path / "report"
    out.mkdir()
    (out / "README.md").write_text("# Old title\n\n## smax-2s3z-guided: smax/2s3z\n\nKept.\n")
    for seed in (100, 101):
        train(tiny_config(algorithm, task, run_settings={"seed": seed}), runs / f"{run}-seed{seed}")
    page = report(comparison, runs, out)
    assert page.startswith("# Learning results")
    kept = page.partition("## smax-2s3z-guided: smax/2s3z, 300,000 frames\n\n")[2]
    assert kept.startswith("*Runs from before records were kept")
    assert kept.endswith("*\n\nKept.\n")
    cells = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    of_name = {row[0].removeprefix("| "): row for row in cells}
    assert [name for name in of_name if name in rows] == rows
    for name in rows:
        means = of_name[name][3 if name == algorithm else 2]
        assert len(means.split(", ")) == 2, "a mean of each seed"
    assert of_name[algorithm][1] == "greedy"
    pictures = {path.name: path.read_bytes() for path in out.glob("*.png")}
    assert f"{comparison}.png" in pictures
    shutil.rmtree(runs)
    assert report(comparison, runs, out) == page
    assert {path.name: path.read_bytes() for path in out.glob("*.png")} == pictures


@pytest.mark.parametrize("script", ["study", "exploration", "gap"])
def test_unknown_comparison_is_named(script: str, tmp_path: Path) -> None:
    words = [sys.executable, str(SCRIPT.with_name(f"{script}.py")), "--only", "simple_spred", "--out", str(tmp_path)]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert "--only: unknown comparison 'simple_spred'" in done.stderr
    assert list(tmp_path.iterdir()) == []
