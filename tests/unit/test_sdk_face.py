"""What programs import from ``hmarl.sdk``: complete, lazy, and the same to a type checker as to Python."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import hmarl.sdk as face
from hmarl.sdk import _moved


def imports_for_type_checkers() -> dict[str, tuple[str, str]]:
    """Name in the face -> module and name there, as the block under TYPE_CHECKING says."""
    assert face.__file__ is not None
    tree = ast.parse(Path(face.__file__).read_text())
    (block,) = (each for each in tree.body if isinstance(each, ast.If) and ast.unparse(each.test) == "TYPE_CHECKING")
    return {
        alias.asname or alias.name: (str(each.module), alias.name)
        for each in block.body
        if isinstance(each, ast.ImportFrom)
        for alias in each.names
    }


def python(program: str, *options: str) -> str:
    return subprocess.run(
        [sys.executable, *options, "-c", program], check=True, capture_output=True, text=True, timeout=120
    ).stdout


def test_python_finds_what_a_type_checker_sees() -> None:
    seen = imports_for_type_checkers()
    assert sorted(seen) == sorted(face.__all__) == sorted(dir(face))
    for name, (module, there) in seen.items():
        assert getattr(face, name) is getattr(importlib.import_module(module), there), name


def test_another_name_is_a_plain_error() -> None:
    with pytest.raises(ImportError, match=r"cannot import name 'AgentClinet' from 'hmarl\.sdk'"):
        exec("from hmarl.sdk import AgentClinet")
    assert not hasattr(face, "importlib_metadata")


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    loaded = json.loads(python("import json, sys, hmarl.sdk; print(json.dumps(sorted(sys.modules)))"))
    assert "hmarl.sdk._moved" in loaded
    assert not {"numpy", "grpc", "onnxruntime", "gymnasium", "hmarl.sdk.errors"}.intersection(loaded)


OLD_IMPORTS = """
import json, warnings
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    from hmarl.sdk.agent import Action, AgentError, LocalAgent, agent_spec
    from hmarl.sdk.client import AgentClient, AsyncAgentClient
    from hmarl.sdk.conformance import check_environment
    from hmarl.sdk.clients.fallback import Call, Fail, Hold, NoOp, Zero
    from hmarl.sdk.teams import BundleTeam, FleetTeam, load_endpoints
    import hmarl.sdk.clients.fallback as fallback
    fallback.Hold, fallback.Hold  # has been told
from hmarl.sdk.fallback import Call
from hmarl.sdk.evaluation import Evaluation, as_numpy, episode_seeds, evaluate
from hmarl.sdk.spaces import AgentSpec
from hmarl.sdk.environment import Observation
from hmarl.sdk.environments import make
from hmarl.sdk.team import RandomTeam
import hmarl.sdk
assert AgentClient is hmarl.sdk.AgentClient and Hold is hmarl.sdk.Hold and evaluate is hmarl.sdk.evaluate
print(json.dumps([[each.category.__name__, str(each.message), each.filename] for each in told]))
"""


def test_imports_of_version_0_1_work_and_name_the_new_ones() -> None:
    told = json.loads(python(OLD_IMPORTS))
    assert {(category, where) for category, _, where in told} == {("DeprecationWarning", "<string>")}
    messages = [message for _, message, _ in told]
    assert len(messages) == len(set(messages)) == 4 + 2 + 1 + 5 + 3
    assert "hmarl.sdk.client has moved: from hmarl.sdk import AgentClient" in messages
    assert "hmarl.sdk.agent has moved: from hmarl.sdk.clients.agent import agent_spec" in messages
    for message in messages:
        exec(message.partition(": ")[2])


def test_old_addresses_are_only_those_of_modules_that_have_moved() -> None:
    for address, homes in _moved.MOVED.items():
        assert importlib.util.find_spec(address) is not None
        assert isinstance(importlib.import_module(address), _moved.MovedModule)
        assert all(importlib.import_module(home).__name__ == home for home in homes)
    with pytest.raises(AttributeError, match=r"module 'hmarl\.sdk\.client' has no attribute 'AgentClinet'"):
        importlib.import_module("hmarl.sdk.client").AgentClinet  # noqa: B018
