"""How much one client may ask for: requests a second. Of sessions and streams, ``places`` keeps count."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from hmarl.runtime.errors import QuotaError

_MOST_BUCKETS = 4096  # clients on this machine without an identity are as many as they have connections


class _Bucket:
    __slots__ = ("at", "left")

    def __init__(self, left: float, at: float) -> None:
        self.left = left
        self.at = at


class RequestQuota:
    """A token bucket for each client: it holds what a second allows, so that short bursts pass.

    Args:
        per_s: requests a second of one client; 0 for any number.
        clock: monotonic seconds.

    Attributes:
        per_s: requests a second of one client; 0 for any number.
    """

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_s = per_s
        self._size = max(per_s, 1.0)
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[str, _Bucket] = {}

    def take(self, client: str) -> None:
        """Count a request of a client.

        Raises:
            QuotaError: it has sent too many.
        """
        if not self.per_s:
            return
        with self._lock:
            now = self._clock()
            bucket = self._buckets.get(client)
            if bucket is None:
                if len(self._buckets) >= _MOST_BUCKETS:
                    self._forget_full(now)
                bucket = self._buckets[client] = _Bucket(self._size, now)
            bucket.left = min(bucket.left + (now - bucket.at) * self.per_s, self._size)
            bucket.at = now
            if bucket.left >= 1.0:
                bucket.left -= 1.0
                return
            wait_s = (1.0 - bucket.left) / self.per_s
        raise QuotaError(
            f"requests: got more than {self.per_s:g} a second, which is one client's limit "
            f"(--client-rate): wait {wait_s:.3f} s, or ask for a higher limit"
        )

    def _forget_full(self, now: float) -> None:
        """Forget those who have asked for nothing lately, and if there are none, all: each gets a full bucket."""
        idle = self._size / self.per_s
        self._buckets = {name: each for name, each in self._buckets.items() if now - each.at < idle}
        if len(self._buckets) >= _MOST_BUCKETS:
            self._buckets.clear()
