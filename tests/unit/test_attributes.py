"""How classes are put together: an attribute that ``__init__`` does not make does not exist; clients have one base."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from hmarl.sdk.clients.async_client import AsyncAgentClient
from hmarl.sdk.clients.base import ClientBase, ClientOptions
from hmarl.sdk.clients.client import AgentClient

ROOT = Path(__file__).parents[2]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def assigned(function: Function) -> set[str]:
    """The attributes of ``self`` that a method assigns."""
    return {
        node.attr
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def made(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> set[str]:
    """The attributes that exist once an object has been made: of ``__init__``, of dataclasses, setters, and bases."""
    names: set[str] = set()
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and part.value is not None:
            names.add(part.target.id)
        elif isinstance(part, Function) and part.name == "__init__":
            names |= assigned(part)
        elif isinstance(part, Function) and any(ast.unparse(each).endswith(".setter") for each in part.decorator_list):
            names.add(part.name)
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and node.decorator_list:
            names.add(part.target.id)
    for base in node.bases:
        name = ast.unparse(base)
        names |= made(classes[name], classes) if name in classes else set()
    return names


@pytest.mark.parametrize("part", ["proto", "runtime", "sdk"])
def test_no_attribute_is_first_assigned_outside_init(part: str) -> None:
    trees = [ast.parse(path.read_text()) for path in (ROOT / part / "hmarl").rglob("*.py") if "_pb2" not in path.name]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    classes = {node.name: node for node in nodes}
    late = {
        f"{node.name}.{name} in {method.name}"
        for node in nodes
        for method in node.body
        if isinstance(method, Function) and method.name != "__init__"
        for name in assigned(method) - made(node, classes)
    }
    assert late <= {"_Console.quiet in on_broken_pipe"}  # rich's own


def test_clients_have_one_base_and_one_list_of_options() -> None:
    for client in (AgentClient, AsyncAgentClient):
        assert client.__mro__ == (client, ClientBase, object)
    named = {
        name
        for name, parameter in inspect.signature(ClientBase).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert set(ClientOptions.__annotations__) == named
    with pytest.raises(TypeError, match="unexpected keyword argument 'timeout'"):
        AgentClient("127.0.0.1:1", timeout=1.0)  # type: ignore[call-arg]
