"""Every Python block of the README and the pages in docs/ runs, each in a process of its own, with no warning."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from installed import ROOT
from serving import SHIPPED_BUNDLE, shipped_fleet

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    SHIPPED_BUNDLE / "README.md",
    *sorted((ROOT / "docs").glob("**/*.md")),
]
CORRIDOR = "# corridor.py"
CHECK = ["-c", "from hmarl.sdk.commands.check_environment import main; main()", "corridor:make"]


def blocks() -> Iterator[tuple[str, str]]:
    """Where each block is, and its code."""
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            yield f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 2}", match[1]


BLOCKS = dict(blocks())


def run(directory: Path, *command: object) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(directory), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [str(word) for word in command],
        cwd=directory,
        env=variables,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory as the README has it: the bundles that ship, and the endpoints of a fleet that serves one of them."""
    directory = tmp_path_factory.mktemp("project")
    (directory / "models").symlink_to(ROOT / "models")
    with shipped_fleet(directory / "endpoints.json"):
        yield directory


def test_there_is_code_to_run() -> None:
    pages = {where.partition(":")[0] for where in BLOCKS}
    assert {"README.md", "docs/bundle.md", "docs/environments.md", "docs/runtime.md"} <= pages


@pytest.mark.parametrize("where", BLOCKS)
def test_the_code_runs(project: Path, where: str) -> None:
    done = run(project, sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", BLOCKS[where])
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_the_code_imports_from_the_face() -> None:
    """What ``hmarl.sdk`` offers is not imported from where it happens to live."""
    import hmarl.sdk  # noqa: PLC0415 - asked for its names

    for where, code in BLOCKS.items():
        for module, names in re.findall(r"^ *from (hmarl\.[\w.]+) import ([\w, ]+)", code, re.MULTILINE):
            if module != "hmarl.sdk":
                assert not set(names.split(", ")).intersection(hmarl.sdk.__all__), f"{where}: {module}"


@pytest.fixture(scope="module")
def corridor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the environment of the page about environments."""
    directory = tmp_path_factory.mktemp("corridor")
    (code,) = (code for code in BLOCKS.values() if code.startswith(CORRIDOR))
    (directory / "corridor.py").write_text(code)
    return directory


def test_the_environment_of_the_page_keeps_the_contract(corridor: Path) -> None:
    done = run(corridor, sys.executable, *CHECK, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"passed": true' in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("env.length=0", "length: got 0, expected an integer of at least 1 (corridor:make takes length=8)"),
        ("env.lenght=3", "unknown argument of corridor:make 'lenght'; did you mean 'length'?"),
    ],
)
def test_the_environment_of_the_page_tells_of_invalid_arguments(corridor: Path, argument: str, said: str) -> None:
    done = run(corridor, sys.executable, *CHECK, "--set", argument)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
