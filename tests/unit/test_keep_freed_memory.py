"""Memory of tensors that are gone stays with a run's process, and goes back to the system where it is told so."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt") or not sys.platform.startswith("linux"), reason="needs glibc"
)
# In a process of its own: what is told to the C library stays for as long as there is one.
CHILD = """
import sys
from pathlib import Path
import torch
from hmarl.trainer.runs.training import Training
from training_runs import tiny_config

def held():
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) // 1024

training = Training(tiny_config("mappo", "mpe/simple_spread", {}, {"keep_freed_memory": sys.argv[1] == "True"}))
before = held()
for megabytes in (2, 40):
    tensors = [torch.ones(megabytes, 2**18) for _ in range(160 // megabytes)]
    assert held() - before >= 150
    del tensors
    print(held() - before)
training.close()
"""


@pytest.mark.parametrize("keep", [True, False])
def test_memory_of_tensors_that_are_gone(keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))
    done = subprocess.run([sys.executable, "-c", CHILD, str(keep)], capture_output=True, text=True, check=True)
    held = [int(line) for line in done.stdout.split()]
    assert len(held) == 2
    assert min(held) >= 150 if keep else max(held) < 20, held
