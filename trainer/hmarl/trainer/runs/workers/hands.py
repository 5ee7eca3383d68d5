"""Where workers are: what a crew needs of them, and those of this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from hmarl.trainer.experience.packing import Arrays
from hmarl.trainer.runs.config import RunConfig
from hmarl.trainer.runs.workers.worker import Collected, Facts, Order, RolloutWorker, Start


class Hands(Protocol):
    """All workers of a run.

    Attributes:
        where: they are, in words.
        remote: whether what they collect is sent.
        replaced: workers that were lost so far.
    """

    where: str
    remote: bool
    replaced: int

    def begin(self, starts: Sequence[Start]) -> Facts:
        """Begin everywhere; what is being collected is forgotten."""

    def collect(self, orders: Sequence[Order], weights: Arrays, starts: Sequence[Start]) -> None:
        """Have all collect a rollout.

        Args:
            orders: one a worker.
            weights: see ``acting_weights``; copied before this returns.
            starts: where the workers' environments stand, for those who take the place of lost ones.
        """

    def collected(self) -> list[Collected]:
        """Wait for all; theirs in the order of the workers."""

    def close(self) -> None:
        """Free the environments."""


MakeHands = Callable[[RunConfig], Hands]


class LocalHands:
    """Workers of this process, one after the other.

    Args:
        config: of the run.
    """

    where, remote, replaced = "in this process", False, 0

    def __init__(self, config: RunConfig) -> None:
        self._workers: list[RolloutWorker] = []
        self._collected: list[Collected] = []
        try:
            for number in range(config.run_settings().workers):
                self._workers.append(RolloutWorker(config, number))
        except BaseException:
            self.close()
            raise

    def begin(self, starts: Sequence[Start]) -> Facts:
        """See ``Hands``."""
        facts = [worker.begin(start) for worker, start in zip(self._workers, starts, strict=True)]
        return facts[0]

    def collect(self, orders: Sequence[Order], weights: Arrays, starts: Sequence[Start]) -> None:
        """See ``Hands``; done when this returns."""
        self._collected = [worker.collect(order, weights) for worker, order in zip(self._workers, orders, strict=True)]

    def collected(self) -> list[Collected]:
        """See ``Hands``."""
        return self._collected

    def close(self) -> None:
        """See ``Hands``."""
        for worker in self._workers:
            worker.close()
