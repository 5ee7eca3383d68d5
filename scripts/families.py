"""Run every algorithm in every environment family and write what came of it to docs/results/families.md.

    python scripts/families.py                # runs tests/integration/test_families.py, all of it: minutes
    python scripts/families.py --junit FILE   # only writes, from the results of such a run (pytest --junitxml=FILE)

Nothing in the table is typed by hand: a cell is what its test recorded, or how it failed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from hmarl.runtime.bundle import replace_file
from hmarl.runtime.command_line import PATH, command, option, run
from hmarl.sdk import HmarlError, UsageError
from hmarl.sdk.environments import BUILT_IN_FAMILIES
from hmarl.trainer.algorithms import ALGORITHMS

ROOT = Path(__file__).parents[1]
TESTS = "tests/integration/test_families.py"
EXPLAINED = f"""\
Made by `python scripts/families.py` from a run of `{TESTS}`. A ✓ stands for one run of four updates with
tiny networks that

- trained without a diverged update, its policies changing (`hmarl-train`);
- was resumed from the checkpoint after two updates in another directory (`hmarl-train --resume`) and ended with the
  same tensors, replay buffers, random states and counters, hash for hash;
- was exported (`hmarl-export`, which compares every agent's graph with torch on more than a thousand inputs);
- was served over whole episodes, deterministically and with drawn actions, and did what torch does on the same
  observations: in process, and over gRPC as well where the cell says so.

Algorithms marked *central* act for the whole team at once: after training and resuming, their team played whole
episodes, and `hmarl-export` refused them and wrote nothing.

Those marked *students* act centrally as well: `hmarl-export` distilled a student for every agent, and the exported
students played.
"""


@dataclass(frozen=True)
class Cell:
    """One algorithm in one family.

    Attributes:
        task: the family's small task with its arguments, empty when the test did not get that far.
        result: ✓ and what belongs to it, or why there is none.
    """

    task: str
    result: str


def read_cells(junit: Path) -> dict[tuple[str, str], Cell]:
    """The cells by (algorithm, family) from a JUnit XML file of pytest.

    Raises:
        UsageError: the file is unreadable.
    """
    try:
        cases = ElementTree.parse(junit).getroot().iter("testcase")
    except (OSError, ElementTree.ParseError) as error:
        raise UsageError(f"--junit: {junit}: {error}; expected what pytest --junitxml writes") from error
    cells = {}
    for case in cases:
        noted = {each.get("name"): each.get("value", "") for each in case.iter("property")}
        if "family" in noted:
            cells[noted["algorithm"], noted["family"]] = Cell(noted.get("task", ""), _result(case, noted.get("result")))
    return cells


def _result(case: ElementTree.Element, recorded: str | None) -> str:
    """What the test recorded as its last deed; else the first line of why it did not come to that."""
    for outcome, words in (("failure", "failed"), ("error", "failed"), ("skipped", "not run")):
        found = case.find(outcome)
        if found is not None:
            return f"{words}: {found.get('message', '').partition(chr(10))[0]}"
    return recorded or "failed: the test recorded no result"


def table(cells: dict[tuple[str, str], Cell]) -> str:
    """The document: algorithms as rows, families as columns, then the tasks that stand for the families."""
    lines = ["# Algorithms in environment families", "", EXPLAINED]
    lines += [_row("", *BUILT_IN_FAMILIES), _row(*["---"] * (1 + len(BUILT_IN_FAMILIES)))]
    missing = Cell("", "not run")
    for algorithm in ALGORITHMS:
        row = [cells.get((algorithm, family), missing).result for family in BUILT_IN_FAMILIES]
        lines.append(_row(f"`{algorithm}`", *row))
    good = sum(cell.result.startswith("✓") for cell in cells.values())
    refused = sum(cell.result.startswith("refused") for cell in cells.values())
    lines += ["", f"{good} of {len(ALGORITHMS) * len(BUILT_IN_FAMILIES)} cells ✓, {refused} refused as they should be."]
    lines += ["", "| family | its small task |", "|---|---|"]
    for family in BUILT_IN_FAMILIES:
        tasks = {cell.task for (_, of), cell in cells.items() if of == family and cell.task}
        lines.append(_row(f"`{family}`", ", ".join(f"`{task}`" for task in sorted(tasks))))
    return "\n".join(lines) + "\n"


def _row(*words: str) -> str:
    return "| " + " | ".join(word.replace("|", "\\|") for word in words) + " |"


def run_tests(junit: Path) -> int:
    """Pytest's exit code for all cells, quick and slow."""
    # xunit1 is the form that has a place for what tests record.
    command = [sys.executable, "-m", "pytest", TESTS, "-m", "", f"--junitxml={junit}", "-o", "junit_family=xunit1"]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


@command(
    "scripts/families.py",
    option("--junit", "results of such a run; no tests are run then", PATH),
    option("--out", "the document to write", PATH, default=ROOT / "docs" / "results" / "families.md"),
)
def main(junit: Path | None, out: Path) -> None:
    """Write the table of algorithms and environment families; exits with 4 when a cell failed."""
    with tempfile.TemporaryDirectory() as folder:
        path = junit or Path(folder) / "junit.xml"
        if junit is None:
            run_tests(path)
        cells = read_cells(path)
    replace_file(out, table(cells).encode())
    print(f"wrote {out}")
    failed = [pair for pair, cell in cells.items() if cell.result.startswith("failed")]
    if failed or not cells:
        raise HmarlError(f"families: {len(failed)} of {len(cells)} cells failed: {failed}")


if __name__ == "__main__":
    sys.exit(run(main))
