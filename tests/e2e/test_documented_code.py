"""The code of the README and of all pages runs, in the order in which a reader runs it, with no warning.

A block ``sh`` is run by bash, a block ``python`` in a process of its own. One that is titled "Leave it running" goes on
until its page is done; one whose title is a file's name is that file, for the blocks after it; one that is titled "Not
run by the tests: …" says to the reader as well why not.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from documentation import LEFT_RUNNING, PAGES, Block, blocks_of
from installed import ROOT
from serving import shipped_fleet

CORRIDOR = "# corridor.py"
SLOW_PAGES = {"examples/lift/README.md"}
CHECK = ["-c", "from hmarl.sdk.commands.check_environment import main; main()", "corridor:make"]
PROGRAMS = Path(sys.executable).parent

PAGE_BLOCKS = {page: [block for block in blocks_of(page) if block.language in ("python", "sh")] for page in PAGES}
# Pages with commands are gone through from the first block to the last; blocks of other pages stand for themselves.
TUTORIALS = [page for page, blocks in PAGE_BLOCKS.items() if any(block.language == "sh" for block in blocks)]
BLOCKS = {block.where: block.code for blocks in PAGE_BLOCKS.values() for block in blocks if block.language == "python"}
ALONE = {
    block.where: block.code
    for page, blocks in PAGE_BLOCKS.items()
    if page not in TUTORIALS
    for block in blocks
    if block.runs
}


def variables(directory: Path) -> dict[str, str]:
    """The environment of a reader who has activated the virtual environment; modules are found in the directory."""
    path = os.pathsep.join([str(PROGRAMS), os.environ.get("PATH", "")])
    modules = os.pathsep.join([str(directory), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PATH": path, "PYTHONPATH": modules}


def run(directory: Path, *command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        cwd=directory,
        env=variables(directory),
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
    )


def run_python(directory: Path, code: str) -> None:
    done = run(directory, sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", code)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


@contextmanager
def left_running(directory: Path, code: str) -> Iterator[None]:
    """A block's program from when it has said something until Ctrl-C."""
    words = ["bash", "-ec", "exec " + code.strip()]
    with (directory / "said").open("w") as said:
        program = subprocess.Popen(words, cwd=directory, env=variables(directory), stdout=said, stderr=said)
    deadline = time.monotonic() + 60.0
    while "Ctrl-C" not in (directory / "said").read_text():
        assert program.poll() is None, (directory / "said").read_text()
        assert time.monotonic() < deadline, (directory / "said").read_text()
        time.sleep(0.05)
    try:
        yield
    finally:
        program.send_signal(signal.SIGINT)
        try:
            program.wait(30.0)
        finally:
            program.kill()


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
    tutorials = {str(page.relative_to(ROOT)) for page in TUTORIALS}
    guides = {f"docs/guides/{name}.md" for name in ("your-environment", "robot", "secure-and-watch")}
    assert guides | {"docs/start.md", "examples/lift/README.md"} <= tutorials


@pytest.mark.parametrize("where", ALONE)
def test_the_code_runs(project: Path, where: str) -> None:
    run_python(project, ALONE[where])


@pytest.mark.timeout(900)  # one page trains, exports and serves
def marked(page: Path) -> object:
    """A page whose trainings take minutes is gone through by `make test-slow`."""
    name = str(page.relative_to(ROOT))
    return pytest.param(page, id=name, marks=pytest.mark.slow if name in SLOW_PAGES else ())


@pytest.mark.parametrize("page", [marked(page) for page in TUTORIALS])
def test_a_page_works_from_its_first_block_to_its_last(page: Path, tmp_path: Path) -> None:
    for name in ("models", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    with ExitStack() as running:
        for block in PAGE_BLOCKS[page]:
            if block.runs:
                take(block, tmp_path, running)


def take(block: Block, directory: Path, running: ExitStack) -> None:
    """Do what a reader does with a block."""
    if block.title.endswith(".py"):
        (directory / block.title).write_text(block.code)
    elif block.title == LEFT_RUNNING:
        running.enter_context(left_running(directory, block.code))
    elif block.language == "python":
        run_python(directory, block.code)
    else:
        done = run(directory, "bash", "-ec", block.code)
        assert done.returncode == 0, f"{block.where}: {done.stdout}{done.stderr}"


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
