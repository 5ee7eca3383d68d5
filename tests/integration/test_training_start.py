"""A run says at once what it is busy with, throws nothing away, and refuses first what would fail later."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from command_lines import command, run_in_pipes, surroundings
from hmarl.sdk.errors import UsageError
from hmarl.sdk.files import check_writable, make_directory
from hmarl.trainer.runs.devices import device_named
from training_runs import tiny_config, train

Call = Callable[..., tuple[int, str, str]]
FAST = (
    "--set",
    "run.environments=4",
    "--set",
    "run.rollout_length=12",
    "--set",
    "run.evaluation_episodes=4",
    "--set",
    "run.threads=1",
)
# Waits at every gate until a file of that name appears in GATES, and notes in the file "made" what it does.
GATED = """
import os
import time
from pathlib import Path

from hmarl.sdk.environment import CopyCost
from hmarl.sdk.environments import make as make_other

COPY_COST = CopyCost(compiles=True)
GATES = Path(os.environ["GATES"])


def note(line):
    with (GATES / "made").open("a") as file:
        print(line, file=file)


def wait(gate):
    while not (GATES / gate).exists():
        time.sleep(0.01)


class Gated:
    def __init__(self, batch_size):
        self._inner = make_other("mpe/simple_spread", batch_size)
        self.spec, self.batch_size = self._inner.spec, batch_size

    def step(self, actions):
        wait("step")
        note("step")
        return self._inner.step(actions)

    def __getattr__(self, name):
        return getattr(self._inner, name)


def make(batch_size):
    note(f"make {batch_size}")
    wait("make")
    return Gated(batch_size)
"""


@pytest.fixture
def gates(tmp_path: Path) -> Path:
    """The folder of the gates; the module ``gated`` lies beside it."""
    (tmp_path / "gated.py").write_text(GATED)
    folder = tmp_path / "gates"
    folder.mkdir()
    return folder


def test_every_stage_is_announced_as_it_begins_and_nothing_is_thrown_away(gates: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = command("hmarl-train", "happo", "--env", "gated:make", "--steps", 144, "--out", run, *FAST, "--json")
    process = subprocess.Popen(
        words, env=surroundings(tmp_path, GATES=str(gates)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None

    def read_until(text: str) -> None:
        """The gates are closed: what is not said by now never will be."""
        assert process.stderr is not None
        for line in process.stderr:
            if text in line:
                return
        raise AssertionError(f"'{text}' was never said")

    read_until(f"training happo on gated:make for 144 steps into {run}")
    read_until("building 4 copies of gated:make, compiling")
    (gates / "make").touch()
    read_until("first rollout: 12 steps in each of 4 environments, compiling")
    (gates / "step").touch()
    read_until("first update; the rollout took ")
    read_until("expected time ")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0
    assert json.loads(output)["updates"] == 3, "nothing but the summary in standard output"
    done = (gates / "made").read_text().splitlines()
    assert [line for line in done if line != "step"] == ["make 4", "make 4"], "one to train in, one to evaluate in"
    assert done.count("step") == 3 * 12 + 2 * 25, "an evaluation in each mode"


def _refused(call: Call, out: Path, gates: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is said of a run into ``out``; no environment is made for it."""
    monkeypatch.setenv("GATES", str(gates))
    monkeypatch.syspath_prepend(str(gates.parent))
    code, output, error = call("train", "happo", "--env", "gated:make", "--steps", "48", "--out", str(out), *FAST)
    assert (code, output) == (2, ""), error
    assert not (gates / "made").exists(), "an environment was made"
    (line,) = error.splitlines()[-1:]
    assert line.startswith(f"hmarl-train: --out {out}: cannot write there ("), line
    return line


def test_a_directory_that_cannot_be_written_is_refused_at_once(
    call: Call, gates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    assert "Not a directory" in _refused(call, file, gates, monkeypatch)
    assert "Not a directory" in _refused(call, file / "run", gates, monkeypatch)
    assert file.read_text() == "mine"
    # Superusers may write into any directory, but not into the kernel's.
    _refused(call, Path("/proc/1/nothing/run"), gates, monkeypatch)
    assert "File name too long" in _refused(call, tmp_path / "new" / ("x" * 300), gates, monkeypatch)
    assert not (tmp_path / "new").exists(), "nothing is left behind"
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        assert "Permission denied" in _refused(call, tmp_path / "locked" / "run", gates, monkeypatch)


def test_a_disk_without_room_is_found_at_once(gates: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: names can still be made there."""
    out = tmp_path / "run"
    words = command("hmarl-train", "happo", "--env", "gated:make", "--out", out, *FAST)
    # Set by a shell: Python's own code between fork and exec may abort where other tests have left threads behind.
    done = subprocess.run(
        ["sh", "-c", 'ulimit -f 1 && exec "$@"', "sh", *words],
        env=surroundings(tmp_path, GATES=str(gates)),
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"hmarl-train: --out {out}: cannot write there (File too large)")
    assert not (gates / "made").exists()
    assert not out.exists()


def test_what_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("mine")
    check_writable(tmp_path / "run", "--out")
    check_writable(tmp_path / "run" / "deeper" / "still", "--out")
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "mine"]
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="--out: cannot write there"):
        check_writable(tmp_path / "link", "--out")


def test_runs_that_begin_at_the_same_time_may_share_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """Each finds out by making it, and takes away what it has made, while the others do."""
    beginning = threading.Barrier(4)

    def begin(number: int) -> None:
        for each in range(100):
            beginning.wait(10)
            check_writable(tmp_path / str(each) / "runs" / str(number), "--out")
            make_directory(tmp_path / str(each) / "made" / str(number))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(begin, range(4)))
    assert list(tmp_path.glob("*/runs/*")) == []
    assert len(list(tmp_path.glob("*/made/*"))) == 4 * 100


def test_evaluation_and_export_find_it_out_before_they_begin(call: Call, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_config("happo", "mpe/simple_spread", run_settings={"steps": 40}), run)
    file = tmp_path / "file"
    file.write_text("mine")
    code, output, error = run_in_pipes("hmarl-eval", "--run", run, "--episodes", 2, "--out", file / "results")
    assert (code, output) == (2, ""), "nothing was played"
    assert f"hmarl-eval: --out {file}/results: cannot write there (Not a directory)" in error
    code, _, error = call("export", str(run), "--out", str(file / "bundle"))
    assert code == 2
    assert f"hmarl-export: --out {file}/bundle: cannot write there (Not a directory)" in error


def test_a_directory_is_refused_before_anything_is_measured(
    call: Call, gates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a number of environments, what one costs is measured: that takes long, and is for nothing here."""
    (gates.parent / "undeclared.py").write_text(GATED.replace("COPY_COST =", "OTHER ="))
    monkeypatch.setenv("GATES", str(gates))
    monkeypatch.syspath_prepend(str(gates.parent))
    run, file = tmp_path / "run", tmp_path / "file"
    run.mkdir()
    (run / "config.json").touch()
    file.touch()
    for out, said in ((run, f"{run} already holds a run"), (file, f"{file}: cannot write there (Not a directory)")):
        code, _, error = call("train", "happo", "--env", "undeclared:make", "--out", str(out))
        assert code == 2
        assert said in error
        assert "measuring" not in error
    assert not (gates / "made").exists(), "an environment was made"


def test_what_to_do_is_something_that_helps(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is resumed has but one directory, and a full disk has room again when something is deleted."""
    run = tmp_path / "run"
    train(tiny_config("happo", "mpe/simple_spread", run_settings={"steps": 40}), run)

    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    code, _, error = call("train", "--resume", str(run))
    assert (code, error.strip().rpartition("; ")[2]) == (
        2,
        "free some space, or copy the run to where it can be written, and resume it there",
    )


@pytest.mark.parametrize("name", ["meta", "mkldnn", "vulkan", "xla", "hpu"])
def test_a_device_that_cannot_train_is_refused_by_name(call: Call, name: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, _, error = call("train", "happo", "--env", "mpe/simple_spread", "--device", name, "--out", str(out), *FAST)
    assert code == 2
    line = error.splitlines()[-1]
    assert line.startswith(
        f"hmarl-train: run.device: got '{name}', on which this torch ({torch.__version__}) cannot train"
    )
    assert "expected one of cpu" in line
    assert not out.exists()


def test_devices_that_are_there_are_taken() -> None:
    assert device_named("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match=r"got 'gpu', expected e.g. cpu or cuda:0 \(here: cpu"):
        device_named("gpu")
    with pytest.raises(UsageError, match=r"sees .* CUDA devices"):
        device_named("cuda:99")


def test_a_run_goes_on_when_the_reader_of_its_messages_has_gone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = command("hmarl-train", "happo", "--env", "mpe/simple_spread", "--steps", 96, "--out", run, *FAST)
    ours, theirs = os.pipe()
    process = subprocess.Popen(words, env=surroundings(), stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.close(ours)  # as in "hmarl-train ... 2>&1 | head"
    assert process.wait(200) == 0
    assert json.loads((run / "summary.json").read_text())["steps"] == 96
