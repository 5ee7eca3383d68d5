"""What hmarl-train imports before its first rollout every run waits for: nothing that training can do without."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

DONE_WITHOUT = {"jax", "matplotlib", "mlflow", "onnx", "optuna", "pandas", "ray", "scipy", "vmas", "wandb"}
# A run that is about to train says what has been imported, instead of training.
TRAINS = """
import json, os, sys
from hmarl.trainer.commands.train import train_main
from hmarl.trainer.runs.run import Run

def told(run, stop):
    print(json.dumps(sorted(sys.modules)), flush=True)
    os._exit(0)

Run.train = told
train_main()
"""


def test_a_run_imports_nothing_that_training_can_do_without(tmp_path: Path) -> None:
    words = ["happo", "--env", "mpe/simple_spread", "--steps", "10", "--out", str(tmp_path / "run")]
    told = subprocess.run(
        [sys.executable, "-c", TRAINS, *words], check=True, capture_output=True, text=True, timeout=120
    )
    found = set(json.loads(told.stdout))
    assert "torch" in found
    assert not DONE_WITHOUT.intersection(found)
