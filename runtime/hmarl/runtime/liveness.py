"""Whether acts get through: judged by a probe that goes the way acts go, and by the acts themselves."""

from __future__ import annotations

import time
from collections.abc import Callable

PROBES_TO_FAIL = 3  # in a row
ACTS_TO_FAIL = 5  # in a row, whoever asked
_NO_ACT_FOR_S = 1.0  # and no act has succeeded for so long
_FORGOTTEN_AFTER_S = 10.0  # when nothing has failed for so long, the failing client is gone


class Liveness:
    """What is known of a process's acting.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._probes_failed = 0
        self._acted_at = self._failed_at = float("-inf")
        self._acts_failed = 0

    def probed(self, succeeded: bool) -> None:
        """Note how a probe went."""
        self._probes_failed = 0 if succeeded else self._probes_failed + 1

    def acted(self) -> None:
        """Note that a client's act succeeded."""
        self._acted_at = self._clock()
        self._acts_failed = 0

    def failed(self) -> None:
        """Note that the policy failed in a client's act, which was not the request's fault as far as one can tell."""
        self._failed_at = self._clock()
        self._acts_failed += 1

    @property
    def alive(self) -> bool:
        """Whether acts get through, by the probe alone: no client can make it say otherwise by what it sends."""
        return self._probes_failed < PROBES_TO_FAIL

    @property
    def well(self) -> bool:
        """Whether acts get through and clients' acts do not fail one after the other."""
        now = self._clock()
        failing = self._acts_failed >= ACTS_TO_FAIL and now - self._acted_at >= _NO_ACT_FOR_S
        return self.alive and not (failing and now - self._failed_at < _FORGOTTEN_AFTER_S)

    @property
    def trouble(self) -> str:
        """Why it is not well, or what went wrong last."""
        if not self.alive:
            return f"{self._probes_failed} probes in a row got no action"
        return f"the policy failed in {self._acts_failed} acts in a row"
