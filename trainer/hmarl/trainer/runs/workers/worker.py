"""A worker: a share of a run's environments, acted in with the learner's latest parameters.

All that it draws is a function of the run's seed, the worker and the update, so that it does not matter where a worker
is, who was ready first, and whether a rollout is collected a second time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from hmarl.sdk.environments import make
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.experience.packing import Arrays, pack, share_slices, to_arrays, to_tensors
from hmarl.trainer.experience.rollout import Collector, EpisodeStatistics, Rollout
from hmarl.trainer.records.checkpoint import flatten, restore
from hmarl.trainer.runs.building import build_algorithm
from hmarl.trainer.runs.config import RunConfig
from hmarl.trainer.runs.seeds import rollout_seed

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Start:
    """Where a worker's environments begin, or go on.

    Attributes:
        seeds: [B] of new episodes.
        state: what they go on from instead, as of ``Collected``; None where there is none.
    """

    seeds: npt.NDArray[np.int64]
    state: Arrays | None = None


@dataclass(frozen=True)
class Facts:
    """What a worker says of its environments.

    Attributes:
        spec: theirs.
        saves: whether their state can be had.
        restarts: whether agents are restarted in mid-episode.
    """

    spec: EnvironmentSpec
    saves: bool
    restarts: bool


@dataclass(frozen=True)
class Order:
    """What a worker is to collect.

    Attributes:
        update: for which.
        acting: what the acting remembers of its environments, see ``Acting.state``; None before the first rollout.
    """

    update: int
    acting: Arrays | None


@dataclass(frozen=True)
class Collected:
    """A worker's share of a rollout.

    Attributes:
        rollout: see ``experience.packing``.
        statistics: of the episodes that ended.
        acting: what the acting remembers now.
        alike, at_ends: see ``Outcome``.
        state: of its environments now; None where it cannot be had.
        collected_s: how long it took, seconds.
    """

    rollout: Arrays
    statistics: EpisodeStatistics
    acting: Arrays
    alike: Arrays
    at_ends: Arrays
    state: Arrays | None
    collected_s: float


class RolloutWorker:
    """Collects rollouts on the CPU, with one of torch's threads.

    Args:
        config: of the run.
        number: which of its workers.
    """

    def __init__(self, config: RunConfig, number: int) -> None:
        run = config.run_settings()
        self._seed, self._number = run.seed, number
        part = share_slices(run.environments, run.workers)[number]
        size = part.stop - part.start
        self._environment = make(config.environment, size, **config.environment_arguments)
        try:
            on_cpu = config.model_copy(update={"run": {**config.run, "device": "cpu"}})
            self._algorithm = build_algorithm(on_cpu, self._environment)
        except BaseException:
            self._environment.close()
            raise
        self._algorithm.act_in_part(part.start, run.environments)
        self._algorithm.local_acting.records_log_probs = run.stale_updates > 0
        self._rollout = Rollout(self._environment.spec, run.rollout_length, size, _CPU)
        self._collector: Collector | None = None
        self._anew = False

    def begin(self, start: Start) -> Facts:
        """New episodes, or those of the state that is given."""
        if self._collector is None:
            self._collector = Collector(self._environment, self._rollout, start.seeds)
        elif start.state is None:
            self._collector.restart(start.seeds, self._algorithm)
        if start.state is not None:
            self._collector.set_state({name: np.array(value) for name, value in start.state.items()})
        self._anew = start.state is None
        saves = self._collector.get_state() is not None
        return Facts(self._environment.spec, saves, self._collector.observation.restarted is not None)

    def collect(self, order: Order, weights: Arrays) -> Collected:
        """One rollout with these parameters; ``begin`` comes before the first one.

        The arrays may lie on the worker's own memory, which the next rollout is written to.
        """
        assert self._collector is not None
        began, threads = time.monotonic(), torch.get_num_threads()
        torch.set_num_threads(1)  # in one process and in many alike: sums may depend on it
        try:
            self._take(order, weights)
            statistics = self._collector.collect(self._algorithm)
        finally:
            torch.set_num_threads(threads)
        state, outcome = self._collector.get_state(), self._algorithm.acting.outcome()
        return Collected(
            pack(self._rollout),
            statistics,
            to_arrays(self._algorithm.acting_state()),
            to_arrays(outcome.alike),
            to_arrays(outcome.at_ends),
            None if state is None else {name: np.array(value) for name, value in state.items()},
            time.monotonic() - began,
        )

    def _take(self, order: Order, weights: Arrays) -> None:
        """Parameters, what is remembered, and where the random numbers begin."""
        algorithm = self._algorithm
        restore(algorithm.acting_components(), to_tensors(weights))
        if order.acting:
            algorithm.load_acting_state({name: torch.tensor(value) for name, value in order.acting.items()})
            if self._anew:  # what is remembered is of episodes that are gone
                algorithm.episodes_ended(torch.ones(self._rollout.batch_size, dtype=torch.bool))
        self._anew = False
        algorithm.generator.manual_seed(rollout_seed(self._seed, order.update))
        algorithm.noise_generator.manual_seed(rollout_seed(self._seed, order.update, self._number))

    def close(self) -> None:
        """Free the environments."""
        self._environment.close()


def acting_weights(components: dict[str, object]) -> Arrays:
    """What ``collect`` wants, of ``Algorithm.acting_components``."""
    return to_arrays(flatten(components))
