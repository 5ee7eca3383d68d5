"""How the code is wired: attributes are made where an object is, and what is shared is composed, not inherited."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hmarl.sdk.clients.async_client import AsyncAgentClient
from hmarl.sdk.clients.base import ClientBase, ClientOptions
from hmarl.sdk.clients.client import AgentClient
from hmarl.sdk.environments import make
from hmarl.trainer.algorithms import ALGORITHMS
from hmarl.trainer.contract.algorithm import Algorithm
from hmarl.trainer.experience.rollout import Collector, Rollout
from hmarl.trainer.networks.settings import AlgorithmSettings, validate
from training_runs import CPU, of_use, tiny_networks

ROOT = Path(__file__).parents[2]
PARTS = ("proto", "runtime", "sdk", "trainer", "scripts")
# Where an object is made: what these assign exists from the start.
MAKERS = {"__init__", "__post_init__", "__new__"}
# How many classes of ours may stand above one another, the lowest included.
DEEPEST, DEEPEST_ERRORS = 2, 3


@dataclass(frozen=True)
class Module:
    """A source file: its classes, and where the names that it imports come from.

    Attributes:
        imported: by name here, the module and the name there.
    """

    path: Path
    classes: dict[str, ast.ClassDef]
    imported: dict[str, tuple[str, str]]

    @classmethod
    def of(cls, path: Path) -> Module:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        imported = {
            alias.asname or alias.name: (node.module or "", alias.name)
            for node in nodes
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        return cls(path, {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}, imported)


class Sources:
    """Modules by their dotted names."""

    def __init__(self, modules: dict[str, Module]) -> None:
        self.modules = modules

    @classmethod
    @cache
    def of_all_parts(cls) -> Sources:
        paths = [(part, path) for part in PARTS for path in sorted((ROOT / part).rglob("*.py"))]
        return cls(
            {
                ".".join(path.relative_to(ROOT / part).with_suffix("").parts).removesuffix(".__init__"): Module.of(path)
                for part, path in paths
                if not path.stem.endswith(("_pb2", "_pb2_grpc"))
            }
        )

    def classes(self, part: str = "") -> Iterator[tuple[Module, ast.ClassDef]]:
        for module in self.modules.values():
            if module.path.is_relative_to(ROOT / part):
                yield from ((module, node) for node in module.classes.values())

    def bases(self, module: Module, node: ast.ClassDef) -> list[tuple[Module, ast.ClassDef]]:
        """Those that are ours."""
        found = (self.find(module, name) for name in base_names(node))
        return [each for each in found if each]

    def find(self, module: Module, name: str) -> tuple[Module, ast.ClassDef] | None:
        if name in module.classes:
            return module, module.classes[name]
        holder, _, attribute = name.rpartition(".")
        if holder:  # of a module that is imported whole
            whole = ".".join(module.imported.get(holder, ("", holder)))
            return self.find(self.modules[whole], attribute) if whole in self.modules else None
        if name in module.imported:
            source, original = module.imported[name]
            return self.find(self.modules[source], original) if source in self.modules else None
        return None

    def external_bases(self, module: Module, node: ast.ClassDef) -> set[str]:
        """Names of those that are not ours, of the class and of its bases."""
        names = {name for name in base_names(node) if not self.find(module, name)}
        return names.union(*(self.external_bases(*base) for base in self.bases(module, node)))

    def depth(self, module: Module, node: ast.ClassDef) -> int:
        """How many classes stand above one another, this one included; a Protocol, which says what is owed, is none."""
        own = 0 if "Protocol" in base_names(node) else 1
        return own + max((self.depth(*base) for base in self.bases(module, node)), default=0)

    def made(self, module: Module, node: ast.ClassDef) -> set[str]:
        """The attributes that an object of the class, or of a base, has from the start, and those with a setter."""
        names = {name for method in methods(node) if method.name in MAKERS for name, _ in own_attributes(method)}
        names |= {method.name for method in methods(node) if any(is_setter(mark) for mark in method.decorator_list)}
        fields = bool(node.decorator_list or self.external_bases(module, node))  # of dataclasses and of settings
        for statement in node.body:
            if fields or not isinstance(statement, ast.AnnAssign) or statement.value is not None:
                names |= {target.id for target in targets(statement) if isinstance(target, ast.Name)}
        return names.union(*(self.made(*base) for base in self.bases(module, node)))

    def late_attributes(self, part: str = "") -> list[str]:
        """Attributes that come into being after their object, as ``file:line Class.attribute``."""
        return [
            f"{module.path.name}:{line} {node.name}.{name}"
            for module, node in self.classes(part)
            for method in methods(node)
            if not any(isinstance(mark, ast.Name) and mark.id == "classmethod" for mark in method.decorator_list)
            for name, line in own_attributes(method)
            if name not in self.made(module, node)
        ]

    def too_deep(self, part: str = "") -> list[str]:
        """Classes too far below their base, as ``file Class``."""
        return [
            f"{module.path.name} {node.name}"
            for module, node in self.classes(part)
            if self.depth(module, node) > (DEEPEST_ERRORS if self.is_error(module, node) else DEEPEST)
        ]

    def is_error(self, module: Module, node: ast.ClassDef) -> bool:
        return any(name.endswith(("Error", "Exception")) for name in self.external_bases(module, node))


def base_names(node: ast.ClassDef) -> list[str]:
    """As they are written, but for what stands in brackets."""
    return [ast.unparse(base.value if isinstance(base, ast.Subscript) else base) for base in node.bases]


def is_setter(mark: ast.expr) -> bool:
    return isinstance(mark, ast.Attribute) and mark.attr == "setter"


def targets(statement: ast.AST) -> Iterator[ast.expr]:
    """What a statement assigns to, tuples taken apart."""
    given: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        given = list(statement.targets)
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign | ast.For | ast.NamedExpr):
        given = [statement.target]
    elif isinstance(statement, ast.withitem) and statement.optional_vars is not None:
        given = [statement.optional_vars]
    while given:
        target = given.pop()
        if isinstance(target, ast.Tuple | ast.List):
            given += target.elts
        elif isinstance(target, ast.Starred):
            given.append(target.value)
        else:
            yield target


def own_attributes(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[str, int]]:
    """Names and lines of the attributes of ``self`` that a method assigns."""
    if not function.args.args:
        return
    me = function.args.args[0].arg
    for statement in ast.walk(function):
        for target in targets(statement):
            if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == me:
                yield target.attr, target.lineno


def methods(node: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("part", PARTS)
def test_an_attribute_that_init_does_not_make_does_not_exist(part: str) -> None:
    assert Sources.of_all_parts().late_attributes(part) == []


@pytest.mark.parametrize("part", PARTS)
def test_no_class_stands_more_than_one_level_below_its_base(part: str) -> None:
    assert Sources.of_all_parts().too_deep(part) == []


def test_all_parts_are_searched() -> None:
    counts = {part: len(list(Sources.of_all_parts().classes(part))) for part in PARTS}
    assert all(counts[part] > 20 for part in ("runtime", "sdk", "trainer")), counts
    deep = [
        node.name for module, node in Sources.of_all_parts().classes() if Sources.of_all_parts().depth(module, node) > 1
    ]
    assert {"FactorisedGuider", "AgentClient", "SessionLimitError"} <= set(deep), "bases of other modules are found"


EARLY = """
class Early:
    field: int = 0
    declared: int
    def __init__(self):
        self.first, (self.second, *self.rest) = 1, (2, 3)
    @property
    def seen(self):
        return self.first
    @seen.setter
    def seen(self, value):
        self.first = value
    def change(self):
        self.first = self.field = self.seen = 2
        self.second += 1
        self.declared = 3
        for self.third in range(3):
            pass

class Odd(Early, Protocol): pass
class Wrong(ValueError): pass
class Worse(Wrong): pass
class Worst(Worse): pass
"""
LATER = """
from early import Early as Base, Odd, Worst
class Later(Base):
    def change(self):
        self.first = 3
        self.fourth: int = 4
class Early(Later): pass
class Alike(Odd): pass
class Hopeless(Worst): pass
"""


def test_the_search_finds_what_is_late_and_what_is_deep(tmp_path: Path) -> None:
    modules = {}
    for name, source in (("early", EARLY), ("later", LATER)):
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        modules[name] = Module.of(path)
    sources = Sources(modules)
    assert sources.late_attributes(str(tmp_path)) == [
        "early.py:16 Early.declared",
        "early.py:17 Early.third",
        "later.py:6 Later.fourth",
    ]
    assert sources.too_deep(str(tmp_path)) == ["later.py Early", "later.py Hopeless"]


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


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_an_algorithm_derives_from_algorithm_alone_and_its_settings_from_groups_of_fields(name: str) -> None:
    algorithm = ALGORITHMS[name]
    assert algorithm.__bases__ == (Algorithm,)
    of_trainer = [base for base in algorithm.settings_class.__mro__ if base.__module__.startswith("hmarl.")]
    assert of_trainer[0] is algorithm.settings_class, "settings of its own"
    assert set(of_trainer[1:]) == set(algorithm.settings_class.__bases__)
    assert AlgorithmSettings in of_trainer
    others = {each.settings_class for each in ALGORITHMS.values()} - {algorithm.settings_class}
    assert not others & set(of_trainer)


def parts(thing: Any, name: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """An object of the trainer and those that it is composed of, each once, with a name."""
    if isinstance(thing, list | tuple):
        for index, each in enumerate(thing):
            yield from parts(each, f"{name}[{index}]", seen)
    elif type(thing).__module__.startswith("hmarl.trainer") and hasattr(thing, "__dict__") and id(thing) not in seen:
        seen.add(id(thing))
        yield name, thing
        for key, value in vars(thing).items():
            yield from parts(value, f"{name}.{key}", seen)


@pytest.mark.usefixtures("single_thread")
@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_a_whole_life_adds_no_attribute(name: str) -> None:
    """Rollouts with episodes' ends, two updates, evaluation's teams, teachers and deployed policies."""
    environment = "toy_environments:masked_discrete"
    chosen = {**tiny_networks(name), **of_use(name, {"embedding_size": 8, "epochs": 2, "minibatches": 2})}
    if name != "himpo":
        chosen |= of_use(name, {"recurrent": True})
    settings = validate(ALGORITHMS[name].settings_class, chosen, "algorithm")
    made_environment = make(environment, 4)
    algorithm = ALGORITHMS[name](made_environment.spec, settings, torch.Generator().manual_seed(0), CPU)
    born = {key: set(vars(part)) for key, part in parts(algorithm, name, set())}
    rollout = Rollout(made_environment.spec, 12, 4, CPU)
    collector = Collector(made_environment, rollout, np.arange(4, dtype=np.int64))
    for progress in (0.0, 0.5):
        collector.collect(algorithm)
        algorithm.update(rollout, progress)
    algorithm.load_acting_state(algorithm.acting_state())
    algorithm.teams()
    algorithm.teacher()
    if algorithm.exportable:
        algorithm.deployable(0)
    grown = {key: set(vars(part)) for key, part in parts(algorithm, name, set())}
    assert {key: grown[key] - names for key, names in born.items() if key in grown and grown[key] - names} == {}


def test_an_algorithms_update_is_found_in_its_own_file() -> None:
    for name, algorithm in ALGORITHMS.items():
        assert "update" in vars(algorithm), name
        assert inspect.getsourcefile(algorithm.update) == inspect.getsourcefile(algorithm), name
