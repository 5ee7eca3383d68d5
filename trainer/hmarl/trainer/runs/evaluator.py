"""A run's evaluations: when one is due, who plays in it, what is kept of it, and what happens when it fails."""

from __future__ import annotations

import json
import logging
import math
import shlex
from collections.abc import Mapping
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
from hmarl.trainer.runs.seeds import EVALUATION_SEED

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
        """An evaluation; one that fails is reported, and ends nothing.

        Args:
            steps: of the training so far.
            problems: told of a failure.

        Raises:
            StorageError: its details could not be written.
        """
        try:
            return self._evaluate(steps)
        except StorageError:
            raise
        except (Exception, SystemExit) as error:
            problems.add(
                "evaluation",
                f"evaluation at {steps:,} steps failed: {type(error).__name__}: {error}",
                "training goes on and evaluates again when it is time; by hand: "
                f"hmarl-eval --run {shlex.quote(str(self._directory))} --checkpoint {steps}",
            )
            with suppress(Exception):  # it was not made, or is what has failed
                evaluation_path(self._directory, steps).unlink(missing_ok=True)
                self.close()
            self._environment = None
            return Evaluated({"evaluation_failed": 1.0}, {})

    def _evaluate(self, steps: int) -> Evaluated:
        metrics: dict[str, float] = {}
        details, returns = {}, {}
        sample = not self._algorithm.settings.deterministic_evaluation
        for name, team in self._algorithm.teams(sample).items():
            result = self._play(team)
            if remark := unfinished_remark(result, "run.evaluation_step_limit"):
                _log.warning("evaluation at %s steps, %s: %s", f"{steps:,}", name, remark)
            summary = result.summary()
            details[name] = {"returns": result.returns.tolist(), **summary, "actions": _mode(sample)}
            returns[name] = summary["return_mean"]
            metrics |= _figures(name, summary)
        for name, summary in self._otherwise(sample).items():
            details[name][_mode(not sample)] = summary
            metrics |= _figures(f"{name}/{_mode(not sample)}", summary)
        with storing():
            content = json.dumps(details, default=str) + "\n"
            replace_file(evaluation_path(self._directory, steps), content.encode())
        self._advice.on(metrics, f"evaluation at {steps:,} steps")
        return Evaluated(metrics | gap_metrics(self._algorithm.gaps, returns), returns)

    def _otherwise(self, sample: bool) -> dict[str, dict[str, Any]]:
        """By name, what those teams come to in the other mode that are asked for it."""
        if self._settings.evaluation_modes == "judged":
            return {}
        teams = self._algorithm.teams(not sample)
        compared = {name for gap in self._algorithm.gaps for name in (gap.of, gap.over)}
        asked = [name for place, name in enumerate(teams) if place == 0 or name in compared]
        summaries = {name: self._play(teams[name]).summary() for name in asked}
        # How long an action takes does not depend on the mode.
        return {
            name: {figure: value for figure, value in summary.items() if not figure.startswith("latency")}
            for name, summary in summaries.items()
        }

    def _play(self, team: EvaluatedTeam) -> Evaluation:
        settings, config = self._settings, self._config
        if self._environment is None:
            copies = evaluation_copies(config.environment, settings.evaluation_episodes, settings.environments)
            self._environment = make(config.environment, copies, **config.environment_arguments)
        return evaluate(
            self._environment,
            team,
            settings.evaluation_episodes,
            EVALUATION_SEED,
            step_limit=settings.evaluation_step_limit,
        )

    def close(self) -> None:
        """Free the environments."""
        if self._environment is not None:
            self._environment.close()
