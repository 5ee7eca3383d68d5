"""Programs that are called in a folder that a stranger has filled run none of its files, nor do their children."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from command_lines import TESTS, command
from processes import wait_for
from serving import SHIPPED_BUNDLE
from toy_bundle import write_toy_bundle

# What children import, of the standard library, of what is installed and of what Python looks for by itself.
# Two of them have no __init__.py: whatever comes last on the path would hide them.
WITHOUT_INIT = ("google", "hmarl")
NAMES = (*WITHOUT_INIT, "click", "grpc", "json", "multiprocessing", "numpy", "onnxruntime", "sitecustomize", "torch")
TRAP = """
import os
with open({trace!r}, "a") as file:
    print(__name__, "in", open("/proc/self/cmdline").read().replace(chr(0), " "), file=file)
raise RuntimeError("a stranger's file")
"""
SUITE = """
tasks = ["coordsum/sum-to-10"]
algorithms = ["happo"]
seeds = [1]
steps = 40
evaluations = 1
settings.run = { environments = 4, rollout_length = 10, evaluation_episodes = 2 }
settings.algorithm = { hidden_sizes = [8], critic_hidden_sizes = [8] }
"""


class Folder:
    """A stranger's folder; which of its files have run."""

    def __init__(self, path: Path, trace: Path) -> None:
        self.path, self._trace = path, trace
        path.mkdir()
        for name in NAMES:
            (path / f"{name}.py").write_text(TRAP.format(trace=str(trace)))

    @property
    def variables(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        return {**kept, "XDG_CACHE_HOME": str(self._trace.parent / "cache")}

    def call(self, program: str, *arguments: object) -> None:
        done = subprocess.run(
            command(program, *arguments),
            cwd=self.path,
            env=self.variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert self.traces() == ""
        assert done.returncode == 0, done.stderr
        assert "stranger" not in done.stderr

    @contextmanager
    def running(self, program: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
        words = command(program, *arguments)
        with subprocess.Popen(
            words, cwd=self.path, env=self.variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                yield process
            finally:
                process.terminate()
                process.communicate(timeout=60)

    def serves(self, program: str, *arguments: object) -> None:
        out = self.path / "endpoints.json"
        with self.running(program, *arguments, "--out", out) as process:
            wait_for(lambda: out.exists() or process.poll() is not None, "starting", 120.0)
            assert self.traces() == ""
            assert out.exists()

    def traces(self) -> str:
        return self._trace.read_text() if self._trace.exists() else ""


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "download", tmp_path / "trace")


def test_the_traps_work(folder: Folder) -> None:
    done = subprocess.run(
        command("python", "-m", "hmarl.runtime.commands.agent"), cwd=folder.path, env=folder.variables, check=False
    )
    assert done.returncode != 0
    assert "hmarl in " in folder.traces()


def test_a_fleet_is_served(folder: Folder) -> None:
    write_toy_bundle(folder.path / "bundle", agents=("agent_0",))
    folder.serves("hmarl-fleet", "bundle")


def test_a_bundle_brings_such_a_file(folder: Folder, tmp_path: Path) -> None:
    trap = (folder.path / "grpc.py").read_bytes()
    folder.path = write_toy_bundle(tmp_path / "bundle", agents=("agent_0",), more_files={"grpc.py": trap}).path
    folder.serves("hmarl-fleet", ".")


def test_a_team_of_the_zoo_is_served(folder: Folder) -> None:
    folder.serves("hmarl-zoo", "serve", "simple-spread-hcpo")


def test_what_deployment_costs_is_measured(folder: Folder) -> None:
    folder.call("hmarl-gap", "--bundle", SHIPPED_BUNDLE, "--episodes", 2, "--faults", "none", "--out", "gap")


def test_a_suite_trains(folder: Folder) -> None:
    (folder.path / "suite.toml").write_text(SUITE)
    folder.call("hmarl-suite", "suite.toml", "--out", "out", "--jobs", 1)


def test_copies_of_an_environment_run_in_worker_processes(folder: Folder, tmp_path: Path) -> None:
    """Shared memory has a process of its own, which Python starts."""
    folder.call("hmarl-check-env", "rware/tiny-2ag", "--steps", 5, "--set", "env.workers=2")


def test_a_copy_of_ones_own_environment_is_measured(folder: Folder) -> None:
    """It lies there, and is found; what is installed, and has an __init__.py, comes first."""
    for name in WITHOUT_INIT:
        (folder.path / f"{name}.py").unlink()
    (folder.path / "mine.py").write_text((TESTS / "toy_environments.py").read_text())
    folder.call("hmarl-train", "happo", "--env", "mine:masked_discrete", "--steps", 40, "--out", "run")
