"""Change the code in one place at a time, and see whether a test fails: which modules, and by which tests, says
``[tool.mutation]`` in ``pyproject.toml``.

    python scripts/mutation.py --only hmarl/trainer/learning/critic.py --work build/mutation

Each module is mutated by mutmut in a directory of its own, ``build/mutation/MODULE``, in which the four parts of hmarl
lie in one tree: mutmut names mutants after their path. Printed is a table; ``survivors.txt`` in that directory holds
the change of every mutant that no test noticed. Changes of nothing but a text (of an error, say) are counted apart.
"""

from __future__ import annotations

import ast
import difflib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hmarl.runtime.command_line import PATH, command, flag, integer, option, run
from hmarl.sdk.errors import HmarlError, UsageError, unknown_name

ROOT = Path(__file__).resolve().parents[1]
PARTS = {"trainer": "trainer", "runtime": "runtime", "sdk": "sdk", "proto": "agent"}
# What tests read beside the code.
BESIDE = ("scripts", "docs", "proto", "pyproject.toml", "constraints.txt")
# A process that has used gRPC or torch cannot be forked: mutants are forked from one that only imports.
SETTINGS = """[mutmut]
source_paths=src
only_mutate=src/{module}
process_isolation=forkserver
also_copy=
    scripts
    docs
    proto
    constraints.txt
pytest_add_cli_args=
    -p
    no:cacheprovider
    -p
    no:xdist
    -p
    mutation_plugin
pytest_add_cli_args_test_selection=
{tests}
timeout_multiplier=8
timeout_constant=6
"""
IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc")


@dataclass(frozen=True)
class Survivor:
    """A mutant that no test noticed.

    Attributes:
        name: mutmut's.
        status: ``survived`` or ``no tests``.
        change: the unified diff.
    """

    name: str
    status: str
    change: str

    @property
    def text_only(self) -> bool:
        """Whether nothing but the words of a sentence differ, as in an error's message."""
        lines = [line for line in self.change.splitlines() if line[:1] in ("+", "-")]
        if len(lines) != 2:
            return False
        before, after = (
            re.sub(r'f?"([^"]*)"', lambda text: "" if " " in text[1] else text[0], line[1:]) for line in lines
        )
        return before == after


@dataclass(frozen=True)
class Outcome:
    """What became of a module's mutants: how many of each status, and those that live."""

    module: str
    counts: Counter[str]
    survivors: list[Survivor]

    def row(self) -> str:
        """A row of the table."""
        texts = sum(survivor.text_only for survivor in self.survivors)
        others = len(self.survivors) - texts
        made, killed, late = sum(self.counts.values()), self.counts["killed"], self.counts["timeout"]
        rest = made - killed - late - len(self.survivors)
        return f"| `{self.module}` | {made} | {killed} | {late} | {texts} | {others} | {rest} |"


HEADER = (
    "| module | mutants | killed | timeouts | survivors: texts only | survivors: other | not run |\n"
    "|---|---:|---:|---:|---:|---:|---:|"
)


def modules() -> dict[str, list[str]]:
    """Which tests judge a module, by the module's path below the parts."""
    chosen: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mutation"]
    return chosen


def lay_out(module: str, place: Path) -> None:
    """The code in one tree, and what tests read beside it."""
    shutil.rmtree(place, ignore_errors=True)
    for part, package in PARTS.items():
        shutil.copytree(ROOT / part / "hmarl" / package, place / "src/hmarl" / package, ignore=IGNORED)
    if not (place / "src" / module).is_file():
        raise UsageError(f"[tool.mutation]: got {module}, expected the path of a module below {', '.join(PARTS)}")
    for name in BESIDE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=IGNORED)
        else:
            shutil.copy2(source, place / name)
    (place / "mutants/src").mkdir(parents=True)  # a folder that is not there when Python starts is never looked into


def choose_tests(module: str, tests: list[str], place: Path) -> None:
    """Today's tests, and mutmut's settings with those that judge the module."""
    for tree in (place, place / "mutants"):
        shutil.copytree(ROOT / "tests", tree / "tests", ignore=IGNORED, dirs_exist_ok=True)
        shutil.copy2(ROOT / "scripts/mutation_plugin.py", tree / "src")
    (place / "mutants/mutmut-stats.json").unlink(missing_ok=True)  # which test reaches which function
    listed = "\n".join(f"    {test}" for test in tests)
    (place / "setup.cfg").write_text(SETTINGS.format(module=module, tests=listed), encoding="utf-8")


def mutmut(place: Path, *arguments: str) -> str:
    """Run one of mutmut's commands there; what it prints goes to ``mutmut.log`` as well."""
    environment = os.environ | {"PYTHONPATH": str(place / "mutants/src"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [Path(sys.executable).parent / "mutmut", *arguments],
        cwd=place,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    with (place / "mutmut.log").open("a", encoding="utf-8") as log:
        log.write(done.stdout)
    if done.returncode:
        raise HmarlError(f"mutmut {' '.join(arguments)}: exit code {done.returncode}, see {place / 'mutmut.log'}")
    return done.stdout


def results(place: Path) -> dict[str, str]:
    """The status of every mutant, by its name."""
    return dict(re.findall(r"^ +(\S+__mutmut_\d+): (.+)$", mutmut(place, "results", "--all", "true"), re.MULTILINE))


def changes(place: Path, module: str) -> dict[str, str]:
    """What every mutant changes, as a unified diff of its function, by its name without the module's.

    mutmut writes all mutants of a function beside it, as ``FUNCTION__mutmut_NUMBER`` and ``FUNCTION__mutmut_orig``.
    """
    source = (place / "mutants/src" / module).read_text(encoding="utf-8")
    lines = source.splitlines()
    bodies = {
        node.name: [line.replace(node.name, "") for line in lines[node.lineno - 1 : node.end_lineno]]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and "__mutmut_" in node.name
    }
    found = {}
    for name, body in bodies.items():
        original = bodies[name.partition("__mutmut_")[0] + "__mutmut_orig"]
        found[name] = "\n".join([f"# {name}", *list(difflib.unified_diff(original, body, n=2, lineterm=""))[2:], ""])
    return found


def judge(module: str, tests: list[str], work: Path, again: bool) -> Outcome:
    """Mutate one module."""
    place = work / module.removesuffix(".py").replace("/", ".")
    again = again and place.exists()
    if not again:
        lay_out(module, place)
    choose_tests(module, tests, place)
    living = [name for name, status in results(place).items() if status != "killed"] if again else []
    if living or not again:
        mutmut(place, "run", "--max-children", "1", *living)
    found, changed = results(place), changes(place, module)
    survivors = [
        Survivor(name, status, changed[name.rpartition(".")[2]])
        for name, status in found.items()
        if status in ("survived", "no tests")
    ]
    (place / "survivors.txt").write_text(
        "\n".join(each.change for each in survivors if not each.text_only), encoding="utf-8"
    )
    return Outcome(module, Counter(found.values()), survivors)


@command(
    "scripts/mutation.py",
    option("--only", "a module to mutate; by default all of [tool.mutation]; repeatable", many=True, shown="MODULE"),
    option("--work", "where to do so", PATH, default=ROOT / "build/mutation"),
    option("--workers", "modules at a time", integer(1), default=1),
    flag("--again", "the survivors of the last time only, by today's tests"),
    examples=("scripts/mutation.py --only hmarl/trainer/learning/critic.py",),
)
def main(only: tuple[str, ...], work: Path, workers: int, again: bool) -> None:
    """Change the code in one place at a time, see whether a test fails, and print a table of it."""
    judged_by = modules()
    for module in only:
        if module not in judged_by:
            raise UsageError(f"--only: {unknown_name('module', module, judged_by)}")
    print(HEADER, flush=True)
    with ThreadPoolExecutor(workers) as pool:
        outcomes = pool.map(lambda module: judge(module, judged_by[module], work.resolve(), again), only or judged_by)
        for outcome in outcomes:
            print(outcome.row(), flush=True)


if __name__ == "__main__":
    sys.exit(run(main))
