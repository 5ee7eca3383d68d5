"""What a run says until its course is plain: what it is busy with, how long that took, how long the whole will take."""

from __future__ import annotations

import time
from collections.abc import Callable

_SHORT_S, _LONG_S = 9.95, 10.0


def duration(seconds: float) -> str:
    """In words, e.g. ``2 min 3 s``."""
    if seconds < _SHORT_S:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours} h"] * bool(hours) + [f"{minutes} min"] * bool(minutes)
    return " ".join(parts) if hours else " ".join([*parts, f"{rest} s"])


class Announcements:
    """Announces the first rollout and update as they begin, and the expected time as soon as it can be told.

    The first update is slower than all others: buffers are allocated, and some environments compile. The second one
    tells how long the run will take; when the first takes long, it gives a bound until then.

    Args:
        say: shows a line.
        updates: that are to be made.
        steps: of a rollout.
        environments: B.
        compiles: whether the environments' first step compiles.
    """

    def __init__(
        self, say: Callable[[str], None], updates: int, steps: int, environments: int, compiles: bool = False
    ) -> None:
        self._say, self._updates, self._compiles = say, updates, compiles
        self._size = f"{steps} steps in each of {environments} environments"
        self._done = 0
        self._begun = 0.0

    def collecting(self) -> None:
        """A rollout begins."""
        self._begun = time.monotonic()
        if self._done == 0:
            self._say(f"first rollout: {self._size}" + (", compiling what steps them" if self._compiles else ""))

    def updating(self) -> None:
        """Its update begins."""
        if self._done == 0:
            self._say(f"first update; the rollout took {duration(time.monotonic() - self._begun)}")

    def updated(self) -> None:
        """Both are done."""
        seconds, self._done = time.monotonic() - self._begun, self._done + 1
        left = self._updates - self._done
        if self._done == 1 and left > 0 and seconds > _LONG_S:
            self._say(f"first update done after {duration(seconds)}: at most {duration(seconds * left)} to go")
        if self._done == 2:
            self._say(f"expected time {duration(seconds * self._updates)}, evaluations not counted")
