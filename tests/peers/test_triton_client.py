"""NVIDIA's tritonclient, in a virtual environment of its own, plays agents as it plays Triton's models."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent_process import AgentProcess
from hmarl.runtime.bundle import Bundle, load_bundle
from hmarl.runtime.session import Policy
from hmarl.sdk import LocalAgent
from installed import ROOT
from serving import SHIPPED_BUNDLE, shipped_fleet

pytestmark = pytest.mark.peers
REQUIREMENTS = ("tritonclient[grpc]==2.73.0", "numpy==2.4.1")
SESSION = Path(__file__).with_name("triton_session.py")
LEGAL = np.array([True, True, False, True, True])


def observation(step: int) -> np.ndarray:
    return np.random.default_rng(step).normal(size=6).astype(np.float32)


def local_actions(bundle: Bundle, agent_id: str, steps: int) -> list[int]:
    agent = LocalAgent(bundle, agent_id)
    agent.reset(7, sample=True)
    return [int(agent.act(observation(step), LEGAL).action) for step in range(steps)]


def likeliest(bundle: Bundle, rows: int) -> list[int]:
    """Of each row by itself, from an all-zero state."""
    session = Policy(bundle, "agent_0").session()
    actions = []
    for row in range(rows):
        session.reset(0, states={"state": np.zeros(8, np.float32)})
        actions.append(int(session.act(observation(row), LEGAL).action))  # type: ignore[arg-type]
    return actions


def told(report: dict[str, Any]) -> str:
    """The run as text, for docs/results/triton.md."""
    lines = [
        f"{date.today()}, {platform.machine()}, Python {platform.python_version()}: tritonclient "
        f"{report['tritonclient']}, protobuf {report['protobuf']}",
    ]
    for name in ("live", "ready", "model ready", "another model ready"):
        lines.append(f"{name}: {report[name]}")
    lines += [f"{name}: {value}" for name, value in report["metadata"].items()]
    lines += [f"{name}, drawn, seed 7, sequence 42: {actions}" for name, actions in report["sequences"].items()]
    lines.append(f"agent_0, a sequence with a string id: {report['sequence with a string id']}")
    lines.append(f"agent_0, state as tensors: {report['by itself']}")
    lines.append(f"agent_0, 128 rows: {report['128 rows'][:20]} ...")
    lines += [f"{name}: {said}" for name, said in report["errors"].items()]
    return "\n".join(lines)


def test_tritonclient(
    peer_python: Callable[[str, Sequence[str]], Path], toy_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    python = peer_python("tritonclient", REQUIREMENTS)
    with (
        AgentProcess(toy_bundle.path, "agent_0", options=("--oip",)) as first,
        AgentProcess(toy_bundle.path, "agent_1", options=("--oip",)) as second,
    ):
        command = [str(python), str(SESSION), first.address, second.address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    with capsys.disabled():
        print(f"\n{told(report)}")
    assert (report["live"], report["ready"], report["model ready"]) == (True, True, True)
    assert report["another model ready"] is False
    assert report["metadata"]["model"] == ["agent_0", toy_bundle.sha256, "onnxruntime_onnx"]
    assert report["metadata"]["inputs"] == [
        ["observation", "FP32", -1, 6],
        ["action_mask", "BOOL", -1, 5],
        ["state", "FP32", -1, 8],
    ]
    wanted = {name: local_actions(toy_bundle, name, 20) for name in ("agent_0", "agent_1")}
    assert report["sequences"] == wanted
    assert report["sequence with a string id"] == report["by itself"] == wanted["agent_0"]
    assert report["128 rows"] == likeliest(toy_bundle, 128)
    kinds = {name: said.partition(":")[0] for name, said in report["errors"].items()}
    not_found = {"an unknown model", "an unknown version", "a sequence that was not begun"}
    assert kinds == {
        name: "StatusCode.NOT_FOUND" if name in not_found else "StatusCode.INVALID_ARGUMENT" for name in kinds
    }


def test_the_pages_example_works_as_it_stands(
    peer_python: Callable[[str, Sequence[str]], Path], tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "runtime.md").read_text()
    (code,) = re.findall(
        r"^```python title=\"Not run by the tests: it needs NVIDIA's client.*?\n(.*?)^```$",
        page,
        re.DOTALL | re.MULTILINE,
    )
    with shipped_fleet(tmp_path / "endpoints.json", "--oip"):
        command = [str(peer_python("tritonclient", REQUIREMENTS)), "-c", code]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    agent = LocalAgent(load_bundle(SHIPPED_BUNDLE), "agent_0")
    agent.reset(1, sample=True)
    wanted = [f"[{agent.act(np.zeros(18, np.float32)).action}]" for _ in range(3)]
    assert done.stdout.splitlines()[-3:] == wanted
