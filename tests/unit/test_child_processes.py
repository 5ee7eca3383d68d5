"""Every Python process that a package starts is started in one way, which leaves the current folder out."""

from __future__ import annotations

import ast
import os
import subprocess
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path

import pytest

from hmarl.runtime.children import python, safe_path

ROOT = Path(__file__).parents[2]
PACKAGES = ("proto", "runtime", "sdk", "trainer")
ONE_PLACE = ROOT / "runtime" / "hmarl" / "runtime" / "children.py"


def interpreters(source: str) -> Iterator[int]:
    """Lines that take this interpreter for something else than for the words of a message."""
    tree = ast.parse(source)
    told = {id(node) for text in ast.walk(tree) if isinstance(text, ast.JoinedStr) for node in ast.walk(text)}
    for node in ast.walk(tree):
        own = isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.executable", "sys._base_executable")
        imported = isinstance(node, ast.ImportFrom) and node.module == "sys"
        taken = imported and "executable" in [each.name for each in node.names]
        if id(node) not in told and (own or taken):
            yield node.lineno


def makes_processes(source: str) -> Iterator[int]:
    """Lines that start processes in multiprocessing's ways, of whose command lines only its flags are ours."""
    for node in ast.walk(ast.parse(source)):
        names = [each.name for each in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        module = node.module if isinstance(node, ast.ImportFrom) else None
        if "multiprocessing" in names or (module == "multiprocessing" and set(names) - {"resource_tracker"}):
            yield node.lineno


@pytest.mark.parametrize("part", PACKAGES)
def test_the_interpreter_is_named_in_one_place(part: str) -> None:
    for path in (ROOT / part).rglob("*.py"):
        source = path.read_text()
        assert path == ONE_PLACE or not list(interpreters(source)), f"{path}: take hmarl.runtime.children.python"
        assert not list(makes_processes(source)), f"{path}: take hmarl.runtime.children.python"


def test_the_search_finds_them() -> None:
    assert list(interpreters('import sys\nPopen([sys.executable, "-m", "json"])')) == [2]
    assert list(interpreters("from sys import executable")) == [1]
    assert not list(interpreters('import sys\nprint(f"of {sys.executable}")'))
    assert list(makes_processes("import multiprocessing\nfrom multiprocessing import Process")) == [1, 2]
    assert list(interpreters(ONE_PLACE.read_text()))


def test_a_child_finds_no_module_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap.py").write_text("print('run')")
    monkeypatch.chdir(tmp_path)
    for words in (("-m", "trap"), ("-c", "import trap")):
        done = subprocess.run(python(*words), capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (1, "")


def test_nor_does_one_that_a_library_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiprocessing's own, which removes shared memory that was left behind."""
    (tmp_path / "multiprocessing.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    tracker = resource_tracker.ResourceTracker()
    with safe_path():
        tracker.ensure_running()
    assert "PYTHONSAFEPATH" not in os.environ
    assert tracker._check_alive()
    tracker._stop()
    assert not (tmp_path / "trace").exists()


def test_what_the_environment_said_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONSAFEPATH", "yes")
    with safe_path():
        assert os.environ["PYTHONSAFEPATH"]
    assert os.environ["PYTHONSAFEPATH"] == "yes"
