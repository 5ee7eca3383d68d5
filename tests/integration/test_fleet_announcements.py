"""What hmarl-fleet tells the person who started it, and how it ends when its agents cannot be started."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from hmarl.runtime.bundle import Bundle, BundleError, load_bundle
from processes import LIMIT_S, children

COMMANDS = "hmarl.runtime.commands"


def test_it_says_where_the_endpoints_are_how_to_stop_it_and_that_it_stops(toy_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "endpoints.json"
    command = [sys.executable, "-m", f"{COMMANDS}.fleet", str(toy_bundle.path), "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        serving = [process.stdout.readline().rpartition(" ") for _ in range(2)]
        assert [words for words, _, _ in serving] == ["agent_0 is serving on", "agent_1 is serving on"]
        assert process.stdout.readline() == f"wrote the endpoints to {out}\n"
        assert process.stdout.readline() == "Ctrl-C stops all agents\n"
        os.kill(children(process.pid)[0], signal.SIGKILL)
        assert "ended with exit code -9, starting it again in 0.1 s" in process.stderr.readline()
        again = process.stderr.readline()
        addresses = {f"agent_{number} is serving again on {address}" for number, (_, _, address) in enumerate(serving)}
        assert any(again.endswith(address) for address in addresses), again
        process.send_signal(signal.SIGINT)
        said = process.stdout.read().splitlines()
        assert process.wait(LIMIT_S) == 0
    assert said == ["stopping all agents, once their episodes have ended; Ctrl-C again ends them at once", "stopped"]


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="there is CUDA")
@pytest.mark.parametrize("command", [["agent", "--agent", "agent_0", "--listen", "127.0.0.1:0"], ["fleet"]])
def test_a_provider_that_is_not_there_is_exit_code_2(toy_bundle: Bundle, command: list[str]) -> None:
    name, *options = command
    words = [sys.executable, "-m", f"{COMMANDS}.{name}", str(toy_bundle.path), "--provider", "cuda", *options]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "hmarl-agent: provider" in done.stderr
    if name == "fleet":
        last = done.stderr.splitlines()[-1]
        assert last.startswith("hmarl-fleet: agent 'agent_")
        assert "ended with exit code 2, which starting it again cannot help; its own messages are above" in last


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    """What hmarl-train leaves behind."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    return run


def test_a_run_directory_for_a_bundle_is_answered_with_the_bundle(toy_bundle: Bundle, run_directory: Path) -> None:
    with pytest.raises(BundleError) as none:
        load_bundle(run_directory)
    asked = f"this is a run directory: export it with 'hmarl-export {run_directory}', then take {run_directory}/bundle"
    assert str(none.value) == f"bundle {run_directory}: file 'manifest.json' is missing; {asked}"
    exported = Path(shutil.copytree(toy_bundle.path, run_directory / "bundle"))
    said = f"bundle {run_directory}: file 'manifest.json' is missing; this is no bundle, there is one in it: take"
    for command in (["agent", "--agent", "agent_0"], ["fleet"], ["verify"]):
        words = [sys.executable, "-m", f"{COMMANDS}.{command[0]}", str(run_directory), *command[1:]]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 3, command
        assert done.stderr.splitlines()[-1].endswith(f"{said} {exported}"), done.stderr


def test_any_other_directory_is_not_taken_for_a_run(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is this a bundle"):
        load_bundle(tmp_path)
