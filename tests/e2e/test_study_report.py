"""The study of learning as a command, on runs of a second where it looks for its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from training_runs import tiny_config, train

SCRIPT = Path(__file__).parents[2] / "scripts" / "study.py"
TASK = "lbf/6x6-2p-1f-coop"


def report(runs: Path, out: Path) -> str:
    """The page that the study writes of the runs at hand."""
    words = [sys.executable, str(SCRIPT), "--no-train", "--only", "lbf", "--runs", str(runs), "--out", str(out)]
    subprocess.run(words, check=True, timeout=240)
    return (out / "README.md").read_text()


def test_page_outlives_its_runs(tmp_path: Path) -> None:
    """Drawn again without the run directories the page says the same; other sections stay as they were."""
    runs, out = tmp_path / "runs", tmp_path / "report"
    out.mkdir()
    (out / "README.md").write_text("# Old title\n\n## smax-2s3z-guided: smax/2s3z\n\nKept.\n")
    for seed in (100, 101):
        name = f"lbf-6x6-2p-1f-coop-300000-mappo-seed{seed}"
        train(tiny_config("mappo", TASK, run_settings={"seed": seed}), runs / name)
    page = report(runs, out)
    assert page.startswith("# Learning results")
    assert page.index("## lbf:") < page.index("## smax-2s3z-guided: smax/2s3z\n\nKept.\n")
    (row,) = [line for line in page.splitlines() if line.startswith("| mappo")]
    assert len(row.split("|")[3].split(",")) == 2  # a mean of each seed
    curves = (out / "lbf.png").read_bytes()
    shutil.rmtree(runs)
    assert report(runs, out) == page
    assert (out / "lbf.png").read_bytes() == curves


def test_unknown_comparison_is_named(tmp_path: Path) -> None:
    words = [sys.executable, str(SCRIPT), "--only", "lbf2", "--out", str(tmp_path)]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert "lbf2" in done.stderr
    assert list(tmp_path.iterdir()) == []
