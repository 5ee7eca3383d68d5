"""When ticks are due: multiples of the period from one beginning, so that no error adds up.

Times are seconds of ``time.monotonic`` (CLOCK_MONOTONIC), told by the caller: nothing here looks at a clock.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Literal, get_args

from hmarl.sdk.clock import checked_seconds
from hmarl.sdk.errors import OverrunError, UsageError

OverrunPolicy = Literal["skip", "catch_up", "stop"]
_POLICIES = get_args(OverrunPolicy)
_DEADLINE_SHARE = 0.8  # of a period, which leaves the rest to read and write


@dataclass(frozen=True, slots=True)
class Tick:
    """One turn of a control loop.

    Attributes:
        number: 0 for a run's first; those that were skipped are counted.
        due_s: when it was to begin.
        began_s: when it did.
        deadline_s: when its actions have to be there.
    """

    number: int
    due_s: float
    began_s: float
    deadline_s: float

    @property
    def lateness_s(self) -> float:
        """Seconds that it began late."""
        return self.began_s - self.due_s


class Schedule:
    """Ticks at ``start + number / rate_hz``.

    A tick overruns when it is not done by the time that the next one is due, or cannot begin within its own period.
    What happens then is the policy's: ``skip`` goes on with the next tick that is still to come; ``catch_up`` does all
    that are due, one right after the other; ``stop`` ends the loop by an ``OverrunError``.

    Args:
        rate_hz: ticks per second.
        deadline_s: seconds after a tick is due by which its actions have to be there; None: four fifths of the period.
        overrun: the policy.

    Attributes:
        number: of the next tick.
        overruns: how many ticks overran, in all runs.
        skipped: how many were left out.

    Raises:
        UsageError: an argument is out of range.
    """

    def __init__(self, rate_hz: float, deadline_s: float | None = None, overrun: OverrunPolicy = "skip") -> None:
        good = isinstance(rate_hz, numbers.Real) and not isinstance(rate_hz, bool)
        if not good or not 0.0 < float(rate_hz) < math.inf:
            raise UsageError(f"rate_hz: got {rate_hz!r}, expected a positive number of ticks per second")
        if overrun not in _POLICIES:
            raise UsageError(f"overrun: got {overrun!r}, expected one of {', '.join(_POLICIES)}")
        self.rate_hz = float(rate_hz)
        self.period_s = 1.0 / self.rate_hz
        self.allowed_s = _DEADLINE_SHARE * self.period_s
        if deadline_s is not None:
            self.allowed_s = checked_seconds("deadline_s", deadline_s)
        if self.allowed_s > self.period_s:
            raise UsageError(f"deadline_s: got {deadline_s} s, expected at most the period, {self.period_s:g} s")
        self.overrun = overrun
        self.overruns = 0
        self.skipped = 0
        self._start_s = 0.0
        self.number = 0

    def start(self, now_s: float) -> None:
        """The next tick is a run's first, and due now."""
        self._start_s, self.number = now_s, 0

    @property
    def due_s(self) -> float:
        """When the next tick is due."""
        return self._start_s + self.number / self.rate_hz

    def begin(self, now_s: float) -> Tick | None:
        """The tick that begins now; None when the loop has to wait again, for its period is over and it is skipped.

        Raises:
            OverrunError: its period is over, and the policy is to stop.
        """
        due_s = self.due_s
        allowed_from_s = due_s
        if now_s >= due_s + self.period_s:
            if self.overrun != "catch_up":
                self._overrun(now_s, f"tick {self.number} could not begin within its period")
                return None
            allowed_from_s = now_s
        tick = Tick(self.number, due_s, now_s, allowed_from_s + self.allowed_s)
        self.number += 1
        return tick

    def end(self, now_s: float) -> None:
        """The tick that was begun last is done.

        Raises:
            OverrunError: the next one is due already, and the policy is to stop.
        """
        if now_s > self.due_s:
            self._overrun(now_s, f"tick {self.number - 1} was not done when the next one was due")

    def _overrun(self, now_s: float, what: str) -> None:
        self.overruns += 1
        if self.overrun == "stop":
            late_ms = 1000.0 * (now_s - self.due_s)
            raise OverrunError(
                f"{what}: got {late_ms:.3f} ms over a period of {1000.0 * self.period_s:g} ms, and overrun='stop'; "
                "lower rate_hz, or allow overrun='skip'"
            )
        if self.overrun == "skip":
            overdue = self.number
            self.number = max(self.number, math.floor((now_s - self._start_s) * self.rate_hz))
            while self.due_s <= now_s:
                self.number += 1
            self.skipped += self.number - overdue
