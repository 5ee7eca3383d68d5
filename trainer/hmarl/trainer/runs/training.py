"""The environments and the algorithm that learns in them: one rollout, one update, and all that determines the next."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hmarl.sdk.errors import UsageError
from hmarl.trainer.contract.algorithm import Algorithm
from hmarl.trainer.experience.finite import broken_rollout, first_non_finite
from hmarl.trainer.experience.rollout import EpisodeStatistics
from hmarl.trainer.records.checkpoint import flatten, restore
from hmarl.trainer.runs.building import build_algorithm
from hmarl.trainer.runs.config import RunConfig
from hmarl.trainer.runs.memory import keep_freed_memory
from hmarl.trainer.runs.sources import OwnEnvironments, RolloutSource
from hmarl.trainer.runs.workers.crew import Crew
from hmarl.trainer.runs.workers.hands import LocalHands, MakeHands
from hmarl.trainer.sequential.samples import TeamSamples
from hmarl.trainer.sequential.staleness import correct


@dataclass(frozen=True)
class Divergence:
    """Why an update was undone.

    Attributes:
        why: what was not finite.
        advice: what may help.
    """

    why: str
    advice: str


MakeSource = Callable[[RunConfig], RolloutSource]
"""Where a run's rollouts come from, made when its training is."""


def rollout_source(config: RunConfig, make_hands: MakeHands = LocalHands) -> RolloutSource:
    """The run's workers, or environments of its own.

    Args:
        config: of the run.
        make_hands: where its workers are, if it has any.
    """
    return Crew(config, make_hands) if config.run_settings().workers else OwnEnvironments(config)


class Training:
    """What a run trains, and in what.

    Args:
        config: of the run.
        make_source: says where its rollouts come from.

    Attributes:
        source: of its rollouts.
        saves_environments: whether a checkpoint can hold the environments' state; else it begins new episodes.
    """

    def __init__(self, config: RunConfig, make_source: MakeSource = rollout_source) -> None:
        self._settings = settings = config.run_settings()
        torch.set_num_threads(settings.threads)
        torch.set_float32_matmul_precision(settings.matmul_precision)
        if settings.keep_freed_memory:
            keep_freed_memory()
        self.source = make_source(config)
        try:
            self.algorithm = build_algorithm(config, self.source)
            if self.source.restarts:
                _refuse_to_forget(config.algorithm, self.algorithm)
            if settings.stale_updates:
                _refuse_stale(config.algorithm, self.algorithm)
            self.saves_environments = self.source.saves
        except BaseException:
            self.source.close()
            raise
        self._returns: deque[float] = deque(maxlen=max(100, settings.environments))

    @property
    def environments(self) -> int:
        """B, stepped together."""
        return self._settings.environments

    @property
    def frames(self) -> int:
        """Environment steps of one rollout."""
        return self._settings.environments * self._settings.rollout_length

    def close(self) -> None:
        """Free the environments."""
        self.source.close()

    # --- learning ---------------------------------------------------------------------------------------------------

    def collect(self) -> EpisodeStatistics:
        """One rollout; returns the episodes that ended in it."""
        statistics = self.source.collect(self.algorithm)
        self._returns.extend(value for value in statistics.returns if math.isfinite(value))
        return statistics

    def update(self, progress: float) -> tuple[dict[str, float], Divergence | None]:
        """Learn from the rollout; what diverges is undone, and a rollout that is not finite is not learnt from.

        Args:
            progress: share of the training done, in [0, 1).

        Returns:
            The update's metrics, and why it was undone, None where it was not.
        """
        rollout = self.source.rollout
        if broken := broken_rollout(rollout):
            self.algorithm.pass_over(rollout)
            return {"rolled_back": 1.0}, Divergence(broken, "look for it in the environment")
        components = self.algorithm.components()
        before = {name: tensor.clone() for name, tensor in flatten(components).items()}
        metrics = self._corrected() | self.algorithm.update(rollout, progress)
        if broken := first_non_finite(flatten(self.algorithm.components()), metrics):
            restore(self.algorithm.components(), before)
            return {"rolled_back": 1.0}, Divergence(broken, "try a smaller step size")
        return metrics, None

    def _corrected(self) -> dict[str, float]:
        """Metrics of how far the policies have moved on from those that collected, where that may be."""
        rollout = self.source.rollout
        if not rollout.log_probs:
            return {}
        return correct(TeamSamples(rollout, self.algorithm.policies, self.algorithm.features(rollout)))

    def episode_metrics(self, statistics: EpisodeStatistics) -> dict[str, float]:
        """The mean return of recent episodes, and what else is known of those that have just ended."""
        figures: dict[str, Sequence[float]] = {
            "return": self._returns,
            "episode_length": statistics.lengths,
            "success_rate": statistics.successes,
        }
        return {name: float(np.mean(values)) for name, values in figures.items() if values}

    # --- what a checkpoint holds ------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Everything that determines the rest of the run, the counters apart."""
        algorithm = self.algorithm
        tensors = flatten({"algorithm": algorithm.components(), "experience": algorithm.experience()})
        tensors["generators.order"] = algorithm.generator.get_state()
        tensors["generators.noise"] = algorithm.noise_generator.get_state()
        tensors |= {f"acting.{key}": value for key, value in algorithm.acting_state().items()}
        tensors["recent_returns"] = torch.tensor(list(self._returns), dtype=torch.float64)
        return tensors | {f"collector.{key}": value for key, value in self.source.tensors().items()}

    def load(self, tensors: Mapping[str, Tensor], update: int) -> None:
        """Go on where ``tensors`` were taken, after so many updates.

        Raises:
            CheckpointError: they are of another run.
        """
        algorithm = self.algorithm
        restore({"algorithm": algorithm.components(), "experience": algorithm.experience()}, tensors)
        algorithm.generator.set_state(tensors["generators.order"].cpu())
        algorithm.noise_generator.set_state(tensors["generators.noise"].cpu())
        self._returns.extend(tensors["recent_returns"].tolist())
        if acting := _under("acting.", tensors):  # also of environments that begin anew: it holds more than episodes
            algorithm.load_acting_state(acting)
        self.source.load(algorithm, _under("collector.", tensors), update)

    def restart_environments(self, update: int) -> None:
        """New episodes with seeds derived from (seed, update), for environments whose state cannot be saved."""
        self.source.restart(self.algorithm, update)


def _refuse_to_forget(name: str, algorithm: Algorithm) -> None:
    """An agent that is restarted in mid-episode loses its own memory, and nothing that is learnt along with others'.

    Raises:
        UsageError: it would.
    """
    agents = range(len(algorithm.spec.agents)) if algorithm.exportable else ()
    remembering = any(algorithm.deployable(agent).states for agent in agents)
    if remembering and algorithm.acting is not algorithm.local_acting:
        raise UsageError(
            f"env.faults: got restart for agents of {name} that remember, expected none in its training: what they "
            "remember is learnt together; train with out instead, and evaluate with restart"
        )


def _refuse_stale(name: str, algorithm: Algorithm) -> None:
    """Older policies' rollouts are corrected where local policies act, each on its own, and learn from nothing else.

    Raises:
        UsageError: the team acts otherwise, or replays what it did.
    """
    otherwise = ""
    if algorithm.acting is not algorithm.local_acting:
        otherwise = "whose team does not act by its local policies alone"
    elif algorithm.experience():
        otherwise = "which learns from replayed experience and corrects none of it"
    if otherwise:
        raise UsageError(
            f"run.stale_updates: got 1 for {name}, {otherwise}; expected 0, or an algorithm such as happo or mappo"
        )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
