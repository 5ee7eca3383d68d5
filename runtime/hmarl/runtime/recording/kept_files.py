"""The files of one black box: in which order they were written, how old they are, and which of them have to go.

Neither follows from the time of day alone, which jumps: forward where a machine without a clock of its own is told the
time, back where it was wrong. Files are ordered by a number in their names. Their age is what has passed since they
were seen to change, by a clock that does not jump; of files that were there before, the time of day is asked, where
what it says can be.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

ENDING = ".mcap"
_NUMBERED = re.compile(rf"-s(\d{{10,}})-\d{{8}}T\d{{6}}-\d+{re.escape(ENDING)}")
_FORMER = re.compile(rf"-\d{{8}}T\d{{6}}-\d+-\d{{6,}}{re.escape(ENDING)}")  # until 0.2: in the order of the names
_EARLIEST_S = 1735689600.0  # of 2025: no recording is older, a clock that says so is not set
_JUMP_S = 60.0  # by which the time of day may differ before a file's is set right


def uptime_s() -> float:
    """Seconds by a clock that does not jump, and goes on while the machine sleeps where there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def in_order(path: Path) -> tuple[str, int, str]:
    """Sorts files in the order in which they were written, those of one folder after the other."""
    return str(path.parent), _number(path), path.name


def _number(path: Path) -> int:
    """By which the files of a folder are ordered; 0 where a name has none."""
    numbered = _NUMBERED.search(path.name)
    return int(numbered[1]) if numbered else 0


class KeptFiles:
    """The files of a folder that are recordings by their names; no others are touched.

    Args:
        folder: holds them.
        total_bytes: that they may take together.
        keep_s: seconds for which they are kept after they changed last.
        now_s: seconds by a clock that does not jump.
        wall_s: the time of day, in seconds since 1970.
    """

    def __init__(
        self,
        folder: Path,
        total_bytes: int,
        keep_s: float,
        now_s: Callable[[], float] = uptime_s,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._total_bytes = total_bytes
        self._keep_s = keep_s
        self._now_s = now_s
        self._wall_s = wall_s
        self._number = 0
        self._changed: dict[str, tuple[int, float]] = {}  # by name: size, and when it became that by _now_s

    def paths(self) -> list[Path]:
        """All of them, in order."""
        found = self._folder.glob(f"*{ENDING}")
        return sorted(
            (path for path in found if _NUMBERED.search(path.name) or _FORMER.search(path.name)), key=in_order
        )

    def next_path(self, begin: str, end: str) -> Path:
        """The path of a new file, after all others: its name begins and ends so, with its number in between."""
        self._number = max([self._number, *(_number(path) for path in self.paths()[-1:])]) + 1
        path = self._folder / f"{begin}-s{self._number:010}-{end}{ENDING}"
        self._changed[path.name] = 0, self._now_s()
        return path

    def keep_bounds(self, own: Path | None) -> None:
        """Delete files that are too old, and the first ones where they are too much; never ``own``, which is open."""
        known, self._changed = self._changed, {}
        found, now_s, wall_s = [], self._now_s(), self._wall_s()
        for path in self.paths():
            with contextlib.suppress(OSError):
                stat = path.stat()
                changed = self._changed_at(known.get(path.name), stat, now_s, wall_s)
                if changed is not None:
                    self._changed[path.name] = stat.st_size, changed
                    _set_right(path, stat, wall_s - (now_s - changed), wall_s)
                found.append((path, stat.st_size, 0.0 if changed is None else now_s - changed))
        left = sum(size for _, size, _ in found) - self._total_bytes
        for path, size, age_s in found:
            if path != own and (left > 0 or age_s > self._keep_s):
                with contextlib.suppress(OSError):
                    path.unlink()
                    left -= size

    @staticmethod
    def _changed_at(known: tuple[int, float] | None, stat: os.stat_result, now_s: float, wall_s: float) -> float | None:
        """When a file changed last, by the clock that does not jump; None: not to be said before that of day is set."""
        if known is not None:
            return known[1] if known[0] == stat.st_size else now_s
        if wall_s < _EARLIEST_S:
            return None
        return now_s - max(wall_s - stat.st_mtime, 0.0) if stat.st_mtime >= _EARLIEST_S else now_s


def _set_right(path: Path, stat: os.stat_result, changed_wall_s: float, wall_s: float) -> None:
    """Let a file's own time be what it is by the time of day as it is now: whoever records next goes by that."""
    if wall_s >= _EARLIEST_S and abs(stat.st_mtime - changed_wall_s) > _JUMP_S:
        with contextlib.suppress(OSError):  # of another user
            os.utime(path, (changed_wall_s, changed_wall_s))
