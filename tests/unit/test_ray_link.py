"""The cost model of workers, held to numbers worked out by hand."""

from __future__ import annotations

from types import ModuleType

import pytest

from scripts_loaded import load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("ray_link")


def test_an_update_by_hand(script: ModuleType) -> None:
    cost = script.Cost(
        steps=10, environments=2, step_s=0.01, act_s=0.005, frame_bytes=100.0, weights_bytes=1_000.0, call_s=0.001,
        join_s_per_byte=1e-6, learn_s=1e-4, link_bytes_per_s=10_000.0, machines=3,
    )  # fmt: skip
    update = script.predicted(cost, workers=5)
    assert update.frames == 100
    assert update.sent == pytest.approx(3 * 1_000 / 10_000)
    assert update.collected == pytest.approx(10 * (2 * 0.01 + 0.005))
    assert update.back == pytest.approx(100 * 100 / 10_000)
    assert update.joined == pytest.approx(5 * 0.001 + 10_000 * 1e-6)
    assert update.learnt == pytest.approx(0.01)
    assert update.rollout_s == pytest.approx(0.3 + 0.25 + 1.0 + 0.015)
    assert update.frames_per_s() == pytest.approx(100 / 1.575)
    assert update.frames_per_s(stale=True) == pytest.approx(100 / 1.565)  # learning hides behind collecting
    assert update.limit == "link"


def test_what_limits(script: ModuleType) -> None:
    slow = script.replace(script.ASSUMED, step_s=1.0)
    assert script.predicted(slow, 10).limit == "environments"
    assert script.predicted(script.replace(slow, step_s=0.0, act_s=0.0, learn_s=1.0), 10).limit == "learner"


def test_the_table_has_a_row_for_each_case(script: ModuleType) -> None:
    head, line, *rows = script.table()
    assert len(rows) == 6
    assert all(row.count("|") == head.count("|") == line.count("|") for row in rows)
