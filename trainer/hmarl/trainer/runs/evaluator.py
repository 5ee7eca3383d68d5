"""A run's evaluations: when one is due, who plays in it, what is kept of it, and what happens when it fails."""

from __future__ import annotations

import json
import logging
import math
import shlex
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmarl.runtime.bundle import replace_file
from hmarl.sdk.environment import VectorEnvironment
from hmarl.sdk.environments import make
from hmarl.sdk.environments.copies import evaluation_copies
from hmarl.sdk.evaluation.closed_loop import Evaluation, evaluate, unfinished_remark
from hmarl.trainer.contract.algorithm import Algorithm
from hmarl.trainer.contract.shown import EvaluatedTeam, gap_metrics
from hmarl.trainer.records.checkpoint import Counters
from hmarl.trainer.records.metrics import evaluation_metric, evaluation_path
from hmarl.trainer.records.problems import Problems, StorageError, storing
from hmarl.trainer.runs.advice import Advice
from hmarl.trainer.runs.config import RunConfig

_RECORDED = ("return_mean", "return_median", "return_iqm", "success_rate")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation came to.

    Attributes:
        metrics: as metrics.jsonl has them.
        returns: mean return by team, the one that the algorithm is judged by first; empty where it failed.
    """

    metrics: dict[str, float]
    returns: dict[str, float]

    @property
    def score(self) -> float:
        """By which the best checkpoint is chosen, NaN where the evaluation failed."""
        return next(iter(self.returns.values()), math.nan)


def _mode(sample: bool) -> str:
    """What a way to choose actions is called."""
    return "sampled" if sample else "greedy"


def _without_latencies(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The same for another mode; how long an action takes does not depend on it."""
    return {figure: value for figure, value in summary.items() if not figure.startswith("latency")}


def _figures(name: str, summary: Mapping[str, Any]) -> dict[str, float]:
    """What metrics.jsonl keeps of an evaluation."""
    return {
        evaluation_metric(name, figure): float(summary[figure])
        for figure in _RECORDED
        if summary.get(figure) is not None
    }


class Evaluator:
    """Deterministic episodes with the same seeds every time, played by each of an algorithm's teams.

    Args:
        config: of the run.
        directory: of the run.
        algorithm: that is evaluated, as it is at the time.
    """

    def __init__(self, config: RunConfig, directory: Path, algorithm: Algorithm) -> None:
        self._config, self._directory, self._algorithm = config, directory, algorithm
        self._settings = config.run_settings()
        self._environment: VectorEnvironment | None = None
        self._advice = Advice(algorithm)

    def due(self, counters: Counters) -> bool:
        """Whether one is: every so many steps, and at the end."""
        since = counters.steps - counters.last_evaluation
        return counters.steps >= self._settings.steps or since >= self._settings.evaluation_interval

    def attempt(self, steps: int, problems: Problems) -> Evaluated:
        """An evaluation; what fails of it is reported, and ends nothing.

        Args:
            steps: of the training so far.
            problems: told of a failure.

        Raises:
            StorageError: its details could not be written.
        """
        try:
            return self._evaluate(steps, problems)
        except StorageError:
            raise
        except (Exception, SystemExit) as error:
            self._failed(f"evaluation at {steps:,} steps", error, steps, problems)
            with suppress(OSError):
                evaluation_path(self._directory, steps).unlink(missing_ok=True)
            return Evaluated({"evaluation_failed": 1.0}, {})

    def _evaluate(self, steps: int, problems: Problems) -> Evaluated:
        """All teams as they are judged; then, where that is asked for, the other way.

        By the first of them the run is judged: if it fails, so does the evaluation. The others it is compared with.
        """
        metrics: dict[str, float] = {}
        details, returns = {}, {}
        sample = not self._algorithm.settings.deterministic_evaluation
        for place, (name, team) in enumerate(self._algorithm.teams(sample).items()):
            of = f"evaluation at {steps:,} steps, {name}"
            result = self._play(of, team) if place == 0 else self._try(of, team, steps, problems)
            if result is None:
                continue
            summary = result.summary()
            details[name] = {"returns": result.returns.tolist(), **summary, "actions": _mode(sample)}
            returns[name] = summary["return_mean"]
            metrics |= _figures(name, summary)
        for name, team in self._otherwise(sample, details).items():
            result = self._try(
                f"evaluation at {steps:,} steps, {name}, {_mode(not sample)} actions", team, steps, problems
            )
            if result is not None:
                details[name][_mode(not sample)] = summary = _without_latencies(result.summary())
                metrics |= _figures(f"{name}/{_mode(not sample)}", summary)
        with storing():
            content = json.dumps(details, default=str) + "\n"
            replace_file(evaluation_path(self._directory, steps), content.encode())
        self._advice.on(metrics, f"evaluation at {steps:,} steps")
        return Evaluated(metrics | gap_metrics(self._algorithm.gaps, returns), returns)

    def _otherwise(self, sample: bool, played: Container[str]) -> dict[str, EvaluatedTeam]:
        """By name, those teams in the other mode that are asked for it, of those that have played."""
        if self._settings.evaluation_modes == "judged":
            return {}
        teams = self._algorithm.teams(not sample)
        compared = {name for gap in self._algorithm.gaps for name in (gap.of, gap.over)}
        return {
            name: team
            for place, (name, team) in enumerate(teams.items())
            if name in played and (place == 0 or name in compared)
        }

    def _try(self, of: str, team: EvaluatedTeam, steps: int, problems: Problems) -> Evaluation | None:
        """What a team comes to that others are compared with; None where it fails, which is reported."""
        try:
            return self._play(of, team)
        except (Exception, SystemExit) as error:
            self._failed(of, error, steps, problems)
            return None

    def _failed(self, what: str, error: BaseException, steps: int, problems: Problems) -> None:
        """Report a failure; the environments, which may be in any state, are made anew for what follows."""
        problems.add(
            "evaluation",
            f"{what} failed: {type(error).__name__}: {error}",
            "training goes on and evaluates again when it is time; by hand: "
            f"hmarl-eval --run {shlex.quote(str(self._directory))} --checkpoint {steps}",
        )
        with suppress(Exception):  # it was not made, or is what has failed
            self.close()
        self._environment = None

    def _play(self, of: str, team: EvaluatedTeam) -> Evaluation:
        settings, config = self._settings, self._config
        if self._environment is None:
            copies = evaluation_copies(config.environment, settings.evaluation_episodes, settings.environments)
            self._environment = make(config.environment, copies, **config.environment_arguments)
        result = evaluate(
            self._environment,
            team,
            settings.evaluation_episodes,
            settings.evaluation_seed,
            step_limit=settings.evaluation_step_limit,
        )
        if remark := unfinished_remark(result, "run.evaluation_step_limit"):
            _log.warning("%s: %s", of, remark)
        return result

    def close(self) -> None:
        """Free the environments."""
        if self._environment is not None:
            self._environment.close()
