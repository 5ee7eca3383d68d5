"""An algorithm's advice while it is trained: each piece is given once, however long another stays true."""

from __future__ import annotations

import logging

from hmarl.trainer.contract.algorithm import Algorithm

_log = logging.getLogger(__name__)


class Advice:
    """What an algorithm says of its metrics.

    Args:
        algorithm: who is asked.
    """

    def __init__(self, algorithm: Algorithm) -> None:
        self._algorithm = algorithm
        self._given: set[str] = set()

    def on(self, metrics: dict[str, float], of: str) -> None:
        """Warn of what is wrong in metrics, unless that was said before; ``of`` says whose they are."""
        for advice in self._algorithm.advice(metrics):
            if advice not in self._given:
                _log.warning("%s: %s", of, advice)
                self._given.add(advice)
