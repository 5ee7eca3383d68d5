"""An iteration: one rollout and one update, what is measured of both, and when too many updates have diverged."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from hmarl.trainer.learning.likeness import who_observe_the_same
from hmarl.trainer.records.checkpoint import Counters
from hmarl.trainer.records.problems import DivergedError
from hmarl.trainer.runs.advice import Advice
from hmarl.trainer.runs.announcements import Announcements
from hmarl.trainer.runs.settings import RunSettings
from hmarl.trainer.runs.training import Divergence, Training

_log = logging.getLogger(__name__)

_NAMED = 4  # agents in a warning of several; of more, how many more there are


class Iterations:
    """Makes a training's iterations.

    Args:
        training: what learns.
        settings: of the run.
    """

    def __init__(self, training: Training, settings: RunSettings) -> None:
        self._training, self._settings = training, settings
        self._advice = Advice(training.algorithm)

    def next(self, counters: Counters, announcements: Announcements) -> tuple[Counters, dict[str, float]]:
        """One rollout and one update; a diverged update is named and undone.

        Args:
            counters: where the run stands.
            announcements: told what goes on.

        Returns:
            Where the run stands afterwards, and the update's metrics.

        Raises:
            DivergedError: too many updates diverged in a row.
        """
        training, begin = self._training, time.monotonic()
        announcements.collecting()
        statistics = training.collect()
        if counters.update == 0:
            self._look_at_who_is_told_apart()
            self._look_at_what_is_cut_off()
        announcements.updating()
        collected = time.monotonic()
        metrics, divergence = training.update(counters.steps / self._settings.steps)
        counters = replace(
            counters,
            update=counters.update + 1,
            steps=counters.steps + training.frames,
            episodes=counters.episodes + len(statistics.returns),
            rolled_back=0 if divergence is None else counters.rolled_back + 1,
        )
        self._warn(counters.update, metrics, divergence)
        metrics |= training.episode_metrics(statistics) | training.source.figures()
        metrics["rollout_s"], metrics["update_s"] = collected - begin, time.monotonic() - collected
        announcements.updated()
        self._stop_when_diverging(counters, divergence)
        return counters, metrics

    def _warn(self, update: int, metrics: dict[str, float], divergence: Divergence | None) -> None:
        """Of what goes wrong in an update; the algorithm's advice once."""
        if divergence is not None:
            _log.warning("update %d diverged: %s; rolled back", update, divergence.why)
        self._advice.on(metrics, f"update {update}")

    def _look_at_who_is_told_apart(self) -> None:
        """Warn, after the first rollout, of interchangeable agents who could not but act alike."""
        if not self._training.algorithm.interchangeable:
            return
        for group in who_observe_the_same(self._training.source.rollout):
            names = [self._training.algorithm.spec.agents[index].id for index in group.agents]
            if len(names) > _NAMED:
                names[_NAMED - 1 :] = [f"{len(names) - _NAMED + 1} more"]
            _log.warning(
                "%s observe the same at every step of the first rollout, and are one policy that does not know for "
                "which of them it acts: they cannot share out roles. Set algorithm.agent_identity=true, unless the "
                "task wants all of them to do the same",
                f"{', '.join(names[:-1])} and {names[-1]}",
            )

    def _look_at_what_is_cut_off(self) -> None:
        """Warn of episodes that no checkpoint lets end, where the environments cannot be saved."""
        settings, horizon = self._settings, self._training.algorithm.spec.horizon
        evaluated = -(-settings.evaluation_interval // self._training.frames)  # an evaluation comes with a checkpoint
        updates = min(settings.checkpoint_interval, evaluated)
        if self._training.saves_environments or horizon is None or horizon <= updates * settings.rollout_length:
            return
        _log.warning(
            "the environments cannot be saved and begin anew at every checkpoint, after %d steps; their episodes have "
            "up to %d: longer ones never end, and their later steps are never learnt from. Raise "
            "run.checkpoint_interval (now %d) and run.evaluation_interval (now %d), or run.rollout_length",
            updates * settings.rollout_length,
            horizon,
            settings.checkpoint_interval,
            settings.evaluation_interval,
        )

    def _stop_when_diverging(self, counters: Counters, divergence: Divergence | None) -> None:
        if divergence is not None and counters.rolled_back >= self._settings.max_rollbacks:
            raise DivergedError(
                f"training: {counters.rolled_back} updates in a row diverged ({divergence.why}); {divergence.advice}"
            )
