"""The clock by which deadlines and ages of actions are judged."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

# Linux' monotonic clock stands still while the machine is suspended; an action from before that is not fresh, though.
_BOOT_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", None)

now_s: Callable[[], float] = time.monotonic if _BOOT_CLOCK is None else partial(time.clock_gettime, _BOOT_CLOCK)
