"""What an agent imports is memory that every agent of a team takes: nothing that serving can do without."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from hmarl.runtime import __version__
from hmarl.runtime.bundle import Bundle

DONE_WITHOUT = {
    "cryptography", "difflib", "email", "grpc_reflection", "hmarl.oip", "hmarl.runtime.certificates",
    "hmarl.runtime.compatible", "hmarl.runtime.metrics", "hmarl.runtime.metrics_page", "hmarl.runtime.open_inference",
    "hmarl.runtime.signing", "hmarl.runtime.tracing", "hmarl.runtime.verify", "http.server", "importlib.metadata",
    "opentelemetry", "prometheus_client", "shlex", "shutil", "ssl", "tempfile", "zipfile",
}  # fmt: skip
# An agent that serves says what has been imported, instead of where it serves.
SERVES = """
import json, os, sys
import google.protobuf.descriptor_pb2, grpc, grpc_health.v1.health_pb2, msgspec, numpy, onnxruntime
before = set(sys.modules)
from hmarl.runtime.commands import agent

def told(text):
    print(json.dumps(sorted(set(sys.modules) - before)), flush=True)
    os._exit(0)

agent.OUTPUT.put = told
agent.main()
"""
# The same, when it starts the process in which its graph is tried.
TRIES = """
import json, os, sys
from hmarl.runtime import trial
from hmarl.runtime.commands import agent

def started():
    print(json.dumps(sorted(sys.modules)), flush=True)
    os._exit(0)

trial.TrialProcess = started
agent.main()
"""


def imported(program: str, bundle: Bundle, *options: str) -> set[str]:
    """What a real agent has imported."""
    words = [sys.executable, "-c", program, str(bundle.path), "--agent", "agent_0", "--listen", "127.0.0.1:0", *options]
    return set(json.loads(subprocess.run(words, check=True, capture_output=True, text=True, timeout=120).stdout))


def test_an_agent_imports_nothing_that_serving_can_do_without(toy_bundle: Bundle) -> None:
    found = imported(SERVES, toy_bundle)
    assert "hmarl.runtime.server" in found
    assert not DONE_WITHOUT.intersection(found)


def test_an_agent_without_grpc_loads_neither_it_nor_openssl(toy_bundle: Bundle, tmp_path: Path) -> None:
    """OpenSSL, which ``hashlib`` brings along, takes 3.7 MB."""
    program = SERVES.replace(", grpc, grpc_health.v1.health_pb2", "")
    found = imported(program, toy_bundle, "--no-grpc", "--frames", str(tmp_path / "frames"))
    assert "hmarl.runtime.frames_door" in found
    kept_out = {
        "_hashlib",
        "hashlib",
        "hmac",
        "secrets",
        "random",
        "grpc",
        "asyncio",
        "concurrent.futures",
        "numpy.random",
    }
    assert not (DONE_WITHOUT | kept_out).intersection(found)


@pytest.mark.parametrize("options", [(), ("--metrics", "127.0.0.1:0", "--oip")])
def test_a_graphs_trial_is_started_before_anything_large_is_imported(
    toy_bundle: Bundle, options: tuple[str, ...]
) -> None:
    """Both processes import at the same time: that is what an agent's start takes."""
    found = imported(TRIES, toy_bundle, *options)
    assert "hmarl.runtime.trial" in found
    assert not {"grpc", "numpy", "onnxruntime", "google.protobuf", "msgspec", "prometheus_client"}.intersection(found)


@pytest.mark.parametrize("command", ["agent", "fleet"])
def test_grpc_comes_after_it_was_said_what_it_may_log(command: str) -> None:
    """It asks at its import, and what it writes itself each peer can cause at will."""
    program = f"import sys, hmarl.runtime.commands.{command}; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=120).returncode == 0


def test_the_code_knows_the_version_that_is_installed() -> None:
    assert __version__ == version("hmarl")
