"""What a suite writes for other tools, read by the tool whose format it is: InstaDeep's marl-eval."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from hmarl.sdk.evaluation.marl_eval import write_marl_eval
from hmarl.trainer.suite.definition import Task
from hmarl.trainer.suite.planned import PlannedRun
from hmarl.trainer.suite.records import Record, write_record
from hmarl.trainer.suite.results import document_of, record_path

pytestmark = pytest.mark.peers

# It asks for a pandas that is older than this Python, and its loader uses none of it.
REQUIREMENTS = ("--no-deps", "id-marl-eval==0.0.4", "numpy==2.4.6", "colorama==0.4.6")
READ = """
import json, sys
from marl_eval.utils.data_processing_utils import create_matrices_for_rliable, data_process_pipeline
from marl_eval.utils.diagnose_data_errors import DiagnoseData
raw = json.load(open(sys.argv[1]))
checked = DiagnoseData(raw).check_data()
processed = data_process_pipeline(raw_data=raw, metrics_to_normalize=["return"])
final, curves = create_matrices_for_rliable(processed, "mpe", ["return"])
final = {name: {a: m.tolist() for a, m in of.items()} for name, of in final.items()}
shapes = {a: m.shape for a, m in curves["mean_norm_return"].items()}
print(json.dumps({"checked": checked, "final": final, "shapes": shapes}))
"""
TASKS = {name: Task(name, name, "return", None) for name in ("mpe/simple_spread", "mpe/simple_reference")}


def record(value: float) -> Record:
    rows = [{"steps": 10 * at, "evaluation/local/return_mean": value * at} for at in (1, 2, 3)]
    return Record(1.0, rows, {"local": [value * 3, value * 3]})


def test_its_checks_pass_and_its_matrices_are_our_scores(
    peer_python: Callable[[str, Sequence[str]], Path], tmp_path: Path
) -> None:
    runs = [
        PlannedRun(f"{algorithm}{at}{seed}", algorithm, task, seed, 30, ())
        for at, task in enumerate(TASKS)
        for algorithm in ("happo", "mappo")
        for seed in (1, 2)
    ]
    for run in runs:
        write_record(record(run.seed + (run.label == "mappo")), record_path(tmp_path, run.name))
    path = tmp_path / "marl-eval.json"
    write_marl_eval(path, document_of(runs, TASKS, tmp_path))
    python = peer_python("marl-eval", REQUIREMENTS)
    done = subprocess.run([python, "-c", READ, path], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["checked"] == {"mpe": dict.fromkeys(found["checked"]["mpe"], True)}
    # Episodes of the last evaluation: 3 and 6 of HAPPO's seeds, 6 and 9 of MAPPO's; 1 and 9 are the extremes.
    expected = {"happo": [[0.25, 0.25], [0.625, 0.625]], "mappo": [[0.625, 0.625], [1.0, 1.0]]}
    assert found["final"]["mean_norm_return"].keys() == expected.keys()
    for algorithm, scores in expected.items():
        np.testing.assert_allclose(found["final"]["mean_norm_return"][algorithm], scores, rtol=1e-6)
    assert found["shapes"] == {"happo": [2, 2, 3], "mappo": [2, 2, 3]}
