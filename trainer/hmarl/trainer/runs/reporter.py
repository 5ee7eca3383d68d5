"""Where a run tells of its updates while it trains: metrics.jsonl, loggers, the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from hmarl.sdk.environments import copy_cost
from hmarl.trainer.records.checkpoint import Counters
from hmarl.trainer.records.live_progress import LiveProgress
from hmarl.trainer.records.loggers import RunFacts
from hmarl.trainer.records.problems import Problems, storing
from hmarl.trainer.records.recorder import Recorder
from hmarl.trainer.runs.announcements import Announcements
from hmarl.trainer.runs.config import RunConfig

# Where there are workers: their mean rate, and what a frame costs to send.
_OF_WORKERS = ("worker_steps_per_s", "bytes_per_frame")


class Reporter:
    """Records updates and shows them.

    Args:
        recorder: writes them.
        progress: shows them.
        announcements: of the first ones.
    """

    def __init__(self, recorder: Recorder, progress: LiveProgress, announcements: Announcements) -> None:
        self._recorder, self._progress, self.announcements = recorder, progress, announcements

    @classmethod
    @contextmanager
    def opened(
        cls,
        directory: Path,
        config: RunConfig,
        live_metrics: Sequence[str],
        counters: Counters,
        pending: bool,
        problems: Problems,
        among: str = "",
    ) -> Iterator[Reporter]:
        """A reporter for as long as a run trains.

        Args:
            directory: the run's.
            config: the run's.
            live_metrics: shown on the terminal after the return.
            counters: where the run stands.
            pending: whether the newest update's line is still to be completed by its evaluation.
            problems: told in the end which loggers failed.
            among: what tells the run from those beside it, which share the terminal; empty where there are none.

        Raises:
            StorageError: metrics.jsonl cannot be written.
        """
        settings, steps = config.run_settings(), counters.steps
        updates = math.ceil((settings.steps - steps) / (settings.environments * settings.rollout_length))
        cost = copy_cost(config.environment)
        with storing():
            # The line of an update whose evaluation is pending is written again, with the evaluation.
            facts = RunFacts(directory, directory.resolve().name, config.environment, config.model_dump())
            recorder = Recorder(directory, counters.update - pending, steps - pending, settings.loggers, facts)
        title = f"{config.algorithm} · {config.environment}"
        try:
            shown = ("return", *live_metrics, *_OF_WORKERS)
            with LiveProgress(title, settings.steps, steps, shown, among=among) as progress:
                announcements = Announcements(
                    progress.say,
                    updates,
                    settings.rollout_length,
                    settings.environments,
                    cost is not None and cost.compiles,
                )
                yield cls(recorder, progress, announcements)
        finally:
            recorder.close()
        for name, problem in recorder.problems.items():
            problems.add(name, problem)

    def record(self, counters: Counters, metrics: Mapping[str, float], durably: bool) -> None:
        """Write an update's line, before its checkpoint: one too many is dropped on resuming, none may lack.

        Args:
            counters: where the run stands.
            metrics: the update's.
            durably: whether to wait until it is on the disk.

        Raises:
            StorageError: it could not be written.
        """
        with storing():
            self._recorder.write(counters.update, counters.steps, metrics)
            if durably:
                self._recorder.sync()

    def amend(self, counters: Counters, metrics: Mapping[str, float], more: Mapping[str, float]) -> None:
        """Write the newest update's line again, durably, with ``more`` figures.

        Raises:
            StorageError: it could not be written.
        """
        with storing():
            self._recorder.amend(counters.update, counters.steps, metrics, more)
            self._recorder.sync()

    def show(self, counters: Counters, metrics: Mapping[str, float]) -> None:
        """Move the progress bar on."""
        self._progress.update(counters.steps, metrics)

    def say(self, text: str) -> None:
        """Print a line."""
        self._progress.say(text)
