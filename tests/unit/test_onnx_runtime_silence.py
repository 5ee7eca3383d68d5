"""ONNX Runtime sends nothing and leaves nothing behind where hmarl runs a policy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hmarl.runtime.bundle import Bundle
from isolation import ISOLATED, needs_isolation

RUN = """
import os, sys
if sys.argv[2:]:
    import onnxruntime
from hmarl.runtime.bundle import load_bundle
from hmarl.runtime.session import Policy
policy = Policy(load_bundle(sys.argv[1]), "agent_0")
print(len(os.listdir("/proc/self/task")))
"""
# What keeps it silent by itself, on machines that test.
CI = {"CI", "TF_BUILD", "GITHUB_ACTIONS", "ORT_RUNNING_UNIT_TESTS", "ORT_DISABLE_TELEMETRY"}


def run(bundle: Bundle, home: Path, *words: str) -> int:
    """Load a policy in a process of its own, with its own home; returns the number of its threads."""
    home.mkdir()
    variables = {name: value for name, value in os.environ.items() if name not in CI and not name.startswith("XDG_")}
    command = [*ISOLATED, sys.executable, "-c", RUN, str(bundle.path), *words]
    done = subprocess.run(command, env=variables | {"HOME": str(home)}, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_no_device_id_no_uploader(toy_bundle: Bundle, tmp_path: Path) -> None:
    """The uploader has threads; the device's id and the events that wait lie in the user's cache."""
    needs_isolation()  # the control shall reach no one
    silent = run(toy_bundle, tmp_path / "home")
    assert not list((tmp_path / "home").rglob("*"))
    if run(toy_bundle, tmp_path / "other", "first") == silent:
        pytest.skip("this ONNX Runtime has no telemetry")
    assert list((tmp_path / "other").rglob("*deviceid*")), "the control: imported before, it had begun"
