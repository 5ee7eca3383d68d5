"""What a user's type checker sees of hmarl, and that the program which it passes does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from installed import ROOT
from serving import SHIPPED_BUNDLE, shipped_fleet

PROGRAM = (ROOT / "tests" / "user_program.py").read_text()
# What is typed, what is meant, and what mypy says of it.
MISTAKES = [
    ("from hmarl.sdk import (\n", "from hmarl.sdk import (\n    AgentClinet,\n", r'has no attribute "AgentClinet"'),
    ("timeout_s=0.05, fallback", "timeout=0.05, fallback", r'Unexpected keyword argument "timeout" for "AgentClient"'),
    (
        "fallback=FALLBACKS[0]",
        "fallback=np.zeros(2)",
        r'Argument "fallback" to "AgentClient" has incompatible type .*expected "Fallback \| None"',
    ),
    ("action.latency_s for", "action.latency for", r'"Action" has no attribute "latency"; maybe "latency_s"\?'),
    ('InstructionChoice = "common"', 'InstructionChoice = "commmon"', r"expression has type \"Literal\['commmon'\]\""),
    ("evaluate(environment, team,", "evaluate(team, environment,", r'expected "VectorEnvironment"'),
    ('AgentSpec(f"guesser_{i}", 1, spaces', 'AgentSpec(f"guesser_{i}", 1, 2, spaces', r'Argument 3 to "AgentSpec"'),
    (") -> StepResult:\n", ") -> Observation:\n", r'Incompatible return value type \(got "StepResult"'),
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory without any source of hmarl, whose mypy cache all checks share."""
    return tmp_path_factory.mktemp("user")


def strictly(workplace: Path, program: str) -> subprocess.CompletedProcess[str]:
    (workplace / "program.py").write_text(program)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-color-output", "program.py"]
    return subprocess.run(command, cwd=workplace, check=False, capture_output=True, text=True, timeout=240)


def test_a_users_program_passes_strict_type_checks(workplace: Path) -> None:
    done = strictly(workplace, PROGRAM)
    assert (done.returncode, done.stdout) == (0, "Success: no issues found in 1 source file\n"), done.stdout


def test_mistakes_in_a_users_program_are_found(workplace: Path) -> None:
    program = PROGRAM
    for typed, mistaken, _ in MISTAKES:
        assert program.count(typed) == 1, typed
        program = program.replace(typed, mistaken)
    done = strictly(workplace, program)
    assert done.returncode == 1
    for _, mistaken, said in MISTAKES:
        assert re.search(said, done.stdout), f"{mistaken}: {done.stdout}"


def test_the_program_does_what_it_says(tmp_path: Path) -> None:
    with shipped_fleet(tmp_path / "endpoints.json") as endpoints:
        command = [sys.executable, ROOT / "tests" / "user_program.py", SHIPPED_BUNDLE, endpoints]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
