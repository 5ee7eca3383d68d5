"""Whether acts get through, told from probes and from clients' acts; and log lines that peers can cause."""

from __future__ import annotations

import logging

import pytest

from hmarl.runtime.liveness import ACTS_TO_FAIL, PROBES_TO_FAIL, Liveness
from hmarl.runtime.repeats import RepeatLog
from told_clock import Clock


def test_probes_that_fail_in_a_row_tell_that_acts_do_not_get_through() -> None:
    liveness = Liveness(Clock())
    for _ in range(PROBES_TO_FAIL - 1):
        liveness.probed(succeeded=False)
    liveness.probed(succeeded=True)
    assert liveness.alive
    for _ in range(PROBES_TO_FAIL):
        assert liveness.alive
        liveness.probed(succeeded=False)
    assert not liveness.alive
    assert not liveness.well
    assert "3 probes" in liveness.trouble
    liveness.probed(succeeded=True)
    assert liveness.alive
    assert liveness.well


def test_acts_that_keep_failing_turn_health_but_not_the_watchdog() -> None:
    clock = Clock()
    liveness = Liveness(clock)
    for _ in range(ACTS_TO_FAIL):
        assert liveness.well
        liveness.failed()
    assert not liveness.well
    assert liveness.alive
    liveness.acted()
    assert liveness.well


def test_one_client_whose_acts_fail_does_not_turn_the_health_of_others() -> None:
    clock = Clock()
    liveness = Liveness(clock)
    for _ in range(20):
        liveness.acted()
        for _ in range(10 * ACTS_TO_FAIL):
            liveness.failed()
            assert liveness.well
        clock.now += 0.5


def test_failures_are_forgotten_when_their_client_is_gone() -> None:
    clock = Clock()
    liveness = Liveness(clock)
    for _ in range(ACTS_TO_FAIL):
        liveness.failed()
    clock.now += 9
    assert not liveness.well
    clock.now += 2
    assert liveness.well


def test_lines_of_one_kind_are_counted_and_told_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    log = RepeatLog(logging.getLogger("test"), 10.0, clock)
    said = [log.say("a", logging.WARNING, f"a {number}") for number in range(1000)]
    assert said == [True] + [False] * 999
    assert log.say("b", logging.WARNING, "b")
    log.flush()
    assert caplog.messages == ["a 0", "b"]
    clock.now += 10
    log.flush()
    log.flush()
    assert caplog.messages == ["a 0", "b", "999 more of this kind, the last: a 999"]
    log.say("c", logging.WARNING, "c 0")
    log.say("c", logging.WARNING, "c 1")
    clock.now += 10
    log.say("c", logging.WARNING, "c 2")
    assert caplog.messages[-1] == "c 2 (and 1 more of this kind since the last such line)"
