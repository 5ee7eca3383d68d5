"""The page on the price of deployment is what the command draws of the records; its figures are the records' own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from hmarl.sdk.gap.document import read_gap
from installed import ROOT
from scripts_loaded import load_script

RESULTS = ROOT / "docs" / "results"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "scripts")  # as it is when the script runs
    return load_script("gap")


def test_the_page_and_the_pages_of_teams_are_drawn_of_the_records(tmp_path: Path) -> None:
    """If this fails: python scripts/gap.py --drawn-only"""
    words = [sys.executable, str(ROOT / "scripts" / "gap.py"), "--drawn-only", "--records", str(RESULTS / "gaps")]
    subprocess.run([*words, "--out", str(tmp_path), "--pages", str(tmp_path / "pages")], check=True, timeout=240)
    assert (tmp_path / "gap.md").read_text() == (RESULTS / "gap.md").read_text()
    records = sorted((RESULTS / "gaps").glob("*.json"))
    assert [page.stem for page in sorted((tmp_path / "pages").iterdir())] == [record.stem for record in records]


def test_of_two_variants_the_same_seeds_are_compared(script: ModuleType) -> None:
    name = "mpe-simple_spread-600000-happo{}-seed{}.json"
    variants = {"without": "", "with": "-env.faults.delay=2-env.faults.loss=0.2"}
    every = {
        label: {seed: read_gap(RESULTS / "gaps" / name.format(settings, seed)) for seed in (100, 101, 102)}
        for label, settings in variants.items()
    }
    both = {label: {seed: gaps[seed] for seed in (101, 102)} for label, gaps in every.items()}
    lacking = {"without": every["without"], "with": both["with"]}
    assert [*script.beside(lacking)] == [*script.beside(both)] != [*script.beside(every)]


def test_a_team_that_trained_with_faults_keeps_more_under_them_and_pays_without() -> None:
    """Read off the records themselves: three seeds, the same episodes."""
    name = "mpe-simple_spread-600000-happo{}-seed{}.json"
    for seed in (100, 101, 102):
        without, trained = (
            read_gap(RESULTS / "gaps" / name.format(settings, seed))
            for settings in ("", "-env.faults.delay=2-env.faults.loss=0.2")
        )
        assert (without.trained_faults, trained.trained_faults) == ("", "delay=2,loss=0.2")
        assert without.seeds == trained.seeds
        for rung, better in (("served, delay=2,loss=0.2", trained), ("served", without)):
            worse = without if better is trained else trained
            assert np.mean(better.rung(rung).returns) > np.mean(worse.rung(rung).returns)
        lost = (
            {each.to: each.mean for each in without.under_faults},
            {each.to: each.mean for each in trained.under_faults},
        )
        assert lost[1]["served, delay=2,loss=0.2"] > lost[0]["served, delay=2,loss=0.2"] + 5.0
