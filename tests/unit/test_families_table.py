"""The table of algorithms and families says what the tests' results say, and no more."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from hmarl.sdk.errors import HmarlError, UsageError
from scripts_loaded import load_script

NOTED = '<properties><property name="algorithm" value="{}"/><property name="family" value="{}"/>{}</properties>'
RESULT = '<property name="task" value="mpe/some task"/><property name="result" value="✓ (gRPC)"/>'


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("families")


def results(folder: Path, *cases: str) -> Path:
    path = folder / "junit.xml"
    inner = "".join(f"<testcase>{case}</testcase>" for case in cases)
    path.write_text(f"<testsuites><testsuite>{inner}</testsuite></testsuites>")
    return path


def test_a_cell_is_what_its_test_recorded_or_how_it_failed(script: ModuleType, tmp_path: Path) -> None:
    junit = results(
        tmp_path,
        NOTED.format("happo", "mpe", RESULT),
        NOTED.format("happo", "lbf", RESULT) + '<failure message="AssertionError: a | b&#10;assert 1">long</failure>',
        NOTED.format("happo", "smax", "") + '<skipped message="no jax"/>',
        NOTED.format("happo", "rware", ""),
        "",
    )
    cells = script.read_cells(junit)
    assert {family: cell.result for (_, family), cell in cells.items()} == {
        "mpe": "✓ (gRPC)",
        "lbf": "failed: AssertionError: a | b",
        "smax": "not run: no jax",
        "rware": "failed: the test recorded no result",
    }
    written = script.table(cells)
    (row,) = (line for line in written.splitlines() if line.startswith("| `happo`"))
    assert row.count("✓") == 1
    assert "| failed: AssertionError: a \\| b |" in row
    (other,) = (line for line in written.splitlines() if line.startswith("| `hcpo`"))
    assert set(other.split(" | ")[1:-1]) == {"not run"}
    assert "1 of " in written
    assert "| `mpe` | `mpe/some task` |" in written


def test_failed_cells_and_wrong_files_are_errors(script: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "families.md"
    with pytest.raises(UsageError, match="expected what pytest --junitxml writes"):
        script.main.callback(tmp_path / "nothing.xml", out)
    failed = results(tmp_path, NOTED.format("happo", "mpe", "") + "<error message='broken'/>")
    with pytest.raises(HmarlError, match=r"1 of 1 cells failed: \[\('happo', 'mpe'\)\]"):
        script.main.callback(failed, out)
    assert "failed: broken" in out.read_text()
