"""Log lines that peers can cause at will: the first at once, further ones of its kind counted and told now and then."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable


class _Kind:
    __slots__ = ("last_text", "said_at", "unsaid")

    def __init__(self, said_at: float) -> None:
        self.said_at = said_at
        self.unsaid = 0
        self.last_text = ""


class RepeatLog:
    """Logs at most one line of a kind in a period; safe to use from several threads.

    Args:
        logger: where to.
        period_s: seconds between two lines of one kind.
        clock: monotonic seconds.
    """

    def __init__(
        self, logger: logging.Logger, period_s: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._period_s = period_s
        self._clock = clock
        self._lock = threading.Lock()
        self._kinds: dict[str, _Kind] = {}

    def say(self, kind: str, level: int, text: str, error: BaseException | None = None) -> bool:
        """Log a line, or count it when one of its kind was logged a moment ago.

        Args:
            kind: what counts as the same; from a fixed set, never from a message.
            level: of the line.
            text: the line.
            error: whose traceback is logged with it.

        Returns:
            Whether it was logged.
        """
        with self._lock:
            known, now = self._kinds.get(kind), self._clock()
            if known is not None and now - known.said_at < self._period_s:
                known.unsaid += 1
                known.last_text = text
                return False
            unsaid = known.unsaid if known is not None else 0
            self._kinds[kind] = _Kind(now)
        more = f" (and {unsaid} more of this kind since the last such line)" if unsaid else ""
        self._logger.log(level, "%s%s", text, more, exc_info=error)
        return True

    def flush(self) -> None:
        """Tell what was counted and whose period is over."""
        told = []
        with self._lock:
            for kind, known in list(self._kinds.items()):
                if self._clock() - known.said_at >= self._period_s:
                    del self._kinds[kind]
                    if known.unsaid:
                        told.append(known)
        for known in told:
            self._logger.warning("%d more of this kind, the last: %s", known.unsaid, known.last_text)
