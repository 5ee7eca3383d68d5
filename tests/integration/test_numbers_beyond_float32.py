"""Numbers that float32 cannot hold are named by the checks that look for them, and by nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_lines import run_in_pipes

HUGE = """
import numpy as np
from gymnasium import spaces
from odd_toys import Pair


class Huge(Pair):
    def __init__(self, where):
        super().__init__()
        self.where = where

    def observation_space(self, agent):
        box = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        return spaces.Dict({"all": box}) if self.where == "parts" else box

    def seen(self):
        values = np.full(2, 1.0 if self.where == "reward" else 1e300)
        return {agent: {"all": values} if self.where == "parts" else values for agent in self.agents}

    def reward(self, agent):
        return 1e300 if self.where == "reward" else 1.0
"""


@pytest.mark.parametrize(
    "where", [pytest.param(where, marks=pytest.mark.slow) for where in ("reward", "observation")] + ["parts"]
)
def test_they_are_found_without_a_warning_of_numpys(where: str, tmp_path: Path) -> None:
    (tmp_path / "huge.py").write_text(HUGE)
    env = ("pettingzoo/huge:Huge", "--set", f"env.where={where}", "--set", "env.workers=1")
    code, output, error = run_in_pipes("hmarl-check-env", *env, path=tmp_path)
    assert code == 4
    assert "entries that are NaN or infinite" in output
    assert "Warning" not in error
