"""When ticks of a control loop are due, told what time it is."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from hmarl.sdk import OverrunError, UsageError
from hmarl.sdk.control.schedule import OverrunPolicy, Schedule, Tick


def begun(schedule: Schedule, now_s: float) -> Tick:
    tick = schedule.begin(now_s)
    assert tick is not None
    return tick


def started(rate_hz: float, overrun: OverrunPolicy = "skip", **options: Any) -> Schedule:
    schedule = Schedule(rate_hz, overrun=overrun, **options)
    schedule.start(100.0)
    return schedule


@pytest.mark.parametrize("rate_hz", [3.0, 30.0, 500.0, 0.1, 1000.0 / 7.0])
def test_ticks_do_not_drift_however_late_each_begins(rate_hz: float) -> None:
    schedule = started(rate_hz)
    for number in range(2000):
        due_s = schedule.due_s
        assert due_s == pytest.approx(100.0 + number / rate_hz, rel=1e-14)
        tick = begun(schedule, due_s + 0.3 / rate_hz)
        assert (tick.number, tick.due_s) == (number, due_s)
        assert tick.lateness_s == pytest.approx(0.3 / rate_hz, rel=1e-6)
        schedule.end(due_s + 0.9 / rate_hz)
    assert (schedule.overruns, schedule.skipped) == (0, 0)


def test_a_day_at_500_hz_ends_on_the_microsecond() -> None:
    schedule = started(500.0)
    schedule.number = 24 * 3600 * 500
    assert abs(schedule.due_s - (100.0 + 24 * 3600)) < 1e-6


def test_the_deadline_is_counted_from_when_a_tick_is_due() -> None:
    assert begun(started(10.0), 100.03).deadline_s == pytest.approx(100.08)
    assert begun(started(10.0, deadline_s=0.05), 100.03).deadline_s == pytest.approx(100.05)


def test_skip_goes_on_with_the_next_tick_that_is_to_come() -> None:
    schedule = started(10.0)
    begun(schedule, 100.0)
    schedule.end(100.35)  # those due at 0.1, 0.2 and 0.3 are over
    assert (schedule.number, schedule.due_s, schedule.overruns, schedule.skipped) == (4, pytest.approx(100.4), 1, 3)
    assert begun(schedule, 100.4).number == 4


def test_skip_leaves_out_a_tick_that_cannot_begin_within_its_period() -> None:
    schedule = started(10.0)
    begun(schedule, 100.0)
    schedule.end(100.01)
    assert begun(schedule, 100.199).number == 1  # late, but within its period
    schedule.end(100.1999)
    assert schedule.begin(100.301) is None
    assert (schedule.number, schedule.overruns, schedule.skipped) == (4, 1, 2)


def test_a_tick_that_ends_exactly_when_the_next_is_due_does_not_overrun() -> None:
    schedule = started(10.0)
    begun(schedule, 100.0)
    schedule.end(schedule.due_s)
    assert (schedule.number, schedule.overruns) == (1, 0)


def test_catch_up_does_every_tick_each_with_time_of_its_own() -> None:
    schedule = started(10.0, "catch_up")
    begun(schedule, 100.0)
    schedule.end(100.35)
    numbers, deadlines, now_s = [], [], 100.35
    for _ in range(5):
        now_s = max(now_s, schedule.due_s)
        tick = begun(schedule, now_s)
        numbers.append(tick.number)
        deadlines.append(tick.deadline_s)
        now_s += 0.01
        schedule.end(now_s)
    assert numbers == [1, 2, 3, 4, 5]
    # Ticks whose period is over are given the time that any is, from when they begin; others from when they are due.
    assert deadlines == pytest.approx([100.43, 100.44, 100.38, 100.48, 100.58])
    assert (schedule.overruns, schedule.skipped) == (3, 0)


def test_stop_ends_the_loop_and_says_why() -> None:
    schedule = started(10.0, "stop")
    begun(schedule, 100.0)
    schedule.end(100.1)
    with pytest.raises(OverrunError, match=r"tick 1 could not begin within its period: got 150\.000 ms over a period"):
        schedule.begin(100.25)
    schedule = started(10.0, "stop")
    begun(schedule, 100.0)
    with pytest.raises(OverrunError, match=r"tick 0 was not done when the next one was due: got 5\.000 ms"):
        schedule.end(100.105)
    assert schedule.overruns == 1


def test_another_run_begins_its_own_grid() -> None:
    schedule = started(10.0)
    for now_s in (100.0, 100.1):
        schedule.begin(now_s)
    schedule.start(200.5)
    assert (schedule.number, schedule.due_s) == (0, 200.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(({"rate_hz": value}, "rate_hz: got ") for value in (0, -1.0, float("nan"), float("inf"), "10", True, None)),
        ({"rate_hz": 10.0, "deadline_s": 0.11}, r"deadline_s: got 0\.11 s, expected at most the period, 0\.1 s"),
        ({"rate_hz": 10.0, "deadline_s": 0}, "deadline_s: got 0, expected a positive number of seconds"),
        ({"rate_hz": 10.0, "overrun": "ignore"}, "overrun: got 'ignore', expected one of skip, catch_up, stop"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Schedule(**arguments)


def test_skipping_never_leads_backwards_or_into_the_past() -> None:
    for rate_hz, late in itertools.product((7.0, 333.0, 1000.0 / 3.0), (1.0, 1.5, 2.0, 1e3, 1e6 + 0.3)):
        schedule = started(rate_hz)
        begun(schedule, 100.0)
        now_s = 100.0 + late / rate_hz
        schedule.end(now_s)
        assert schedule.due_s >= now_s
        assert schedule.due_s - now_s <= 1.0 / rate_hz + 1e-9
