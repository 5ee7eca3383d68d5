"""The notebooks of examples/: what stands in them came out of them, and they run anew from top to bottom."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from command_lines import command
from hmarl.sdk.gap.document import read_gap
from installed import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
PRICE = ROOT / "examples" / "training_to_gap.ipynb"


def codes(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks() -> None:
    assert PRICE in NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_holds_the_outputs_of_one_whole_run(path: Path) -> None:
    """If this fails: run all cells from the top in a fresh kernel, and save."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in codes(notebook)] == [*range(1, len(codes(notebook)) + 1)]
    for cell in codes(notebook):
        assert cell.outputs, cell.source
        assert all(output.output_type != "error" for output in cell.outputs), cell.source
    assert path.stat().st_size < 300_000


@pytest.mark.slow  # half a minute; make test-slow PYTEST_ARGS='-k notebook'
@pytest.mark.timeout(900)
def test_the_notebook_runs_from_training_to_the_gap_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPS", "4000")
    monkeypatch.setenv("EPISODES", "2")
    monkeypatch.setenv("PATH", str(Path(command("hmarl-train")[0]).parent), prepend=":")
    notebook = nbformat.read(PRICE, as_version=4)
    kept = [[output.output_type for output in cell.outputs] for cell in codes(notebook)]
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for cell, before in zip(codes(notebook), kept, strict=True):
        assert {output.output_type for output in cell.outputs} == set(before), cell.source
    for team in ("ctds", "magpo"):
        gap = read_gap(tmp_path / "runs" / team / "gap" / "gap.json")
        assert [rung.name for rung in gap.rungs] == ["central", "local", "onnx", "served", "served, agent_0:out=0"]
        assert gap.episodes == 2
