"""Fixtures for all tests."""

from __future__ import annotations

import compileall
import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Pytest's importlib mode leaves sys.path alone; the helper modules beside this file are imported by name.
sys.path.insert(0, str(Path(__file__).parent))
# The channels that tests make by themselves reach agents on this machine, whatever proxy the machine has.
os.environ["no_grpc_proxy"] = "localhost,127.0.0.1"  # noqa: SIM112 - gRPC reads it so

from hmarl.runtime.bundle import Bundle
from hmarl.runtime.command_line import run as run_program
from hmarl.trainer.commands.algorithms import algorithms
from hmarl.trainer.commands.check_suite import check
from hmarl.trainer.commands.export import export
from hmarl.trainer.commands.suite import suite_command
from hmarl.trainer.commands.train import train
from hmarl.trainer.commands.tune import tune
from toy_bundle import write_toy_bundle

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "train": train, "export": export, "algorithms": algorithms, "suite": suite_command, "check-suite": check,
    "tune": tune,
}  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Compile hmarl once, before workers are started. Tests run it in a thousand processes, and where Python is told to
    write no bytecode, as in most containers, each of them would compile anew what it imports.
    """
    if not hasattr(config, "workerinput"):
        for part in ("proto", "runtime", "sdk", "trainer"):
            compileall.compile_dir(ROOT / part, quiet=2)


def pytest_collection() -> None:
    """Collecting imports and makes hundreds of thousands of objects that stay until the end: looking for garbage among
    them, again and again, is a third of the time that it takes.
    """
    gc.disable()


def pytest_collection_finish() -> None:
    """From now on garbage is looked for again, among what the tests themselves make."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of two discrete agents with mask, recurrent state, instructions and noises; do not change its files."""
    return write_toy_bundle(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture(scope="session")
def interchangeable_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same, but its agents share one graph, and further ones may act by it; do not change its files."""
    return write_toy_bundle(tmp_path_factory.mktemp("interchangeable") / "bundle", interchangeable=("agent",))


@pytest.fixture
def single_thread() -> Iterator[None]:
    """Torch computes on one thread: for tests of the trainer, whose tensors are tiny."""
    import torch  # noqa: PLC0415 - not for tests that do without

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process draw no plots, which takes longer than to train for four updates: for tests that look at
    none. What draws them has tests of its own.
    """
    from hmarl.trainer.runs import run  # noqa: PLC0415 - not for tests that do without torch

    monkeypatch.setattr(run, "draw_run", lambda *_: None)


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Runs a whole command of the trainer in this process: (name, *arguments) -> exit code, stdout, stderr."""
    monkeypatch.delenv("HMARL_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def run(name: str, *arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run_program(COMMANDS[name], arguments)
        output = capfd.readouterr()
        return code, output.out, output.err

    return run
