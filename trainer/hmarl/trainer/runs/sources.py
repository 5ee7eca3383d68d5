"""Where a training's rollouts come from: environments that it steps itself, or workers that each step a share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from hmarl.sdk.environments import make
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.contract.algorithm import Algorithm
from hmarl.trainer.experience.rollout import Collector, EpisodeStatistics, Rollout
from hmarl.trainer.runs.config import RunConfig, device_of
from hmarl.trainer.runs.seeds import derived_seeds


class RolloutSource(Protocol):
    """Environments, and the rollout that they fill."""

    @property
    def rollout(self) -> Rollout:
        """The newest one; overwritten by every ``collect``."""
        ...

    @property
    def saves(self) -> bool:
        """Whether a checkpoint can hold the environments' state."""
        ...

    @property
    def restarts(self) -> bool:
        """Whether agents are restarted in mid-episode."""
        ...

    @property
    def spec(self) -> EnvironmentSpec:
        """The environments'."""
        ...

    def collect(self, algorithm: Algorithm) -> EpisodeStatistics:
        """Fill the rollout; returns the episodes that ended in it."""
        ...

    def restart(self, algorithm: Algorithm, update: int) -> None:
        """New episodes with seeds derived from (seed, update), for environments whose state cannot be saved."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        ...

    def load(self, algorithm: Algorithm, tensors: Mapping[str, Tensor], update: int) -> None:
        """Go on where ``tensors`` were taken, after so many updates; the algorithm stands there already."""
        ...

    def figures(self) -> dict[str, float]:
        """Metrics of the newest rollout."""
        ...

    def summary(self) -> dict[str, Any]:
        """What is said of it at the end of a run; empty where there is nothing to say."""
        ...

    def close(self) -> None:
        """Free the environments."""
        ...


class OwnEnvironments:
    """Environments of this process, stepped together.

    Args:
        config: of the run.

    Attributes:
        environment: all of them.
    """

    def __init__(self, config: RunConfig) -> None:
        self._settings = settings = config.run_settings()
        self.environment = make(config.environment, settings.environments, **config.environment_arguments)
        try:
            self.rollout = Rollout(self.spec, settings.rollout_length, settings.environments, device_of(settings))
            seeds = derived_seeds(settings.seed, 0, settings.environments)
            self._collector = Collector(self.environment, self.rollout, seeds)
            self.restarts = self._collector.observation.restarted is not None
            self.saves = self._collector.get_state() is not None
        except BaseException:
            self.environment.close()
            raise

    @property
    def spec(self) -> EnvironmentSpec:
        """See ``RolloutSource``."""
        return self.environment.spec

    def collect(self, algorithm: Algorithm) -> EpisodeStatistics:
        """See ``RolloutSource``."""
        return self._collector.collect(algorithm)

    def restart(self, algorithm: Algorithm, update: int) -> None:
        """See ``RolloutSource``."""
        self._collector.restart(derived_seeds(self._settings.seed, 1 + update, self._settings.environments), algorithm)

    def tensors(self) -> dict[str, Tensor]:
        """See ``RolloutSource``."""
        return {key: torch.as_tensor(value.copy()) for key, value in (self._collector.get_state() or {}).items()}

    def load(self, algorithm: Algorithm, tensors: Mapping[str, Tensor], update: int) -> None:
        """See ``RolloutSource``."""
        if self.saves:
            self._collector.set_state({key: value.cpu().numpy() for key, value in tensors.items()})
        else:
            self.restart(algorithm, update)

    def figures(self) -> dict[str, float]:
        """None."""
        return {}

    def summary(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def close(self) -> None:
        """See ``RolloutSource``."""
        self.environment.close()
