"""Seconds: the clock by which deadlines and ages of actions are judged, and numbers of them that users give."""

from __future__ import annotations

import math
import numbers
import time
from collections.abc import Callable
from functools import partial

from hmarl.sdk.errors import UsageError

# Linux' monotonic clock stands still while the machine is suspended; an action from before that is not fresh, though.
_BOOT_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", None)

now_s: Callable[[], float] = time.monotonic if _BOOT_CLOCK is None else partial(time.clock_gettime, _BOOT_CLOCK)


def checked_seconds(name: str, value: object) -> float:
    """A positive, finite number of seconds.

    Raises:
        UsageError: it is none.
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        seconds = float(value)
        if 0.0 < seconds < math.inf:
            return seconds
    raise UsageError(f"{name}: got {value!r}, expected a positive number of seconds")
