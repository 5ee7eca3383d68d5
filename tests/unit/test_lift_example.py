"""The game of examples/lift: its rules, its contract, and that it stays as short as it says."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from hmarl.sdk import check_environment, make_environment
from installed import ROOT

FILE = ROOT / "examples" / "lift" / "lift.py"


@pytest.fixture(scope="module")
def lift() -> ModuleType:
    found = importlib.util.spec_from_file_location("lift", FILE)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture
def at_the_pane(lift: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A game whose robots stand at their ends, and whose winches do not slip."""
    monkeypatch.setattr(lift, "SLIPS", 0.0)
    game = lift.Lift()
    game.reset(seed=1)
    game.away = dict.fromkeys(game.agents, 0)
    return game


def test_it_has_under_100_lines() -> None:
    assert len(FILE.read_text().splitlines()) < 100


def test_together_they_reach_the_shelf_and_share_the_reward(lift: ModuleType, at_the_pane: Any) -> None:
    rewards = []
    for _ in range(lift.SHELF):
        seen, reward, ended, cut, _ = at_the_pane.step({"left": lift.LIFT, "right": lift.LIFT})
        rewards.append(reward["left"] + reward["right"])
    np.testing.assert_allclose(rewards, [1 / 6] * 5 + [1 / 6 + 1])
    assert (ended, cut) == ({"left": True, "right": True}, {"left": False, "right": False})
    assert at_the_pane.episode_success()
    assert at_the_pane.agents == []
    np.testing.assert_array_equal(seen["left"], np.float32([0, 1, 0, 1]))


def test_one_alone_breaks_the_pane(lift: ModuleType, at_the_pane: Any) -> None:
    alone = {"left": lift.LIFT, "right": lift.WAIT}
    seen, reward, ended, _, _ = at_the_pane.step(alone)
    assert (reward["right"], ended["right"]) == (0.0, False)
    np.testing.assert_allclose(seen["right"], np.float32([0, 0, 0, 1 / 6]))
    assert at_the_pane.picture().splitlines()[-2:] == ["    ====", "   R    ====R"]
    _, reward, ended, _, _ = at_the_pane.step(alone)
    assert (reward["left"], reward["right"], ended["left"]) == (-0.5, -0.5, True)
    assert not at_the_pane.episode_success()


def test_a_robot_lifts_nothing_before_it_is_there(lift: ModuleType, at_the_pane: Any) -> None:
    at_the_pane.away["left"] = 2
    for _ in range(2):
        at_the_pane.step({"left": lift.LIFT, "right": lift.WAIT})
        assert at_the_pane.height["left"] == 0
        at_the_pane.step({"left": lift.DRIVE, "right": lift.WAIT})
    assert at_the_pane.away["left"] == 0


def test_time_is_up_after_40_steps(lift: ModuleType, at_the_pane: Any) -> None:
    idle = {"left": lift.WAIT, "right": lift.WAIT}
    cuts = [at_the_pane.step(idle)[3]["left"] for _ in range(40)]
    assert cuts == [False] * 39 + [True]
    assert at_the_pane.agents == []


def test_it_keeps_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FILE.parent)
    make = lambda batch: make_environment("pettingzoo/lift:parallel_env", batch, workers=0, horizon=40)  # noqa: E731
    failed = [each for each in check_environment(make) if not each.passed]
    assert failed == []
