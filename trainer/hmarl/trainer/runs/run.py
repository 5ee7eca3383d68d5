"""A training run: collect, update, evaluate, checkpoint; killed at any moment it continues bit for bit."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import shlex
import time
from collections import deque
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmarl.runtime.bundle import remove_temporaries, replace_file
from hmarl.sdk.environment import VectorEnvironment
from hmarl.sdk.environments import copy_cost, make
from hmarl.sdk.environments.copies import evaluation_copies
from hmarl.sdk.errors import HmarlError, UsageError
from hmarl.sdk.evaluation.closed_loop import evaluate, unfinished_remark
from hmarl.trainer.algorithms import find_algorithm
from hmarl.trainer.contract.algorithm import Algorithm
from hmarl.trainer.experience.finite import broken_observation, broken_rollout, first_non_finite
from hmarl.trainer.experience.rollout import Collector, EpisodeStatistics, Rollout
from hmarl.trainer.records.checkpoint import (
    Checkpoint,
    Counters,
    any_written,
    checkpoint_path,
    flatten,
    last_good,
    mark_best,
    newest_checkpoint,
    prune,
    restore,
    settle_checkpoint,
    write_checkpoint,
)
from hmarl.trainer.records.problems import Problems, StorageError, storing
from hmarl.trainer.records.recorder import LiveProgress, Recorder, evaluation_path, read_evaluation
from hmarl.trainer.runs.announcements import Announcements
from hmarl.trainer.runs.config import RunConfig, device_of
from hmarl.trainer.runs.lock import RunLock
from hmarl.trainer.runs.stopping import StopRequest

EVALUATION_SEED = 1_000_003
_log = logging.getLogger(__name__)


class DivergedError(HmarlError):
    """Updates diverged too often in a row; the last good checkpoint is untouched."""


class Interrupted(KeyboardInterrupt):
    """The user asked to stop; everything up to the last update has been saved."""


def build_algorithm(config: RunConfig, environment: VectorEnvironment) -> Algorithm:
    """A fresh algorithm, seeded by the run's seed."""
    run = config.run_settings()
    generator = torch.Generator().manual_seed(run.seed)
    return find_algorithm(config.algorithm)(environment.spec, config.settings(), generator, device_of(run))


def derived_seeds(seed: int, purpose: int, count: int) -> np.ndarray:
    """[count] int64 environment seeds from (run seed, purpose), each in [0, 2³¹)."""
    words = np.random.SeedSequence((seed, purpose)).generate_state(count, np.uint32)
    return (words >> 1).astype(np.int64)


class Run:
    """One run in one directory.

    Args:
        config: what to run.
        directory: where it writes; created when needed.
        lock: of the directory; released by ``close``.
        checkpoint: where to continue, None for a fresh start.
    """

    def __init__(self, config: RunConfig, directory: Path, lock: RunLock, checkpoint: Checkpoint | None = None) -> None:
        self.config, self.directory, self._lock = config, directory, lock
        self.settings = config.run_settings()
        torch.set_num_threads(self.settings.threads)
        device = device_of(self.settings)
        self.environment = make(config.environment, self.settings.environments, **config.environment_arguments)
        self.algorithm = build_algorithm(config, self.environment)
        self.rollout = Rollout(self.environment.spec, self.settings.rollout_length, self.settings.environments, device)
        seeds = derived_seeds(self.settings.seed, 0, self.settings.environments)
        self.collector = Collector(self.environment, self.rollout, seeds)
        self._stateful = self.collector.get_state() is not None
        self._evaluation_environment: VectorEnvironment | None = None
        self.counters = Counters()
        self._divergence, self._rollbacks = "", 0
        self._pending: dict[str, float] | None = None
        self._problems = Problems()
        self._started, self._first_steps = time.monotonic(), 0
        self._advice_given: set[str] = set()
        self._returns: deque[float] = deque(maxlen=max(100, self.settings.environments))
        if checkpoint is not None:
            self._load(checkpoint)

    @classmethod
    def create(cls, config: RunConfig, directory: Path) -> Run:
        """A fresh run; writes config.json, from when on it can be resumed.

        Raises:
            UsageError: the directory holds a run, belongs to a process that runs, or cannot be written.
            StorageError: there is no space for config.json.
        """
        lock = RunLock(directory)
        try:
            refuse_other_run(directory)
            run = cls(config, directory, lock)
            try:
                with storing("then type the same command again"):
                    _remove_leftovers(directory)
                    config.write(directory)
            except BaseException:
                run.environment.close()
                raise
        except BaseException:
            lock.discard()
            raise
        return run

    @classmethod
    def resume(cls, directory: Path, steps: int | None = None) -> Run:
        """Continue from the newest good checkpoint; a run that was stopped before its first one begins again.

        Args:
            directory: the run's.
            steps: raises or lowers the goal, in config.json as well.

        Raises:
            CheckpointError: no run, or all of its checkpoints are damaged.
            UsageError: the directory belongs to a process that runs, or cannot be written.
        """
        RunConfig.read(directory)  # what is no run is left as it is
        lock = RunLock(directory)
        try:
            config = RunConfig.read(directory)
            if steps is not None:
                config = config.model_copy(update={"run": {**config.run, "steps": steps}})
            checkpoint = None
            if _ever_saved(directory):
                checkpoint = newest_checkpoint(directory / "checkpoints", device_of(config.run_settings()))
            run = cls(config, directory, lock, checkpoint)
            with storing():
                _remove_leftovers(directory)
                if steps is not None:
                    config.write(directory)
        except BaseException:
            lock.release()
            raise
        return run

    # --- what a checkpoint holds ------------------------------------------------------------------------------------

    def _components(self) -> dict[str, Any]:
        return {
            "algorithm": self.algorithm.components(),
            "generators": {
                "order": self.algorithm.generator.get_state(),
                "noise": self.algorithm.noise_generator.get_state(),
            },
        }

    def tensors(self) -> dict[str, Tensor]:
        """Everything that determines the rest of the run."""
        tensors = flatten(self._components())
        tensors |= flatten({"experience": self.algorithm.experience()})
        tensors |= {f"acting.{key}": value for key, value in self.algorithm.acting_state().items()}
        tensors["recent_returns"] = torch.tensor(list(self._returns), dtype=torch.float64)
        state = self.collector.get_state()
        if state is not None:
            tensors |= {f"collector.{key}": torch.as_tensor(value.copy()) for key, value in state.items()}
        return tensors

    def _load(self, checkpoint: Checkpoint) -> None:
        tensors, self.counters, self._pending = checkpoint.tensors, checkpoint.counters, checkpoint.pending
        restore({"algorithm": self.algorithm.components(), "experience": self.algorithm.experience()}, tensors)
        self.algorithm.generator.set_state(tensors["generators.order"].cpu())
        self.algorithm.noise_generator.set_state(tensors["generators.noise"].cpu())
        acting = {key.removeprefix("acting."): value for key, value in tensors.items() if key.startswith("acting.")}
        self._returns.extend(tensors["recent_returns"].tolist())
        if self._stateful:
            if acting:
                self.algorithm.load_acting_state(acting)
            prefix = "collector."
            self.collector.set_state(
                {k.removeprefix(prefix): v.cpu().numpy() for k, v in tensors.items() if k.startswith(prefix)}
            )
        else:
            self._restart_environments()

    def _restart_environments(self) -> None:
        """New episodes with seeds derived from (seed, update), for environments whose state cannot be saved."""
        seeds = derived_seeds(self.settings.seed, 1 + self.counters.update, self.settings.environments)
        self.collector.restart(seeds, self.algorithm)

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
        self._started, self._first_steps = time.monotonic(), self.counters.steps
        title = f"{self.config.algorithm} · {self.config.environment}"
        # The line of an update whose evaluation is pending is written again, with the evaluation.
        again = self._pending is not None
        with storing():
            recorder = Recorder(self.directory, self.counters.update - again, self.counters.steps - again)
        try:
            with LiveProgress(title, self.settings.steps, self.counters.steps) as progress:
                if self._pending is not None:
                    progress.say(f"evaluating what was saved at {self.counters.steps:,} steps")
                    self._evaluate_due(recorder, progress)
                announcements = self._announcements(progress)
                while self.counters.steps < self.settings.steps:
                    self._advance(recorder, progress, stop, announcements)
        finally:
            recorder.close()
        if recorder.problem:
            self._problems.add("TensorBoard", recorder.problem)
        return self._summarise()

    def _advance(
        self, recorder: Recorder, progress: LiveProgress, stop: StopRequest, announcements: Announcements
    ) -> None:
        """One update, with what is due after it; the checkpoint first."""
        with stop.postponed():
            metrics = self._iterate(announcements)
            self._stop_when_diverging(metrics)
            done = self.counters.steps >= self.settings.steps
            due = done or self.counters.steps - self.counters.last_evaluation >= self.settings.evaluation_interval
            saving = due or stop() or self.counters.update % self.settings.checkpoint_interval == 0
            elapsed_s = time.monotonic() - self._started
            metrics["steps_per_s"] = (self.counters.steps - self._first_steps) / elapsed_s
            if saving:
                metrics |= self._truncated()
            if due:
                self._pending = metrics
            else:
                self._record(recorder, metrics, durably=saving)
            if saving:
                self._checkpoint()
            progress.update(self.counters.steps, metrics)
        if stop():
            if not saving:  # asked for after that was settled, and told that this update is saved
                self._save_late(recorder, metrics, stop)
            raise Interrupted
        if due:
            self._evaluate_due(recorder, progress)

    def _save_late(self, recorder: Recorder, metrics: dict[str, float], stop: StopRequest) -> None:
        """Save an update whose line has been written already."""
        with stop.postponed(), storing():
            recorder.amend(self.counters.update, self.counters.steps, metrics, self._truncated())
            recorder.sync()
            self._checkpoint()

    def _truncated(self) -> dict[str, float]:
        """What a checkpoint costs: episodes that begin anew where the environments cannot be saved."""
        return {} if self._stateful else {"environments_truncated": float(self.settings.environments)}

    def _stop_when_diverging(self, metrics: dict[str, float]) -> None:
        self._rollbacks = self._rollbacks + 1 if metrics.get("rolled_back") else 0
        if self._rollbacks >= self.settings.max_rollbacks:
            raise DivergedError(f"training: {self._rollbacks} updates in a row diverged {self._divergence}")

    def _record(self, recorder: Recorder, metrics: dict[str, float], durably: bool) -> None:
        """Write an update's line, before its checkpoint: one too many is dropped on resuming, none may lack."""
        with storing():
            recorder.write(self.counters.update, self.counters.steps, metrics)
            if durably:
                recorder.sync()

    def _announcements(self, progress: LiveProgress) -> Announcements:
        """What is said of the first updates."""
        count, length = self.settings.environments, self.settings.rollout_length
        updates = math.ceil((self.settings.steps - self.counters.steps) / (count * length))
        cost = copy_cost(self.config.environment)
        return Announcements(progress.say, updates, length, count, cost is not None and cost.compiles)

    def _iterate(self, announcements: Announcements) -> dict[str, float]:
        """One rollout and one update; a diverged update is named and undone."""
        begin = time.monotonic()
        announcements.collecting()
        statistics = self._collect()
        announcements.updating()
        collected = time.monotonic()
        self._returns.extend(value for value in statistics.returns if math.isfinite(value))
        metrics = self._update()
        frames = self.settings.environments * self.settings.rollout_length
        self.counters = replace(
            self.counters,
            update=self.counters.update + 1,
            steps=self.counters.steps + frames,
            episodes=self.counters.episodes + len(statistics.returns),
        )
        advice = self.algorithm.advice(metrics)
        if advice and advice not in self._advice_given:
            _log.warning("update %d: %s", self.counters.update, advice)
            self._advice_given.add(advice)
        if self._returns:
            metrics["return"] = float(np.mean(self._returns))
        if statistics.lengths:
            metrics["episode_length"] = float(np.mean(statistics.lengths))
        if statistics.successes:
            metrics["success_rate"] = float(np.mean(statistics.successes))
        metrics["rollout_s"], metrics["update_s"] = collected - begin, time.monotonic() - collected
        announcements.updated()
        return metrics

    def _collect(self) -> EpisodeStatistics:
        """One rollout."""
        try:
            return self.collector.collect(self.algorithm)
        except Exception as error:
            # Actions made of such numbers may be what an environment has choked on.
            if broken := broken_observation(self.environment.spec, self.collector.observation):
                error.add_note(broken)
            raise

    def _update(self) -> dict[str, float]:
        """One update; a diverged one is named and undone. Nothing is learnt from a rollout that is not finite."""
        if broken := broken_rollout(self.rollout):
            return self._roll_back(broken, "look for it in the environment")
        before = {name: tensor.clone() for name, tensor in flatten(self.algorithm.components()).items()}
        metrics = self.algorithm.update(self.rollout, self.counters.steps / self.settings.steps)
        if broken := first_non_finite(flatten(self.algorithm.components()), metrics):
            restore(self.algorithm.components(), before)
            return self._roll_back(broken, "try a smaller step size")
        return metrics

    def _roll_back(self, why: str, advice: str) -> dict[str, float]:
        self._divergence = f"({why}); {advice}"
        _log.warning("update %d diverged: %s; rolled back", self.counters.update + 1, why)
        return {"rolled_back": 1.0}

    def _checkpoint(self) -> None:
        """Save, with the environments begun anew where their state cannot be saved: the unbroken run goes on alike."""
        if not self._stateful:
            self._restart_environments()
        path = self.save()
        if self._pending is None:
            prune(path.parent, self.settings.checkpoints_kept)

    def save(self) -> Path:
        """Write a checkpoint now."""
        with storing():
            return write_checkpoint(self.directory / "checkpoints", self.tensors(), self.counters, self._pending)

    def _evaluate_due(self, recorder: Recorder, progress: LiveProgress) -> None:
        """Evaluate the checkpoint that has just been written, and complete it by what came of it."""
        evaluation = self._try_to_evaluate()
        shown = [f"{key.split('/')[1]} {value:.2f}" for key, value in evaluation.items() if key.endswith("return_mean")]
        if shown:
            progress.say(f"evaluation at {self.counters.steps:,} steps: return " + ", ".join(shown))
        self._record(recorder, {**(self._pending or {}), **evaluation}, durably=True)
        self._pending = None
        score = evaluation.get(f"evaluation/{next(iter(self.algorithm.teams()))}/return_mean", math.nan)
        best = math.isfinite(score) and (self.counters.best_return is None or score > self.counters.best_return)
        self.counters = replace(
            self.counters,
            last_evaluation=self.counters.steps,
            best_return=score if best else self.counters.best_return,
        )
        folder = self.directory / "checkpoints"
        path = checkpoint_path(folder, self.counters.steps)
        with storing():
            # This one last: until then a resumed run does all of it again.
            if best:
                mark_best(folder, path, score)
            settle_checkpoint(path, self.counters)
            prune(folder, self.settings.checkpoints_kept)

    def _try_to_evaluate(self) -> dict[str, float]:
        """The evaluation's metrics; one that fails is reported, and ends nothing."""
        try:
            return self.evaluate()
        except StorageError:
            raise
        except (Exception, SystemExit) as error:
            steps = self.counters.steps
            self._problems.add(
                "evaluation", f"evaluation at {steps:,} steps failed: {type(error).__name__}: {error}",
                "training goes on and evaluates again when it is time; by hand: "
                f"hmarl-eval --run {shlex.quote(str(self.directory))} --checkpoint {steps}",
            )  # fmt: skip
            with suppress(Exception):  # it was not made, or is what has failed
                self._evaluation_path().unlink(missing_ok=True)
                if self._evaluation_environment is not None:
                    self._evaluation_environment.close()
            self._evaluation_environment = None
            return {"evaluation_failed": 1.0}

    def evaluate(self) -> dict[str, float]:
        """Deterministic episodes with the same seeds every time; for HCPO under all four conductors."""
        if self._evaluation_environment is None:
            name, episodes = self.config.environment, self.settings.evaluation_episodes
            batch = evaluation_copies(name, episodes, self.settings.environments)
            self._evaluation_environment = make(name, batch, **self.config.environment_arguments)
        metrics, details = {}, {}
        for name, team in self.algorithm.teams(sample=not self.algorithm.settings.deterministic_evaluation).items():
            result = evaluate(
                self._evaluation_environment, team, self.settings.evaluation_episodes, EVALUATION_SEED,
                step_limit=self.settings.evaluation_step_limit,
            )  # fmt: skip
            if remark := unfinished_remark(result, "run.evaluation_step_limit"):
                _log.warning("evaluation at %s steps, %s: %s", f"{self.counters.steps:,}", name, remark)
            summary = result.summary()
            details[name] = {"returns": result.returns.tolist(), **summary}
            for key in ("return_mean", "return_median", "return_iqm", "success_rate"):
                if summary.get(key) is not None:
                    metrics[f"evaluation/{name}/{key}"] = float(summary[key])
        with storing():
            replace_file(self._evaluation_path(), (json.dumps(details, default=str) + "\n").encode())
        if {"local", "guider"} <= set(details):
            gap = details["guider"]["return_mean"] - details["local"]["return_mean"]
            metrics["evaluation/imitation_gap"] = float(gap)
        return metrics

    def _evaluation_path(self) -> Path:
        return evaluation_path(self.directory, self.counters.steps)

    def _summarise(self) -> dict[str, Any]:
        """Write the summary, whose times are those since training was started, or resumed."""
        wall_s, first_steps = time.monotonic() - self._started, self._first_steps
        steps = self.counters.steps - first_steps
        final = self._evaluation_path()
        if (
            not final.exists() and "evaluation" not in self._problems
        ):  # resumed with a goal that had been passed already
            self._try_to_evaluate()
        self._draw()
        summary = {
            "algorithm": self.config.algorithm,
            "environment": self.config.environment,
            "seed": self.settings.seed,
            "steps": self.counters.steps,
            "updates": self.counters.update,
            "episodes": self.counters.episodes,
            "best_return": self.counters.best_return,
            "final": read_evaluation(final) if final.exists() else {},
            "problems": self._problems.told(),
            "resumed_at": first_steps,
            "wall_s": wall_s,
            "steps_per_s": steps / wall_s if wall_s > 0 and steps else None,
            "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            "torch": torch.__version__,
        }
        with storing():
            replace_file(self.directory / "summary.json", (json.dumps(summary, indent=1, default=str) + "\n").encode())
        return summary

    def _draw(self) -> None:
        """Write plots/; what keeps them from being drawn is reported."""
        try:
            from hmarl.trainer.records.plots import write_run_plots  # noqa: PLC0415 - matplotlib takes long to import

            write_run_plots(self.directory, f"{self.config.algorithm} on {self.config.environment}")
        except Exception as error:
            self._problems.add(
                "plots",
                f"plots: not drawn ({type(error).__name__}: {error})",
                f"{self.resume_command} draws them again",
            )

    def standing(self) -> str:
        """Which checkpoint there is, and how to go on."""
        folder = self.directory / "checkpoints"
        if (newest := last_good(folder)) is None:
            return f"no checkpoint was written yet; begin again with: {self.resume_command}"
        return f"the last good checkpoint is in {folder} ({newest.stem}); continue with: {self.resume_command}"

    def stopped(self, saved: bool) -> str:
        """What to tell who has stopped the run: whether it was saved just now, and how to go on."""
        newest = last_good(self.directory / "checkpoints")
        if newest is None or not saved:
            return self.standing()
        again = "" if self._stateful else "; the environments, which cannot be saved, then begin new episodes"
        return f"saved {newest.stem}. Continue with: {self.resume_command}{again}"

    def close(self) -> None:
        """Free the environments, and the directory for another run."""
        try:
            self.environment.close()
            if self._evaluation_environment is not None:
                self._evaluation_environment.close()
        finally:
            self._lock.release()

    @property
    def resume_command(self) -> str:
        """What to type to continue."""
        return f"hmarl-train --resume {shlex.quote(str(self.directory))}"


def refuse_other_run(directory: Path) -> None:
    """Refuse to begin a run where there is one.

    Raises:
        UsageError: there is.
    """
    if (directory / "config.json").exists():
        resume = f"--resume {shlex.quote(str(directory))}"
        raise UsageError(f"--out: {directory} already holds a run; choose another, or use {resume}")


def _ever_saved(directory: Path) -> bool:
    """Whether a run has had a checkpoint, there still or not: evaluations and summary come after the first."""
    return any_written(directory / "checkpoints") or any(directory.glob("eval/*.json"))


def _remove_leftovers(directory: Path) -> None:
    """Temporary files of a run that was killed; of the directory itself only those that are the run's own."""
    for name in ("config.json", "metrics.jsonl", "summary.json"):
        remove_temporaries(directory, name)
    for folder in ("checkpoints", "eval", "plots"):
        remove_temporaries(directory / folder)
