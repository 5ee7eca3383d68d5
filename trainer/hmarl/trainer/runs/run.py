"""A training run: collect, update, evaluate, checkpoint; killed at any moment it continues bit for bit."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hmarl.trainer.contract.algorithm import Algorithm
from hmarl.trainer.records.checkpoint import Checkpoint, Counters
from hmarl.trainer.records.metrics import evaluation_path, recorded_update
from hmarl.trainer.records.problems import Problems, storing
from hmarl.trainer.runs.config import RunConfig, device_of, refuse_other_run
from hmarl.trainer.runs.directory import (
    remove_leftovers,
    resumable_checkpoint,
    resume_command,
    with_goal,
)
from hmarl.trainer.runs.drawing import draw_run
from hmarl.trainer.runs.lock import RunLock
from hmarl.trainer.runs.parts import RunParts
from hmarl.trainer.runs.reporter import Reporter
from hmarl.trainer.runs.stopping import Interrupted, StopRequest
from hmarl.trainer.runs.summary import Began, write_summary
from hmarl.trainer.runs.training import MakeSource, rollout_source


class Run:
    """One run in one directory: the loop over the parts that it is given. ``create`` and ``resume`` make one.

    Args:
        config: what to run.
        directory: where it writes.
        lock: of the directory; released by ``close``.
        parts: what trains, evaluates and saves.
        start: the checkpoint at which the parts stand, None for the beginning.
        among: what tells it from runs that are trained beside it, e.g. ``seed 101``; what it says begins with this.

    Attributes:
        counters: where the run stands.
        pending: the newest update's metrics where its evaluation is still to be done, else None.
    """

    def __init__(
        self,
        config: RunConfig,
        directory: Path,
        lock: RunLock,
        parts: RunParts,
        start: Checkpoint | None = None,
        among: str = "",
    ) -> None:
        self.config, self.directory, self.settings = config, directory, config.run_settings()
        self._lock, self._parts, self._problems, self._among = lock, parts, Problems(), among
        self.counters = Counters() if start is None else start.counters
        self.pending = None if start is None else start.pending

    @classmethod
    def create(
        cls, config: RunConfig, directory: Path, make_source: MakeSource = rollout_source, among: str = ""
    ) -> Run:
        """A fresh run; writes config.json, from when on it can be resumed.

        Args:
            config: what to run.
            directory: where it writes.
            make_source: says where its rollouts come from.
            among: see the class.

        Raises:
            UsageError: the directory holds a run, belongs to a process that runs, or cannot be written.
            StorageError: there is no space for config.json.
        """
        with ExitStack() as undone:
            lock = RunLock(directory)
            undone.callback(lock.discard)
            refuse_other_run(directory)
            parts = RunParts.build(config, directory, None, make_source)
            undone.callback(parts.close)
            with storing("then type the same command again"):
                remove_leftovers(directory)
                config.write(directory)
            undone.pop_all()
        return cls(config, directory, lock, parts, among=among)

    @classmethod
    def resume(
        cls, directory: Path, steps: int | None = None, make_source: MakeSource = rollout_source, among: str = ""
    ) -> Run:
        """Continue from the newest good checkpoint; a run that was stopped before its first one begins again.

        Args:
            directory: the run's.
            steps: a new goal, in config.json as well: at least what the run has done.
            make_source: where its workers are.
            among: see the class.

        Raises:
            CheckpointError: no run, or all of its checkpoints are damaged.
            UsageError: the run has done more steps; the directory belongs to a process that runs, or cannot be written.
        """
        RunConfig.read(directory)  # what is no run is left as it is
        with ExitStack() as undone:
            lock = RunLock(directory)
            undone.callback(lock.release)
            config = RunConfig.read(directory)
            start = resumable_checkpoint(directory, device_of(config.run_settings()))
            config = with_goal(config, steps, directory, start)
            parts = RunParts.build(config, directory, start, make_source)
            undone.callback(parts.close)
            with storing():
                remove_leftovers(directory)
                if steps is not None:
                    config.write(directory)
            undone.pop_all()
        return cls(config, directory, lock, parts, start, among)

    @property
    def algorithm(self) -> Algorithm:
        """What learns."""
        return self._parts.training.algorithm

    # --- the loop ---------------------------------------------------------------------------------------------------

    def train(self, stop: StopRequest | None = None) -> dict[str, Any]:
        """Train until the run's steps are done.

        Args:
            stop: once asked, the run ends with a checkpoint after the update that is going on; while it evaluates it
                ends at once, and evaluates when it is resumed.

        Returns:
            The summary, also written to summary.json.

        Raises:
            Interrupted: ``stop`` was asked for.
            DivergedError: too many updates diverged in a row.
            StorageError: what was to be kept could not be written.
        """
        try:
            return self._train(stop or StopRequest())
        except Exception as error:
            error.add_note(self.standing())
            raise

    def _train(self, stop: StopRequest) -> dict[str, Any]:
        self._owe_last_evaluation()
        began, live, pending = Began(self.counters.steps, time.monotonic()), self.algorithm.live_metrics, self.pending
        with Reporter.opened(
            self.directory, self.config, live, self.counters, pending is not None, self._problems, self._among
        ) as reporter:
            if pending is not None:
                reporter.say(f"evaluating what was saved at {self.counters.steps:,} steps")
                self._evaluate(reporter, pending)
            with stop.postponed():  # between two updates as well: the last ones may not be saved yet
                while self.counters.steps < self.settings.steps:
                    self._advance(reporter, stop, began)
        return self._conclude(began)

    def _owe_last_evaluation(self) -> None:
        """A run that is ended where it stands is one whose evaluation was cut off, from now on whatever happens; so is
        one whose last evaluation has failed, or is gone.
        """
        counters = self.counters
        done = counters.last_evaluation == counters.steps and evaluation_path(self.directory, counters.steps).exists()
        if self.pending is None and counters.steps >= self.settings.steps and not done:
            self.pending = recorded_update(self.directory, counters.update)
            self._parts.saver.reopen(counters, self.pending)

    def _advance(self, reporter: Reporter, stop: StopRequest, began: Began) -> None:
        """One update, with what is due after it; the checkpoint first."""
        parts = self._parts
        self.counters, metrics = parts.iterations.next(self.counters, reporter.announcements)
        metrics["steps_per_s"] = (self.counters.steps - began.steps) / began.elapsed_s()
        due = parts.evaluator.due(self.counters)
        saving = due or stop() or self.counters.update % self.settings.checkpoint_interval == 0
        if saving:
            metrics |= parts.saver.cost()
        self.pending = metrics if due else None
        if not due:
            reporter.record(self.counters, metrics, durably=saving)
        if saving:
            parts.saver.save(self.counters, self.pending)
        reporter.show(self.counters, metrics)
        if stop():
            if not saving:  # asked for after that was settled, and told that this update is saved
                reporter.amend(self.counters, metrics, parts.saver.cost())
                parts.saver.save(self.counters, None)
            raise Interrupted
        if due:
            with stop.at_once():
                self._evaluate(reporter, metrics)

    def _evaluate(self, reporter: Reporter, metrics: dict[str, float]) -> None:
        """Evaluate the checkpoint that has just been written, and complete it by what came of it."""
        steps, best_return = self.counters.steps, self.counters.best_return
        evaluated = self._parts.evaluator.attempt(steps, self._problems)
        if evaluated.returns:
            shown = ", ".join(f"{team} {value:.2f}" for team, value in evaluated.returns.items())
            reporter.say(f"evaluation at {steps:,} steps: return {shown}")
        reporter.record(self.counters, {**metrics, **evaluated.metrics}, durably=True)
        self.pending = None
        best = math.isfinite(evaluated.score) and (best_return is None or evaluated.score > best_return)
        best_return = evaluated.score if best else best_return
        self.counters = replace(self.counters, last_evaluation=steps, best_return=best_return)
        self._parts.saver.settle(self.counters, best)

    def _conclude(self, began: Began) -> dict[str, Any]:
        """Plots and summary, whose times are those since training was started, or resumed."""
        wall_s = began.elapsed_s()
        draw_run(self.directory, self.config, self.algorithm, self._problems)
        source = self._parts.training.source.summary()
        return write_summary(self.directory, self.config, self.counters, began, wall_s, self._problems, source)

    # --- around it --------------------------------------------------------------------------------------------------

    def standing(self) -> str:
        """Which checkpoint there is, and how to go on."""
        saver, again = self._parts.saver, resume_command(self.directory)
        if (newest := saver.newest()) is None:
            return f"no checkpoint was written yet; begin again with: {again}"
        return f"the last good checkpoint is in {saver.folder} ({newest}); continue with: {again}"

    def stopped(self, saved: bool) -> str:
        """What to tell who has stopped the run: whether it was saved just now, and how to go on."""
        newest = self._parts.saver.newest()
        if newest is None or not saved:
            return self.standing()
        cut = "; the environments, which cannot be saved, then begin new episodes"
        again = "" if self._parts.training.saves_environments else cut
        return f"saved {newest}. Continue with: {resume_command(self.directory)}{again}"

    def withdraw(self) -> None:
        """As if it had not been created: it has not been trained, and the same command can be typed again."""
        try:
            self._parts.close()
        finally:
            with suppress(OSError):
                (self.directory / "config.json").unlink(missing_ok=True)
            self._lock.discard()

    def close(self) -> None:
        """Free the environments, and the directory for another run."""
        try:
            self._parts.close()
        finally:
            self._lock.release()
