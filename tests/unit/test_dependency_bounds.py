"""The generated protocol modules refuse older libraries at import; the declared bounds must say so too."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "proto/hmarl/agent/v1"


def lower_bound(package: str) -> tuple[int, ...]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (found,) = [
        requirement.removeprefix(f"{package}>=")
        for requirement in [*project["dependencies"], *project["optional-dependencies"]["dev"]]
        if requirement.startswith(f"{package}>=")
    ]
    return tuple(int(part) for part in found.split("."))


@pytest.mark.parametrize("package", ["grpcio", "grpcio-health-checking", "grpcio-reflection", "grpcio-tools"])
def test_the_grpc_bound_is_the_generated_services_own(package: str) -> None:
    text = (GENERATED / "agent_pb2_grpc.py").read_text()
    needed = re.search(r"GRPC_GENERATED_VERSION = '([\d.]+)'", text)
    assert needed is not None
    assert lower_bound(package) == tuple(int(part) for part in needed[1].split("."))


def test_the_protobuf_bound_is_the_generated_messages_own() -> None:
    text = (GENERATED / "agent_pb2.py").read_text()
    needed = re.search(r"ValidateProtobufRuntimeVersion\(\s*[\w.]+,\s*(\d+),\s*(\d+),\s*(\d+),", text)
    assert needed is not None
    assert lower_bound("protobuf") == tuple(int(part) for part in needed.groups())
