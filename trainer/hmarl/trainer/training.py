"""A training run: collect, update, evaluate, checkpoint; killed at any moment it continues bit for bit."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from hmarl.runtime.bundle import replace_file
from hmarl.sdk.copies import evaluation_copies
from hmarl.sdk.environment import VectorEnvironment
from hmarl.sdk.environments import copy_cost, make
from hmarl.sdk.errors import HmarlError, UsageError
from hmarl.sdk.evaluation import evaluate
from hmarl.trainer.algorithm import Algorithm
from hmarl.trainer.algorithms import find_algorithm
from hmarl.trainer.announcements import Announcements
from hmarl.trainer.checkpoint import (
    Checkpoint,
    CheckpointError,
    Counters,
    flatten,
    mark_best,
    newest_checkpoint,
    prune,
    restore,
    write_checkpoint,
)
from hmarl.trainer.config import AlgorithmSettings, RunSettings, validate
from hmarl.trainer.devices import device_named
from hmarl.trainer.recorder import LiveProgress, Recorder, evaluation_path, read_evaluation
from hmarl.trainer.rollout import Collector, Rollout
from hmarl.trainer.team import teams, variants

EVALUATION_SEED = 1_000_003
_log = logging.getLogger(__name__)


class DivergedError(HmarlError):
    """Updates diverged too often in a row; the last good checkpoint is untouched."""


class Interrupted(KeyboardInterrupt):
    """The user asked to stop; everything has been saved."""


class RunConfig(BaseModel):
    """config.json of a run directory: everything that determines the run, defaults included."""

    hmarl_version: str
    algorithm: str
    environment: str
    environment_arguments: dict[str, Any]
    run: dict[str, Any]
    algorithm_settings: dict[str, Any]

    def write(self, run: Path) -> None:
        """Into a run directory."""
        replace_file(run / "config.json", (self.model_dump_json(indent=1) + "\n").encode())

    @classmethod
    def read(cls, run: Path) -> RunConfig:
        """Of a run directory.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        path = run / "config.json"
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(f"run directory {run}: no config.json ({error.strerror}); is it a run's?") from error
        except ValueError as error:
            raise CheckpointError(f"run directory {run}: config.json is damaged ({error})") from error

    def settings(self) -> AlgorithmSettings:
        """The algorithm's settings, checked."""
        return validate(find_algorithm(self.algorithm).settings_class, self.algorithm_settings, "algorithm")

    def run_settings(self) -> RunSettings:
        """The run's settings, checked."""
        return validate(RunSettings, self.run, "run")


def make_config(
    algorithm: str,
    environment: str,
    algorithm_settings: dict[str, Any],
    run_settings: dict[str, Any],
    environment_arguments: dict[str, Any],
) -> RunConfig:
    """Check everything that can be checked without starting, and fill in the defaults.

    Raises:
        UsageError: unknown algorithm or setting, value out of range, unknown device.
    """
    settings = validate(find_algorithm(algorithm).settings_class, algorithm_settings, "algorithm")
    run = validate(RunSettings, run_settings, "run")
    device_of(run)
    settings.check_rollouts(run.rollout_length)
    return RunConfig(
        hmarl_version=version("hmarl"),
        algorithm=algorithm,
        environment=environment,
        environment_arguments=environment_arguments,
        run=run.model_dump(),
        algorithm_settings=settings.model_dump(),
    )


def device_of(run: RunSettings) -> torch.device:
    """The torch device.

    Raises:
        UsageError: no such device on this machine.
    """
    return device_named(run.device)


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
        checkpoint: where to continue, None for a fresh start.

    Raises:
        UsageError: a fresh start into a directory that already holds a run.
    """

    def __init__(self, config: RunConfig, directory: Path, checkpoint: Checkpoint | None = None) -> None:
        self.config, self.directory = config, directory
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
        self._divergence: str | None = None
        self._advice_given: set[str] = set()
        self._returns: deque[float] = deque(maxlen=max(100, self.settings.environments))
        if checkpoint is not None:
            self._load(checkpoint)

    @classmethod
    def create(cls, config: RunConfig, directory: Path) -> Run:
        """A fresh run; writes config.json."""
        if (directory / "config.json").exists():
            raise UsageError(f"--out: {directory} already holds a run; choose another, or use --resume {directory}")
        run = cls(config, directory)
        config.write(directory)
        return run

    @classmethod
    def resume(cls, directory: Path, steps: int | None = None) -> Run:
        """Continue from the newest good checkpoint; ``steps`` raises or lowers the goal, in config.json as well."""
        config = RunConfig.read(directory)
        if steps is not None:
            config = config.model_copy(update={"run": {**config.run, "steps": steps}})
        device = device_of(config.run_settings())
        run = cls(config, directory, newest_checkpoint(directory / "checkpoints", device))
        if steps is not None:
            config.write(directory)
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
        tensors, self.counters = checkpoint.tensors, checkpoint.counters
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

    def train(self, stop: Any = lambda: False) -> dict[str, Any]:
        """Train until the run's steps are done.

        Args:
            stop: asked after every update; true ends the run with a checkpoint where that does not change its course.

        Returns:
            The summary, also written to summary.json.

        Raises:
            Interrupted: ``stop`` returned true.
            DivergedError: too many updates diverged in a row.
        """
        recorder = Recorder(self.directory, self.counters.update, self.counters.steps)
        started, first_steps, rollbacks = time.monotonic(), self.counters.steps, 0
        title = f"{self.config.algorithm} · {self.config.environment}"
        try:
            with LiveProgress(title, self.settings.steps, self.counters.steps) as progress:
                announcements = self._announcements(progress)
                while self.counters.steps < self.settings.steps:
                    metrics = self._iterate(announcements)
                    rollbacks = rollbacks + 1 if metrics.get("rolled_back") else 0
                    if rollbacks >= self.settings.max_rollbacks:
                        raise DivergedError(
                            f"training: {rollbacks} updates in a row diverged ({self._divergence}); the last good "
                            f"checkpoint is in {self.directory / 'checkpoints'}; try a smaller step size"
                        )
                    done = self.counters.steps >= self.settings.steps
                    evaluation = self._evaluate_when_due(done, progress)
                    metrics |= evaluation
                    metrics["steps_per_s"] = (self.counters.steps - first_steps) / (time.monotonic() - started)
                    saving = bool(evaluation) or self.counters.update % self.settings.checkpoint_interval == 0
                    if saving and not self._stateful:
                        metrics["environments_truncated"] = float(self.settings.environments)
                    # Before the checkpoint: a line too many is dropped on resuming, one too few would be missing.
                    recorder.write(self.counters.update, self.counters.steps, metrics)
                    if saving:
                        self._checkpoint(evaluation)
                    progress.update(self.counters.steps, metrics)
                    if not done and stop():
                        self._save_if_harmless()
                        raise Interrupted
            return self._summarise(time.monotonic() - started, first_steps)
        finally:
            recorder.close()

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
        statistics = self.collector.collect(self.algorithm)
        announcements.updating()
        collected = time.monotonic()
        self._returns.extend(value for value in statistics.returns if math.isfinite(value))
        before = {name: tensor.clone() for name, tensor in flatten(self.algorithm.components()).items()}
        metrics = self.algorithm.update(self.rollout, self.counters.steps / self.settings.steps)
        self._divergence = _broken_reward(self.rollout) or _first_non_finite(
            flatten(self.algorithm.components()), metrics
        )
        if self._divergence:
            _log.warning("update %d diverged: %s; rolled back", self.counters.update + 1, self._divergence)
            restore(self.algorithm.components(), before)
            metrics = {"rolled_back": 1.0}
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

    def _evaluate_when_due(self, done: bool, progress: LiveProgress) -> dict[str, float]:
        """The evaluation's metrics; empty when it is not time."""
        if not done and self.counters.steps - self.counters.last_evaluation < self.settings.evaluation_interval:
            return {}
        metrics = self.evaluate()
        self.counters = replace(self.counters, last_evaluation=self.counters.steps)
        shown = [f"{key.split('/')[1]} {value:.2f}" for key, value in metrics.items() if key.endswith("return_mean")]
        progress.say(f"evaluation at {self.counters.steps:,} steps: return " + ", ".join(shown))
        return metrics

    def _checkpoint(self, evaluation: dict[str, float]) -> None:
        """Save, also after every evaluation, so that the best one is kept."""
        score = evaluation.get(f"evaluation/{variants(self.algorithm)[0]}/return_mean")
        best = score is not None and (self.counters.best_return is None or score > self.counters.best_return)
        if best:
            self.counters = replace(self.counters, best_return=score)
        if not self._stateful:
            self._restart_environments()
        path = self.save()
        if score is not None and best:
            mark_best(path.parent, path, score)
        prune(path.parent, self.settings.checkpoints_kept)

    def save(self) -> Path:
        """Write a checkpoint now."""
        return write_checkpoint(self.directory / "checkpoints", self.tensors(), self.counters)

    def _save_if_harmless(self) -> None:
        """Save, unless that changes the run's course (environments that restart at every checkpoint)."""
        if self._stateful:
            self.save()

    def evaluate(self) -> dict[str, float]:
        """Deterministic episodes with the same seeds every time; for HCPO under all four conductors."""
        if self._evaluation_environment is None:
            name, episodes = self.config.environment, self.settings.evaluation_episodes
            batch = evaluation_copies(name, episodes, self.settings.environments)
            self._evaluation_environment = make(name, batch, **self.config.environment_arguments)
        metrics, details = {}, {}
        for name, team in teams(self.algorithm, not self.algorithm.settings.deterministic_evaluation).items():
            result = evaluate(self._evaluation_environment, team, self.settings.evaluation_episodes, EVALUATION_SEED)
            summary = result.summary()
            details[name] = {"returns": result.returns.tolist(), **summary}
            for key in ("return_mean", "return_median", "return_iqm", "success_rate"):
                if summary.get(key) is not None:
                    metrics[f"evaluation/{name}/{key}"] = float(summary[key])
        replace_file(self._evaluation_path(), (json.dumps(details, default=str) + "\n").encode())
        if {"local", "guider"} <= set(details):
            gap = details["guider"]["return_mean"] - details["local"]["return_mean"]
            metrics["evaluation/imitation_gap"] = float(gap)
        return metrics

    def _evaluation_path(self) -> Path:
        return evaluation_path(self.directory, self.counters.steps)

    def _summarise(self, wall_s: float, first_steps: int) -> dict[str, Any]:
        """Write the summary; ``wall_s`` is the time since training was started, or resumed at ``first_steps``."""
        steps = self.counters.steps - first_steps
        final = self._evaluation_path()
        if not final.exists():  # resumed with a goal that had been passed already
            self.evaluate()
        summary = {
            "algorithm": self.config.algorithm,
            "environment": self.config.environment,
            "seed": self.settings.seed,
            "steps": self.counters.steps,
            "updates": self.counters.update,
            "episodes": self.counters.episodes,
            "best_return": self.counters.best_return,
            "final": read_evaluation(final),
            "resumed_at": first_steps,
            "wall_s": wall_s,
            "steps_per_s": steps / wall_s if wall_s > 0 and steps else None,
            "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            "torch": torch.__version__,
        }
        replace_file(self.directory / "summary.json", (json.dumps(summary, indent=1, default=str) + "\n").encode())
        self._draw()
        return summary

    def _draw(self) -> None:
        """Write plots/."""
        from hmarl.trainer.plots import write_run_plots  # noqa: PLC0415 - matplotlib takes long to import

        write_run_plots(self.directory, f"{self.config.algorithm} on {self.config.environment}")

    def close(self) -> None:
        """Free the environments."""
        self.environment.close()
        if self._evaluation_environment is not None:
            self._evaluation_environment.close()

    @property
    def resume_command(self) -> str:
        """What to type to continue."""
        return f"hmarl-train --resume {self.directory}"


@contextmanager
def stop_on_signals() -> Iterator[Any]:
    """Turn the first SIGINT or SIGTERM into a polite request to stop; a second SIGINT stops at once."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _broken_reward(rollout: Rollout) -> str | None:
    """Names the first reward that is NaN or infinite, which is the environment's fault, or None."""
    broken = (~torch.isfinite(rollout.rewards)).nonzero()
    if not len(broken):
        return None
    step, row, agent = broken[0].tolist()
    return (
        f"the environment's reward of agent '{rollout.spec.agents[agent].id}' is "
        f"{float(rollout.rewards[step, row, agent])} (step {step} of the rollout, environment {row})"
    )


def _first_non_finite(tensors: dict[str, Tensor], metrics: dict[str, float]) -> str | None:
    """Name of the first thing that is NaN or infinite, or None."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return f"'{name}' is not finite"
    for key, value in metrics.items():
        if not math.isfinite(value):
            return f"the metric '{key}' is {value}"
    return None
