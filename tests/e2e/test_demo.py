"""make demo at tiny size: every step for real, and a comparison that notices a wrong action."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from hmarl.sdk import BundleTeam, evaluate, load_bundle, make_environment

pytest.importorskip("torch")

SCRIPT = Path(__file__).parents[2] / "scripts" / "demo.py"
TINY = ["run.environments=4", "run.rollout_length=8", "run.evaluation_episodes=4", "run.threads=1"]
TEAMS = [
    "random numbers",
    "no instruction",
    "each draws its own",
    "all draw alike, torch",
    "all draw alike, ONNX",
    "all draw alike, served",
]


def run_demo(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--out", str(out), "--steps", "64", "--episodes", "4", *more]
    command += [word for setting in TINY for word in ("--set", setting)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("demo")
    return out, run_demo(out)


@pytest.fixture(scope="module")
def demo_module() -> ModuleType:
    specification = importlib.util.spec_from_file_location("hmarl_demo", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["hmarl_demo"] = module  # its dataclasses look their module up
    specification.loader.exec_module(module)
    return module


def test_the_demo_walks_the_whole_road(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, done = finished
    assert done.returncode == 0, done.stdout + done.stderr
    for team in TEAMS:
        assert team in done.stdout
    assert "actions equal torch's one by one: 4 episodes, 1,200 actions" in done.stdout
    assert "all 4 returns are equal" in done.stdout
    results = json.loads((out / "results.json").read_text())
    assert list(results["teams"]) == TEAMS
    assert results["comparison"]["differences"] == 0
    assert results["teams"][TEAMS[-1]]["latency_p50_us"] > 0
    assert (out / "episode.gif").read_bytes().startswith(b"GIF89a")
    assert "data:image/gif;base64," in (out / "report.html").read_text()
    assert not (out / "endpoints.json").exists()  # the fleet has stopped


def test_one_changed_action_is_noticed_and_a_tie_is_told_apart(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
    demo_module: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = load_bundle(finished[0] / "bundle")
    environment = make_environment(demo_module.TASK, 1)
    reference = evaluate(environment, BundleTeam(bundle, environment.spec), 3, seed=0, record=True)
    assert reference.actions is not None
    wrong = reference.actions[0].copy()
    wrong[1, 10, 2] = (wrong[1, 10, 2] + 1) % 10
    served = replace(reference, actions=(wrong,))

    same = demo_module.compare(environment, bundle, reference, reference)
    assert (same.actions, same.differences, same.near_ties) == (3 * 100 * 3, 0, 0)
    found = demo_module.compare(environment, bundle, reference, served)
    # The episode is compared up to the difference only: both teams see different worlds from there on.
    assert (found.actions, found.differences, found.near_ties) == ((100 + 11 + 100) * 3, 1, 0)
    monkeypatch.setattr(demo_module, "NEAR_TIE", np.inf)
    tied = demo_module.compare(environment, bundle, reference, served)
    assert (tied.differences, tied.near_ties) == (0, 1)
    environment.close()


def test_a_failing_step_ends_the_demo_with_its_exit_code(tmp_path: Path) -> None:
    done = run_demo(tmp_path, "--set", "algorithm.instrutions=3")
    assert done.returncode == 2
    assert "did you mean 'algorithm.instructions'?" in done.stderr
    assert "demo: hmarl-train ended with exit code 2" in done.stderr
