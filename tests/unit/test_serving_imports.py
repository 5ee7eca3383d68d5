"""What an agent imports is memory that every agent of a team takes: nothing that serving can do without."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version

import pytest

from hmarl.runtime import __version__

DONE_WITHOUT = {
    "difflib", "email", "grpc_reflection", "http.server", "importlib.metadata", "opentelemetry", "prometheus_client",
    "shutil", "tempfile", "zipfile",
}  # fmt: skip
PROGRAM = """
import json, sys
import google.protobuf.descriptor_pb2, grpc, grpc_health.v1.health_pb2, msgspec, numpy, onnxruntime
before = set(sys.modules)
import hmarl.runtime.bundle, hmarl.runtime.commands.agent, hmarl.runtime.server, hmarl.runtime.session
import hmarl.runtime.systemd, hmarl.runtime.trial
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_an_agent_imports_nothing_that_serving_can_do_without() -> None:
    output = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True, timeout=120)
    imported = json.loads(output.stdout)
    assert "hmarl.runtime.server" in imported
    assert not DONE_WITHOUT.intersection(imported)


@pytest.mark.parametrize("command", ["agent", "fleet"])
def test_grpc_comes_after_it_was_said_what_it_may_log(command: str) -> None:
    """It asks at its import, and what it writes itself each peer can cause at will."""
    program = f"import sys, hmarl.runtime.commands.{command}; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=120).returncode == 0


def test_the_code_knows_the_version_that_is_installed() -> None:
    assert __version__ == version("hmarl")
