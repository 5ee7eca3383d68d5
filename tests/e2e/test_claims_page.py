"""The papers' claims held against the records: the page is what the command draws, and the rules by hand."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
MODULES = ("claims", "claimed", "study", "study_tables", "comparisons")


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import claims  # noqa: PLC0415 - a script, found by the path above

    yield claims
    for name in MODULES:
        sys.modules.pop(name, None)


def test_the_page_is_what_the_command_draws_of_the_records(tmp_path: Path) -> None:
    """If this fails: python scripts/claims.py"""
    shutil.copytree(RESULTS / "records", tmp_path / "records")
    shutil.copy(RESULTS / "README.md", tmp_path)
    words = [sys.executable, str(ROOT / "scripts" / "claims.py"), "--results", str(tmp_path)]
    subprocess.run(words, check=True, timeout=240)
    assert (tmp_path / "claims.md").read_text() == (RESULTS / "claims.md").read_text()


def test_links_lead_somewhere_and_tables_are_whole(claims: ModuleType) -> None:
    drawn = (RESULTS / "claims.md").read_text()
    for target in set(re.findall(r"\]\(([^)]+)\)", drawn)):
        file, _, anchor = target.partition("#")
        page = RESULTS / file
        assert page.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, target
    rows = [line for line in drawn.splitlines() if line.startswith("| ") and "|---" not in line]
    assert all(len(re.split(r"(?<!\\)\|", row)) in (6, 8) for row in rows)
    assert {claim.paper for claim in claims.CLAIMS} == {"HCPO", "MAGPO", "HAMDPO", "HiMPo"}


def team(claims: ModuleType, name: str, *means: float, spread: float = 0.0) -> Any:
    """Seeds of these means, each with two episodes that lie ``spread`` above and below it."""
    returns = np.array([[mean - spread, mean + spread] for mean in means])
    return claims.Team(name, returns, np.array(means) / 2)


def test_intervals_know_of_seeds_and_of_episodes(claims: ModuleType) -> None:
    assert team(claims, "one", 3.0, 3.0, 3.0).interval() == (3.0, 3.0)
    low, high = team(claims, "seeds", 1.0, 3.0, 5.0).interval()
    assert low < 2.0
    assert high > 4.0
    low, high = team(claims, "episodes", 3.0, 3.0, spread=2.0).interval()
    assert low < 2.5
    assert high > 3.5


def test_the_rules_hand_computed(claims: ModuleType) -> None:
    ours, near, far = (
        team(claims, "ours", 4.9, 5.0, 5.1), team(claims, "near", 4.8, 5.0, 5.6), team(claims, "far", 1.0, 1.1, 1.6),
    )  # fmt: skip
    rules = claims._RULES
    assert rules["ahead"](ours, [far], 0) == (True, "ahead of far")
    assert rules["ahead"](ours, [far, near], 0) == (False, "ahead of far, level with near")
    assert rules["not behind"](ours, [near], 0)[0]
    assert rules["not behind"](far, [ours], 0) == (False, "behind ours")
    held, said = rules["steadier"](ours, [near, far], 0)
    assert held
    assert said == "deviation over the seeds ours ± 0.10, near ± 0.42, far ± 0.32"
    assert not rules["steadier"](far, [ours], 0)[0]
    assert rules["sooner"](ours, [far], 0)[0]
    assert not rules["sooner"](near, [ours], 0)[0]
    assert rules["reaches"](ours, [], 5.0)[0]
    assert not rules["reaches"](ours, [], 5.2)[0]


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["open", "open"], "open"),
        (["reproduced", "open"], "reproduced"),
        (["reproduced", "not reproduced", "open"], "not reproduced"),
    ],
)
def test_a_claims_verdict_is_that_of_all_its_tasks(claims: ModuleType, verdicts: list[str], expected: str) -> None:
    assert claims.together(verdicts) == expected


def kept(claims: ModuleType, folder: Path, **returns: list[float]) -> Path:
    """Records of ``lbf``, one a seed, by algorithm; every episode of a seed earns the same."""
    from study import record_path, run_name, seeds_of  # noqa: PLC0415 - beside the script

    from hmarl.trainer.suite.records import Record, write_record  # noqa: PLC0415 - beside the script

    folder.mkdir(exist_ok=True)
    comparison = claims.find_comparison("lbf")
    for variant in comparison.variants:
        for seed, value in zip(seeds_of(variant), returns.get(variant.label, []), strict=False):
            rows = [
                {"steps": steps, "evaluation/local/return_mean": value, "evaluation/guider/return_mean": value + 1}
                for steps in (25, 50, 100)
            ]
            record = Record(1.0, rows, {"local": [value] * 4, "guider": [value + 1.0] * 4})
            write_record(record, record_path(run_name(comparison, variant, seed), folder))
    return folder


def test_records_decide_and_where_they_are_missing_it_is_open(claims: ModuleType, tmp_path: Path) -> None:
    rule = claims.Measured("ahead", "lbf", "magpo", ("mappo",))
    page = "## lbf: lbf/6x6-2p-1f-coop, 300,000 frames\n"
    nothing = claims.judge(rule, tmp_path / "none", page)
    assert (nothing.verdict, nothing.link) == ("open", "[lbf](README.md#lbf-lbf6x6-2p-1f-coop-300000-frames)")
    assert "no records of magpo, mappo" in nothing.figures
    one = claims.judge(rule, kept(claims, tmp_path / "one", magpo=[3.0, 4.0], mappo=[1.0]), page)
    assert one.verdict == "open"
    assert one.figures.endswith("mappo 1.00 [1.00, 1.00] (1 seed); too few seeds to tell")
    ahead = claims.judge(rule, kept(claims, tmp_path / "two", magpo=[3.0, 4.0], mappo=[1.0, 2.0]), page)
    assert ahead.verdict == "reproduced"
    assert "magpo 3.50 [3.00, 4.00] (2 seeds); mappo 1.50 [1.00, 2.00] (2 seeds); ahead of mappo" in ahead.figures
    level = claims.judge(rule, kept(claims, tmp_path / "three", magpo=[1.5, 2.0], mappo=[1.0, 2.0]), page)
    assert level.verdict == "not reproduced"
    both = claims.Measured("ahead", "lbf", "magpo", ("mappo", "happo"))
    assert claims.judge(both, tmp_path / "two", page).verdict == "open", "happo may still be ahead"
    gap = claims.Measured("not behind", "lbf", "magpo", ("magpo",), "local", "guider")
    assert claims.judge(gap, tmp_path / "three", page).figures.endswith("behind magpo (guider)")


def test_a_rule_on_what_is_not_compared_is_an_error(claims: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="no variant 'qmix'"):
        claims.judge(claims.Measured("ahead", "lbf", "qmix", ("mappo",)), tmp_path, "")
