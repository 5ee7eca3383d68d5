"""Bundles written byte by byte, as no exporter writes them, and what hmarl-verify says of them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hmarl.runtime.bundle import BundleError
from hmarl.runtime.commands import verify
from toy_bundle import toy_agent, toy_graph, toy_manifest

GRAPH = "agents/a.onnx"


def plain_agent(agent_id: str = "a", **fields: Any) -> dict[str, Any]:
    """The manifest's entry that goes with ``plain_graph``."""
    entry = toy_agent(agent_id, observation_size=6, action="discrete", sizes=(8,), plain=True)
    return {**entry, "file": GRAPH, **fields}


def plain_graph() -> bytes:
    return toy_graph(plain=True)


def manifest_bytes(contents: Mapping[str, bytes], *agents: dict[str, Any], **fields: Any) -> bytes:
    """A manifest of right hashes; ``fields`` replace what it says otherwise."""
    manifest = toy_manifest(list(agents) or [plain_agent()])
    manifest["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return json.dumps({**manifest, **fields}).encode()


def hash_line(manifest: bytes) -> bytes:
    return f"{hashlib.sha256(manifest).hexdigest()}  manifest.json\n".encode()


def write_raw(path: Path, files: Mapping[str, bytes], manifest: bytes | None = None) -> Path:
    """A bundle directory of right hashes, nothing else about it checked."""
    manifest = manifest_bytes(files) if manifest is None else manifest
    for name, content in {**files, "manifest.json": manifest, "manifest.sha256": hash_line(manifest)}.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def raw_graph(path: Path, graph: bytes, *agents: dict[str, Any]) -> Path:
    """A bundle directory with this graph."""
    return write_raw(path, {GRAPH: graph}, manifest_bytes({GRAPH: graph}, *agents))


@dataclass
class Finished:
    """How a program ended: exit code, output, and what it took at its peak (its children's not included)."""

    code: int
    output: str
    errors: str
    seconds: float
    peak_mib: float


# The kernel counts what a process was before it became a program into its peak: a small one starts it and asks.
_MEASURED = """
import resource, subprocess, sys
process = subprocess.Popen(sys.argv[2:], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
try:
    output, errors = process.communicate(timeout=float(sys.argv[1]))
except subprocess.TimeoutExpired:
    process.kill()
    output, errors = process.communicate()
sys.stdout.buffer.write(output)
sys.stderr.buffer.write(errors)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
sys.stdout.buffer.write(f"\\n{process.returncode} {peak}".encode())
"""


def run_module(module: str, *arguments: object, limit_s: float = 60.0) -> Finished:
    """A program of the runtime as a real process; killed, with code -9, at the limit."""
    begin = time.monotonic()
    command = [sys.executable, "-m", f"hmarl.runtime.commands.{module}", *map(str, arguments)]
    done = subprocess.run(
        [sys.executable, "-S", "-c", _MEASURED, str(limit_s), *command], capture_output=True, text=True, check=True
    )
    output, _, measured = done.stdout.rpartition("\n")
    code, peak = map(int, measured.split())
    return Finished(code, output, done.stderr, time.monotonic() - begin, peak / 1024)


def refusal(path: Path) -> str:
    """The one line with which ``hmarl-verify`` refuses a bundle with exit code 3; run in this process."""
    with pytest.raises(BundleError) as refused:
        verify.verify.callback(path, "cpu", as_json=False)
    return checked_line(refused.value.exit_code, f"hmarl-verify: {refused.value}\n")


def refusal_of_process(path: Path, limit_s: float = 60.0) -> str:
    """The same of a real process, which must not take much memory."""
    done = run_module("verify", path, limit_s=limit_s)
    assert done.peak_mib < 250
    return checked_line(done.code, done.errors)


def checked_line(code: int, errors: str) -> str:
    assert code == 3, (code, errors[-500:])
    line = errors.removesuffix("\n")
    assert line.startswith("hmarl-verify: ")
    assert line.isprintable()
    assert len(line) < 2000
    return line
