"""The environments and the algorithm that learns in them: one rollout, one update, and all that determines the next."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hmarl.sdk.environment import Observation, VectorEnvironment
from hmarl.sdk.environments import make
from hmarl.sdk.errors import UsageError
from hmarl.trainer.contract.algorithm import Algorithm
from hmarl.trainer.experience.finite import broken_observation, broken_rollout, first_non_finite
from hmarl.trainer.experience.rollout import Actor, Collector, EpisodeStatistics, Rollout
from hmarl.trainer.records.checkpoint import flatten, restore
from hmarl.trainer.runs.building import build_algorithm
from hmarl.trainer.runs.config import RunConfig, device_of
from hmarl.trainer.runs.seeds import derived_seeds


@dataclass(frozen=True)
class Divergence:
    """Why an update was undone.

    Attributes:
        why: what was not finite.
        advice: what may help.
    """

    why: str
    advice: str


class Collecting(Protocol):
    """How rollouts are collected: by a ``Collector``, or by one that several runs share."""

    @property
    def rollout(self) -> Rollout:
        """The newest one."""
        ...

    @property
    def observation(self) -> Observation:
        """What is seen now."""
        ...

    def collect(self, actor: Actor) -> EpisodeStatistics:
        """Fill the rollout; returns the episodes that ended in it."""
        ...

    def restart(self, seeds: np.ndarray, actor: Actor) -> None:
        """Begin new episodes everywhere."""
        ...

    def get_state(self) -> dict[str, np.ndarray] | None:
        """The environments' state and the running episodes' sums; None when they do not support it."""
        ...

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore what ``get_state`` returned."""
        ...


class Seat(Protocol):
    """A run's part of environments that it shares with others."""

    @property
    def environment(self) -> VectorEnvironment:
        """All of them."""
        ...

    def taken_by(self, algorithm: Algorithm) -> Collecting:
        """Its part of them, for whoever acts in it."""
        ...


class Training:
    """What a run trains, and in what.

    Args:
        config: of the run.
        seat: its part of environments that it shares with others; None makes its own.

    Attributes:
        saves_environments: whether a checkpoint can hold the environments' state; else it begins new episodes.
    """

    def __init__(self, config: RunConfig, seat: Seat | None = None) -> None:
        self._settings = settings = config.run_settings()
        torch.set_num_threads(settings.threads)
        torch.set_float32_matmul_precision(settings.matmul_precision)
        self.environment = (
            make(config.environment, settings.environments, **config.environment_arguments)
            if seat is None
            else seat.environment
        )
        try:
            self.algorithm = build_algorithm(config, self.environment)
            self._collector = self._collecting(device_of(settings)) if seat is None else seat.taken_by(self.algorithm)
            if self._collector.observation.restarted is not None:
                _refuse_to_forget(config.algorithm, self.algorithm)
            self.saves_environments = self._collector.get_state() is not None
        except BaseException:
            self.environment.close()
            raise
        self._returns: deque[float] = deque(maxlen=max(100, settings.environments))

    def _collecting(self, device: torch.device) -> Collecting:
        """In environments of its own."""
        settings = self._settings
        rollout = Rollout(self.environment.spec, settings.rollout_length, settings.environments, device)
        return Collector(self.environment, rollout, derived_seeds(settings.seed, 0, settings.environments))

    @property
    def frames(self) -> int:
        """Environment steps of one rollout."""
        return self._settings.environments * self._settings.rollout_length

    def close(self) -> None:
        """Free the environments."""
        self.environment.close()

    # --- learning ---------------------------------------------------------------------------------------------------

    def collect(self) -> EpisodeStatistics:
        """One rollout; returns the episodes that ended in it."""
        try:
            statistics = self._collector.collect(self.algorithm)
        except Exception as error:
            # Actions made of such numbers may be what an environment has choked on.
            if broken := broken_observation(self.environment.spec, self._collector.observation):
                error.add_note(broken)
            raise
        self._returns.extend(value for value in statistics.returns if math.isfinite(value))
        return statistics

    def update(self, progress: float) -> tuple[dict[str, float], Divergence | None]:
        """Learn from the rollout; what diverges is undone, and a rollout that is not finite is not learnt from.

        Args:
            progress: share of the training done, in [0, 1).

        Returns:
            The update's metrics, and why it was undone, None where it was not.
        """
        if broken := broken_rollout(self._collector.rollout):
            return {"rolled_back": 1.0}, Divergence(broken, "look for it in the environment")
        components = self.algorithm.components()
        before = {name: tensor.clone() for name, tensor in flatten(components).items()}
        metrics = self.algorithm.update(self._collector.rollout, progress)
        if broken := first_non_finite(flatten(self.algorithm.components()), metrics):
            restore(self.algorithm.components(), before)
            return {"rolled_back": 1.0}, Divergence(broken, "try a smaller step size")
        return metrics, None

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
        environments = self._collector.get_state() or {}
        return tensors | {f"collector.{key}": torch.as_tensor(value.copy()) for key, value in environments.items()}

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
        if not self.saves_environments:
            self.restart_environments(update)
            return
        if acting := _under("acting.", tensors):
            algorithm.load_acting_state(acting)
        self._collector.set_state({key: value.cpu().numpy() for key, value in _under("collector.", tensors).items()})

    def restart_environments(self, update: int) -> None:
        """New episodes with seeds derived from (seed, update), for environments whose state cannot be saved."""
        seeds = derived_seeds(self._settings.seed, 1 + update, self._settings.environments)
        self._collector.restart(seeds, self.algorithm)


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


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
