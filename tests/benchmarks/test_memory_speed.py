"""What it is worth that a run keeps the memory of tensors that are gone (``run.keep_freed_memory``).

The same run with and without, in turn, each a process of its own that starts from its preset: seconds of an update,
and the most memory that it held.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from training_speed import matrix_product_gflops

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

# Algorithm, task, preset other than its own, frames of eight updates.
CASES = (
    ("hcpo", "mpe/simple_speaker_listener", "paper-mpe", 32_000),
    ("hatrpo", "mpe/simple_spread", None, 12_800),
    ("mappo", "mpe/simple_spread", None, 12_800),
    ("hcpo", "mamujoco/HalfCheetah-2x3", None, 32_000),
    ("magpo", "coordsum/3x10-30", None, 64_000),
    ("mappo", "smax/5m_vs_6m", None, 32_768),
)
ROUNDS = 3
CHILD = """
from hmarl.trainer.commands.train import train_main
from training_speed import peak_gigabytes

try:
    train_main()
finally:
    print(peak_gigabytes())
"""


def one_run(out: Path, name: str, task: str, preset: str | None, steps: int, *, keep: bool) -> tuple[float, float]:
    """Median seconds of an update after the first, and the most gigabytes held."""
    quiet = ("run.threads=1", "run.evaluation_interval=1000000000", "run.evaluation_episodes=1", "run.loggers=none")
    settings = (*quiet, f"run.keep_freed_memory={str(keep).lower()}")
    command = [sys.executable, "-c", CHILD, name, "--env", task, "--steps", str(steps), "--seed", "7"]
    command += ["--out", str(out), *(part for setting in settings for part in ("--set", setting))]
    command += ["--preset", preset] if preset else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    updates = [json.loads(line)["update_s"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(updates[1:]), float(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("name", "task", "preset", "steps"), CASES, ids=[f"{case[0]}-{case[1]}" for case in CASES])
def test_memory_speed(
    name: str,
    task: str,
    preset: str | None,
    steps: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))
    seen: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for number in range(ROUNDS):
        for keep in (True, False):
            seen[keep].append(one_run(tmp_path / f"{keep}{number}", name, task, preset, steps, keep=keep))
    kept, kept_gb = map(statistics.median, zip(*seen[True], strict=True))
    returned, returned_gb = map(statistics.median, zip(*seen[False], strict=True))
    ratios = [before / after for (after, _), (before, _) in zip(seen[True], seen[False], strict=True)]
    with capsys.disabled():
        print(
            f"\n{name} on {task}: an update {kept:.3f} s, {kept_gb:.2f} GB; returned {returned:.3f} s, "
            f"{returned_gb:.2f} GB; ratios {', '.join(f'{ratio:.2f}' for ratio in ratios)} "
            f"at {matrix_product_gflops():.0f} GFLOP/s"
        )
