"""A full disk: told in one line with what to do, nothing that was trained is lost, and the run goes on later."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hmarl.trainer.records.problems import StorageError
from hmarl.trainer.runs.run import Run
from hmarl.trainer.runs.stopping import StopRequest
from training_runs import command_line, final_hash, tiny_config, train

pytestmark = pytest.mark.usefixtures("single_thread")

CONFIG = tiny_config("happo", "toy_environments:masked_discrete", {}, {"steps": 400, "evaluation_interval": 120})
FULL = "No space left on device; free some space"
Mount = Callable[[Path], Path]
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Makes a file system of 1 MiB at a path."""
    mounted: list[Path] = []

    def make(path: Path) -> Path:
        path.mkdir(parents=True)
        if os.geteuid() or shutil.which("mount") is None:
            pytest.skip("a small file system can be mounted by root alone")
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "hmarl-test", str(path)], check=False, capture_output=True
        )
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
        mounted.append(path)
        return path

    yield make
    for path in reversed(mounted):
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("unbroken") / "run"
    train(CONFIG, run)
    return run


def fill(folder: Path) -> None:
    with (folder / "filler").open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue


class Filling(StopRequest):
    """Fills a folder's disk when a run has got its first checkpoint."""

    def __init__(self, folder: Path, run: Path) -> None:
        super().__init__()
        self._folder, self._first = folder, run / "checkpoints" / "step-000000000080.json"

    def __call__(self) -> bool:
        if self._first.exists() and not (self._folder / "filler").exists():
            fill(self._folder)
        return False


def failure(run: Run, stop: StopRequest | None = None) -> str:
    """The line that a user sees of training that could not write."""
    try:
        with pytest.raises(StorageError) as raised:
            run.train(stop)
    finally:
        run.close()
    return "; ".join((str(raised.value), *raised.value.__notes__))


def figures(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.endswith("_s")} for row in rows]


def go_on(call: Call, run: Path, unbroken: Path) -> None:
    """The command that was named, with space again, ends as if nothing had happened."""
    code, _, error = call("train", "--resume", str(run))
    assert code == 0, error
    assert final_hash(run) == final_hash(unbroken)
    assert figures(run) == figures(unbroken)
    assert json.loads((run / "summary.json").read_text())["problems"] == []
    assert not list(run.rglob("*.tmp"))


def test_no_space_for_a_checkpoint(mount: Mount, call: Call, unbroken: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    folder = mount(run / "checkpoints")
    before = f"the last good checkpoint is in {folder} (step-000000000080); continue with: hmarl-train --resume {run}"
    line = failure(Run.create(CONFIG, run), Filling(folder, run))
    assert line == f"{folder}/step-000000000120.safetensors: {FULL}; {before}"
    (folder / "filler").unlink()
    go_on(call, run, unbroken)


def test_no_space_for_the_metrics(mount: Mount, call: Call, unbroken: Path, tmp_path: Path) -> None:
    run, disk = tmp_path / "run", mount(tmp_path / "disk")
    run.mkdir()
    (run / "metrics.jsonl").symlink_to(disk / "metrics.jsonl")
    line = failure(Run.create(CONFIG, run), Filling(disk, run))
    assert line.startswith(f"{run}/metrics.jsonl: {FULL}; the last good checkpoint is in {run}/checkpoints (step-")
    assert line.endswith(f"; continue with: hmarl-train --resume {run}")
    (disk / "filler").unlink()
    go_on(call, run, unbroken)


def test_no_space_for_an_evaluation(mount: Mount, call: Call, unbroken: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fill(mount(run / "eval"))
    line = failure(Run.create(CONFIG, run))
    kept = f"the last good checkpoint is in {run}/checkpoints (step-000000000120)"
    assert line.startswith(f"{run}/eval/step-000000000120.json: {FULL}; {kept}")
    (run / "eval" / "filler").unlink()
    go_on(call, run, unbroken)


@pytest.mark.parametrize(("name", "told"), [("tensorboard", "TensorBoard: "), ("plots", "plots: not drawn")])
def test_no_space_for_what_is_only_looked_at(
    name: str, told: str, mount: Mount, call: Call, unbroken: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    fill(mount(run / name))
    code, _, error = call("train", *command_line(CONFIG, run))
    assert code == 4, error
    assert f"hmarl-train: trained and saved in {run}, but {told}" in error
    assert "No space left on device" in error
    assert "Traceback" not in error
    (run / name / "filler").unlink()
    go_on(call, run, unbroken)


def test_no_space_for_the_summary_or_the_configuration(
    mount: Mount, call: Call, unbroken: Path, tmp_path: Path
) -> None:
    disk = mount(tmp_path / "disk")
    run = disk / "run"
    train(CONFIG, run)
    (run / "summary.json").unlink()
    fill(disk)
    line = failure(Run.resume(run))
    assert line.startswith(f"{run}/summary.json: {FULL}; the last good checkpoint is in {run}/checkpoints")
    code, _, error = call("train", *command_line(CONFIG, disk / "another"))
    assert code == 2, error
    assert f"hmarl-train: --out {disk}/another: cannot write there (No space left on device)" in error
    assert not (disk / "another").exists()
    (disk / "filler").unlink()
    go_on(call, run, unbroken)
