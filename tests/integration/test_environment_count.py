"""A run makes as many environments as cores and memory take, and no others to throw away."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from command_lines import run_in_pipes
from hmarl.sdk.environment import CopyCost
from hmarl.sdk.environments import copy_cost
from hmarl.sdk.environments.copies import Machine, evaluation_copies, few_copies, measured_cost
from hmarl.trainer.networks.settings import validate
from hmarl.trainer.runs.environment_count import fitted_run
from hmarl.trainer.runs.settings import RunSettings

GB = 1 << 30
CORES = Machine.this().cores
# Everything else is a copy of one of these; every one that is made leaves a line.
COUNTED = '''
import os
import subprocess
import sys

import numpy as np
from gymnasium import spaces
from hmarl.sdk.environment import CopyCost
from hmarl.sdk.environments import make as make_other


def note():
    with open(os.environ["COUNTED"], "a") as file:
        print("made", file=file)


class Battle:
    """SMAC's interface."""

    def __init__(self, map_name="3m", seed=None):
        note()

    def get_env_info(self):
        return {"n_agents": 2, "n_actions": 3, "obs_shape": 2, "state_shape": 2, "episode_limit": 4}

    def reset(self, seed=None):
        self.step_ = 0

    def get_obs(self):
        return np.zeros((2, 2))

    def get_state(self):
        return np.zeros(2)

    def get_avail_actions(self):
        return np.ones((2, 3))

    def step(self, actions):
        self.step_ += 1
        return 1.0, self.step_ >= 4, {"episode_limit": True} if self.step_ >= 4 else {}

    def close(self):
        pass


class Vector:
    """Copies of mpe/simple_spread, each of which costs so much."""

    def __init__(self, batch_size, megabytes, processes):
        self._inner = make_other("mpe/simple_spread", batch_size)
        self.spec, self.batch_size = self._inner.spec, batch_size
        for _ in range(batch_size):
            note()
        self._memory = [np.ones(megabytes << 17) for _ in range(batch_size)]
        self._processes = [
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
            for _ in range(processes * batch_size)
        ]

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def close(self):
        for process in self._processes:
            process.kill()
            process.wait()


def make(batch_size, megabytes=0, processes=0):
    return Vector(batch_size, megabytes, processes)
'''


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file to which every copy adds a line; modules ``counted`` and ``declared`` can be imported."""
    (tmp_path / "counted.py").write_text(COUNTED)
    (tmp_path / "declared.py").write_text(
        COUNTED + "\n\nCOPY_COST = CopyCost(memory_bytes=1 << 20, processes=2, compiles=True)\n"
    )
    monkeypatch.setenv("COUNTED", str(tmp_path / "made.txt"))
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "made.txt"


def _made(path: Path) -> int:
    return len(path.read_text().splitlines())


def _train(folder: Path, *words: object) -> tuple[dict[str, object], str]:
    """The run's settings, and what was said."""
    out = folder / f"run-{len(list(folder.iterdir()))}"
    arguments = ("happo", "--out", out, "--steps", 1, "--set", "run.threads=1", *words)
    code, _, error = run_in_pipes("hmarl-train", *arguments, path=folder)
    assert code == 0, error
    return json.loads((out / "config.json").read_text())["run"], error


def test_runs_at_once_share_what_the_machine_takes(counted: Path) -> None:
    """As one of them alone would have it, divided; and a warning counts the environments of all."""
    said: list[str] = []
    alone = fitted_run("declared:make", {}, {}, said.append)["environments"]
    shared = fitted_run("declared:make", {}, {}, said.append, at_once=2)["environments"]
    assert shared == alone // 2
    assert fitted_run("declared:make", {}, {}, said.append, at_once=1000)["environments"] == 1
    said.clear()
    fitted_run("declared:make", {}, {"environments": 4 * CORES}, said.append)
    assert said == [], "ten processes a core"
    fitted_run("declared:make", {}, {"environments": 4 * CORES}, said.append, at_once=3)
    assert f"run.environments={4 * CORES} of 3 runs and" in said[0]


def test_rollouts_of_pictures_need_their_memory_too(counted: Path) -> None:
    """A gigabyte an environment and rollout; one that need not be longer is not."""
    cost = measured_cost("pettingzoo/pixel_toys:Lit", {"workers": 0})
    assert cost is not None
    assert cost.step_bytes == 2 * (2 * 12 * 14 * 3), "two agents' pictures, and the state made of them"
    seeing = f"COPY_COST = CopyCost(step_bytes={GB // 50})"
    (counted.parent / "seeing.py").write_text(f"{COUNTED}\n\n{seeing}\n")
    machine, said = Machine.this(), list[str]()
    run = fitted_run("seeing:make", {}, {}, said.append)
    assert run["environments"] == machine.fitting(CopyCost(memory_bytes=GB // 50 * 50), 256)
    assert run["environments"] < 256
    assert run["environments"] * run["rollout_length"] * 2 * (GB // 50) <= machine.memory_bytes // 2
    assert f"{run['environments']} copies of seeing:make instead of 256: each takes 1074 MB" in said[0]


def test_simulators_are_as_many_as_the_cores_take(counted: Path, tmp_path: Path) -> None:
    run, error = _train(tmp_path, "--env", "smac/3m", "--set", "env.entry=counted:Battle")
    count = run["environments"]
    assert count in (1, 2, 4, 8, 16, 32, 64, 128, 256)
    assert min(256, 2 * CORES) <= int(str(count)) <= 4 * CORES
    assert run["rollout_length"] == 25 * min(8, 256 // int(str(count)))
    # Of the training's and the evaluation's environments, one more each says what they look like.
    assert _made(counted) == 1 + int(str(count)) + 1 + min(100, CORES)
    assert f"{count} copies of smac/3m instead of 256: each takes 629 MB and a process of its own" in error


def test_a_number_that_was_asked_for_is_kept_and_warned_about(counted: Path, tmp_path: Path) -> None:
    count = 16 * CORES
    words = ("--env", "smac/3m", "--set", "env.entry=counted:Battle", "--set", f"run.environments={count}")
    run, error = _train(tmp_path, *words, "--set", "run.rollout_length=4", "--set", "run.evaluation_episodes=1")
    assert (run["environments"], run["rollout_length"]) == (count, 4)
    assert _made(counted) == 1 + count + 1 + 1
    assert (
        f"warning: run.environments={count} and 1 more to evaluate: {count + 1} copies of smac/3m need about" in error
    )
    assert f"{count + 1} processes on {CORES} cores; going on, as asked" in error


def test_what_is_not_declared_is_measured(counted: Path, tmp_path: Path) -> None:
    assert copy_cost("counted:make") is None
    cost = measured_cost("counted:make", {"megabytes": 64})
    assert cost is not None
    assert 64 << 20 <= cost.memory_bytes < 96 << 20
    assert (cost.processes, cost.compiles) == (0, False)
    cost = measured_cost("counted:make", {"processes": 3})
    assert cost is not None
    assert cost.processes == 3
    assert measured_cost("counted:make", {"nonsense": 3}) is None
    assert measured_cost("counted:nothing", {}) is None
    counted.unlink()
    run, error = _train(
        tmp_path, "--env", "counted:make", "--set", "env.processes=1", "--set", "run.evaluation_episodes=9"
    )
    count = int(str(run["environments"]))
    assert count <= 4 * CORES
    assert _made(counted) == 2 + count + min(9, count), "measured on two, trained in B, evaluated in no more"
    assert "measuring what a copy of counted:make costs" in error


def test_a_family_of_ones_own_declares_what_a_copy_costs(counted: Path, tmp_path: Path) -> None:
    declared = CopyCost(memory_bytes=1 << 20, processes=2, compiles=True)
    assert copy_cost("declared:make") == declared
    run, error = _train(tmp_path, "--env", "declared:make", "--set", "run.rollout_length=5")
    assert run["environments"] == Machine.this().fitting(declared, 256)
    assert run["rollout_length"] == 5, "what was asked for is kept"
    assert "measuring" not in error
    assert f"first rollout: 5 steps in each of {run['environments']} environments, compiling" in error


def test_vectorised_families_keep_their_defaults() -> None:
    said: list[str] = []
    for name in ("mpe/simple_spread", "coordsum/sum-to-10", "lbfws/easy", "mamujoco/Ant-4x2", "vmas/navigation"):
        assert copy_cost(name) == CopyCost()
        settings = validate(RunSettings, fitted_run(name, {}, {"seed": 3}, said.append), "run")
        assert settings == validate(RunSettings, {"seed": 3}, "run")
        assert settings.environments == 256
        assert evaluation_copies(name, 1000, 4) == 100
        assert few_copies(name, 16) == 16
    assert evaluation_copies("lbf/8x8-2p-2f-coop", 100, 4) == 100
    assert not said


def test_fitting() -> None:
    """Half of the memory, four processes a core, powers of 2."""
    machine = Machine(cores=6, memory_bytes=16 * GB)
    assert machine.fitting(CopyCost(), 100) == 100
    assert machine.fitting(CopyCost(memory_bytes=GB // 100), 256) == 256
    assert machine.fitting(CopyCost(memory_bytes=GB), 256) == 8
    assert machine.fitting(CopyCost(memory_bytes=GB), 8) == 8
    assert machine.fitting(CopyCost(memory_bytes=GB), 5) == 5
    assert machine.fitting(CopyCost(memory_bytes=100 * GB), 256) == 1
    assert machine.fitting(CopyCost(processes=1), 256) == 16
    assert machine.fitting(CopyCost(processes=5), 256) == 4
    assert machine.fitting(CopyCost(processes=50), 256) == 1
    assert machine.complaint(CopyCost(GB, 1), 16) == ""
    assert machine.complaint(CopyCost(GB), 17) == "18.3 GB of memory where there are 17.2 GB"
    assert machine.complaint(CopyCost(0, 2), 60) == "120 processes on 6 cores"
    assert Machine.this().cores == len(os.sched_getaffinity(0))
