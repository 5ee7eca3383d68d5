"""How the code is wired: attributes are made where an object is, and what is shared is composed, not inherited."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Container, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hmarl.sdk.environments import make
from hmarl.trainer.algorithms import ALGORITHMS
from hmarl.trainer.contract.algorithm import Algorithm
from hmarl.trainer.experience.rollout import Collector, Rollout
from hmarl.trainer.networks.settings import AlgorithmSettings, validate
from training_runs import CPU, of_use, tiny_networks

ROOT = Path(__file__).parents[2]
TRAINER = ROOT / "trainer/hmarl/trainer"
PARTS = (TRAINER, ROOT / "runtime/hmarl/runtime")
SOURCES = sorted(path for part in PARTS for path in part.rglob("*.py"))

# Networks are a family of their own: flat parameters, what a guider is, a row of tokens, attention among them.
DEEP_NETWORKS = {
    "AttentionGuider",
    "FactorisedGuider",
    "RecurrentNetwork",
    "RetentionGuider",
    "SequenceGuider",
    "StudentNetwork",
    "SuperiorNetwork",
    "WorkerNetwork",
}
# Where an object is made: what these assign exists from the start.
MAKERS = {"__init__", "__post_init__", "__new__"}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def classes() -> dict[str, ast.ClassDef]:
    """Every class of the sources by name; names are unique, so bases are easily found."""
    found: dict[str, ast.ClassDef] = {}
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                assert node.name not in found, f"two classes are called {node.name}"
                found[node.name] = node
    return found


def bases_of(node: ast.ClassDef) -> list[ast.ClassDef]:
    """Those of the sources."""
    named = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
    return [classes()[base.id] for base in named if isinstance(base, ast.Name) and base.id in classes()]


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


def made(node: ast.ClassDef) -> set[str]:
    """The attributes that an object of the class, or of a base, has from the start."""
    names = {name for method in methods(node) if method.name in MAKERS for name, _ in own_attributes(method)}
    for statement in node.body:  # fields of dataclasses and of settings, class attributes
        names |= {target.id for target in targets(statement) if isinstance(target, ast.Name)}
    return names.union(*(made(base) for base in bases_of(node)))


def setters(node: ast.ClassDef) -> set[str]:
    """Properties that can be assigned to."""
    marked = [
        method.name
        for method in methods(node)
        for mark in method.decorator_list
        if isinstance(mark, ast.Attribute) and mark.attr == "setter"
    ]
    return set(marked).union(*(setters(base) for base in bases_of(node)))


def late_attributes(path: Path) -> list[str]:
    """Attributes that come into being after their object, as ``file:line Class.attribute``."""
    late = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ClassDef):
            known = made(node) | setters(node)
            late += [
                f"{path.relative_to(ROOT)}:{line} {node.name}.{name}"
                for method in methods(node)
                if not any(isinstance(mark, ast.Name) and mark.id == "classmethod" for mark in method.decorator_list)
                for name, line in own_attributes(method)
                if name not in known
            ]
    return late


def depth(node: ast.ClassDef, among: Container[str]) -> int:
    """How many of these classes stand above one another, this one included."""
    return 1 + max((depth(base, among) for base in bases_of(node) if base.name in among), default=0)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: "/".join(path.parts[-2:]))
def test_an_attribute_that_init_does_not_make_does_not_exist(path: Path) -> None:
    assert not late_attributes(path)


def test_the_search_for_late_attributes_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
class Early:
    field: int = 0
    def __init__(self):
        self.first, (self.second, *self.rest) = 1, (2, 3)
    def change(self):
        self.first = self.field = 2
        self.second += 1
        for self.third in range(3):
            pass

class Later(Early):
    def change(self):
        self.first = 3
        self.fourth: int = 4
"""
    path = tmp_path / "late.py"
    path.write_text(source)
    found = {node.name: node for node in ast.walk(tree_of(path)) if isinstance(node, ast.ClassDef)}
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "classes", lambda: found)
    assert late_attributes(path) == ["late.py:9 Early.third", "late.py:15 Later.fourth"]
    assert [depth(found[name], found) for name in ("Early", "Later")] == [1, 2]


def test_no_class_stands_more_than_one_level_below_its_base() -> None:
    of_trainer = {
        node.name
        for path in TRAINER.rglob("*.py")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ClassDef)
    }
    assert {name for name in of_trainer if depth(classes()[name], of_trainer) > 2} == DEEP_NETWORKS


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
