"""The page of students: whose episodes its figures are of, and what it says of that."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from hmarl.runtime.manifest import EnvironmentModel, StudentsModel
from hmarl.sdk.errors import UsageError
from installed import ROOT
from scripts_loaded import load_script

TOY = EnvironmentModel(name="toy_environments:masked_discrete", team_reward="sum")


def report(**changes: Any) -> StudentsModel:
    known: dict[str, Any] = {
        "teacher": "the guider", "rounds": 1, "steps": 1, "stopped": "rounds", "episodes": 100, "seed": 0,
        "sampled": False, "teacher_return": 1.0, "students_return": 1.0, "gap": 0.0, "kl": 0.0,
    }  # fmt: skip
    return StudentsModel(**{**known, **changes})


@pytest.fixture(scope="module")
def script() -> ModuleType:
    pytest.importorskip("torch")
    sys.path.append(str(ROOT / "scripts"))  # as it is when the script runs
    return load_script("students")


@pytest.mark.parametrize(
    ("name", "settings", "copies"),
    [
        ("toy_environments:masked_discrete", {}, 1),
        ("toy_environments:one_stream", {"evaluation_episodes": 12, "environments": 6}, 6),
        ("toy_environments:one_stream", {"evaluation_episodes": 4, "environments": 6}, 4),
    ],
)
def test_students_play_beside_as_many_as_the_teacher_where_it_matters(
    script: ModuleType, name: str, settings: dict[str, int], copies: int
) -> None:
    environment = script.like_the_teachers(EnvironmentModel(name=name, team_reward="sum"), settings)
    assert environment.batch_size == copies
    assert environment.spec.name


def test_on_vmas_the_teacher_and_the_students_play_a_hundred_side_by_side(script: ModuleType) -> None:
    pytest.importorskip("vmas")
    about = EnvironmentModel(name="vmas/navigation", team_reward="mean", arguments={"max_steps": 5})
    environment = script.like_the_teachers(about, {})
    assert environment.batch_size == 100
    environment.close()


def test_a_teacher_of_other_episodes_is_refused(script: ModuleType, tmp_path: Path) -> None:
    bundle = SimpleNamespace(path=tmp_path, manifest=SimpleNamespace(environment=TOY, students=report(episodes=20)))
    with pytest.raises(UsageError, match="its teacher played 20 episodes, and the page is of 100; remove it"):
        script.served(bundle, tmp_path)


def test_the_page_says_of_which_rows_the_episodes_differ(script: ModuleType) -> None:
    page = (ROOT / "docs" / "results" / "students.md").read_text()
    assert script.introduction() in page
    rows = [line for line in page.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 1
    for row in rows:
        assert ("§" in row) == row.startswith("| vmas-")
