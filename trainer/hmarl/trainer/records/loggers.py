"""Where a run's figures are shown beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow.

They are there to be looked at: whatever comes of them, training goes on, and its figures are in metrics.jsonl.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hmarl.sdk.errors import MissingExtraError
from hmarl.trainer.records.board import Board

LOGGERS = ("tensorboard", "wandb", "mlflow")
# Some thousands of updates: more than what a tracker that is slow at its beginning falls behind by.
_WAITING, _CLOSE_S = 4096, 60.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFacts:
    """What a tracker is told of a run.

    Attributes:
        directory: of the run, in which a tracker keeps what it needs to go on.
        name: of the run.
        environment: its name.
        config: everything that determines it.
    """

    directory: Path
    name: str
    environment: str
    config: Mapping[str, Any]


class Logger(Protocol):
    """Shows a run's figures. No method raises."""

    name: str
    problem: str | None
    """What came between, None while all is well."""

    def log(self, figures: Mapping[str, float], steps: int) -> None:
        """Figures after so many steps."""

    def close(self) -> None:
        """Write what is left."""


class Tracker(Protocol):
    """A connection to what keeps figures; any method may raise, or take its time."""

    def log(self, figures: Mapping[str, float], steps: int) -> None:
        """Finite figures after so many steps."""

    def finish(self) -> None:
        """The run has ended, or goes on later."""


class BackgroundLogger:
    """Hands figures to a tracker in a thread of its own, so that one that fails or hangs costs the run nothing.

    Args:
        name: as users call it.
        open_tracker: connects; called in the thread.
        close_s: how long the end waits for what has not been written yet.
    """

    def __init__(self, name: str, open_tracker: Callable[[], Tracker], close_s: float = _CLOSE_S) -> None:
        self.name = name
        self.problem: str | None = None
        self._open, self._close_s = open_tracker, close_s
        self._figures: queue.Queue[tuple[dict[str, float], int] | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._work, name=f"logger {name}", daemon=True)
        self._thread.start()

    def log(self, figures: Mapping[str, float], steps: int) -> None:
        """See ``Logger``."""
        if self.problem is not None:
            return
        try:
            finite = {name: value for name, value in figures.items() if math.isfinite(value)}
            self._figures.put_nowait((finite, steps))
        except queue.Full:
            self._give_up(f"has not taken {_WAITING:,} updates")

    def close(self) -> None:
        """See ``Logger``."""
        if self.problem is None:
            try:
                self._figures.put(None, timeout=self._close_s)
            except queue.Full:
                self._give_up(f"has not taken {_WAITING:,} updates")
                return
        elif not self._thread.is_alive():
            return
        self._thread.join(self._close_s)
        if self._thread.is_alive() and self.problem is None:
            self._give_up(f"has not ended within {self._close_s:g} s")

    def _work(self) -> None:
        try:
            tracker = self._open()
            while self.problem is None and (taken := self._figures.get()) is not None:
                tracker.log(*taken)
            tracker.finish()
        except BaseException as error:  # some end programs by SystemExit
            self._give_up(f"failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})")

    def _give_up(self, why: str) -> None:
        if self.problem is None:
            self.problem = f"{self.name}: {why}; metrics.jsonl has the figures"
            _log.warning("%s; training goes on", self.problem)


def check_loggers(names: Sequence[str]) -> None:
    """Refuse loggers whose package is not installed; imports none.

    Raises:
        MissingExtraError: one is not.
    """
    for name in names:
        if name != "tensorboard" and importlib.util.find_spec(name) is None:
            raise MissingExtraError(name, name, f"run.loggers={name}")


def open_loggers(names: Sequence[str], facts: RunFacts, purge_step: int | None) -> list[Logger]:
    """The loggers of a run.

    Args:
        names: of ``LOGGERS``.
        facts: of the run.
        purge_step: TensorBoard's figures of this step and later ones, written before, no longer count; None for a new
            run.
    """
    return [
        Board(facts.directory / "tensorboard", purge_step) if name == "tensorboard" else _in_background(name, facts)
        for name in names
    ]


def _in_background(name: str, facts: RunFacts) -> Logger:
    def opened() -> Tracker:
        from hmarl.trainer.records import trackers  # noqa: PLC0415 - imports what its extra brings

        return trackers.WandbTracker(facts) if name == "wandb" else trackers.MlflowTracker(facts)

    return BackgroundLogger(name, opened)
