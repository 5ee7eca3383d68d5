"""Environments of several seeds, stepped as one batch in which all teams act in one call a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from hmarl.sdk.environment import Observation, VectorEnvironment
from hmarl.sdk.environments import make
from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.contract.algorithm import Algorithm
from hmarl.trainer.experience.rollout import Collector, Decision, EpisodeStatistics, Rollout
from hmarl.trainer.networks.flat import Mlp
from hmarl.trainer.runs.config import RunConfig, device_of
from hmarl.trainer.runs.seeds import derived_seeds
from hmarl.trainer.runs.settings import RunSettings
from hmarl.trainer.runs.stopping import StopRequest
from hmarl.trainer.together.company import ask


class TeamsOfSeeds:
    """The local policies of several algorithms that differ in their seeds alone, acting in one batched call a group.

    Args:
        algorithms: S of them.
    """

    def __init__(self, algorithms: Sequence[Algorithm]) -> None:
        self._algorithms = algorithms
        self._teams: list[_GroupOfSeeds] = []
        self._noise: list[Tensor] = []

    def begin_rollout(self, steps: int, batch_size: int) -> None:
        """Each draws its noise, as it would alone."""
        algorithms = self._algorithms
        for each in algorithms:
            each.begin_rollout(steps, batch_size // len(algorithms))
        self._teams = [_GroupOfSeeds.of(algorithms, group) for group in range(len(algorithms[0].policies))]
        noises = [each.local_acting.noise for each in algorithms]
        self._noise = [torch.cat(noise, dim=1) for noise in zip(*noises, strict=True)]

    @torch.no_grad()
    def act(self, observation: Observation, step: int) -> Decision:
        """Sample the actions of all agents of all teams, a group at a time."""
        drawn = zip(self._teams, observation.observations, observation.action_masks, self._noise, strict=True)
        actions = tuple(team.act(seen, mask, noise[step]) for team, seen, mask, noise in drawn)
        return Decision(actions, self._algorithms[0].to_environment(actions))

    def episodes_ended(self, ended: Tensor) -> None:
        """Nothing is remembered."""


@dataclass(frozen=True)
class _GroupOfSeeds:
    """A group's policies of all seeds, as they are in one rollout.

    Attributes:
        algorithms: S of them.
        group: which.
        parameters: by name, of S · N networks.
        extra: [S · N, 1, E] the heads' own parameters.
        shift, scale: [S, 1, N, D] or [S, 1, 1, D] of the observations.
    """

    algorithms: Sequence[Algorithm]
    group: int
    parameters: Mapping[str, Tensor]
    extra: Tensor
    shift: Tensor
    scale: Tensor

    @classmethod
    def of(cls, algorithms: Sequence[Algorithm], group: int) -> _GroupOfSeeds:
        """As the policies are now."""
        policies = [each.policies[group] for each in algorithms]
        theta = torch.cat([policy.theta.expand(policy.members, -1) for policy in policies])
        network, normalisers = policies[0].network, [each.observation_normalisers[group] for each in algorithms]
        return cls(
            algorithms,
            group,
            network.named(theta[:, : network.size]),
            theta[:, network.size :].unsqueeze(1),
            torch.stack([each.shift for each in normalisers]).unsqueeze(1),
            torch.stack([each.scale for each in normalisers]).unsqueeze(1),
        )

    def act(self, seen: Tensor, mask: Tensor | None, perturbation: Tensor) -> Tensor:
        """[S · B, N, ...] raw actions, given observations [S · B, N, D] and perturbations [S · N, B, A]."""
        first, seeds = self.algorithms[0], len(self.algorithms)
        policy, normaliser = first.policies[self.group], first.observation_normalisers[self.group]
        assert isinstance(policy.network, Mlp)

        def by_network(values: Tensor) -> Tensor:  # [S · B, N, ...] -> [S · N, B, ...]
            return values.unflatten(0, (seeds, -1)).transpose(1, 2).flatten(0, 1)

        features = normaliser.scaled(seen.unflatten(0, (seeds, -1)), self.shift, self.scale).flatten(0, 1)
        output = policy.network.apply(dict(self.parameters), by_network(policy.inputs(features)))
        legal = None if mask is None else by_network(mask)
        actions = policy.head.distribution(output, self.extra, legal).select(perturbation)
        return actions.unflatten(0, (seeds, -1)).transpose(1, 2).flatten(0, 1)


class SharedEnvironments:
    """The environments of several seeds, stepped as one batch.

    Args:
        configs: of the runs, which differ in their seeds alone.

    Raises:
        UsageError: the environment's state cannot be told apart by seed, or it shows pictures.
    """

    def __init__(self, configs: Sequence[RunConfig]) -> None:
        settings = [config.run_settings() for config in configs]
        self._size, self._seeds = settings[0].environments, len(configs)
        first = configs[0]
        self.environment: VectorEnvironment = make(
            first.environment, self._size * self._seeds, **first.environment_arguments
        )
        try:
            if images := self.environment.spec.images:
                raise UsageError(
                    f"--seeds: in {first.environment} {images[0]}, expected vectors; train one seed at a time with "
                    "--seed"
                )
            drawn = np.concatenate([derived_seeds(each.seed, 0, each.environments) for each in settings])
            batch = Rollout(
                self.environment.spec, settings[0].rollout_length, self._size * self._seeds, device_of(settings[0])
            )
            self._collector = Collector(self.environment, batch, drawn)
            self._check(first.environment)
        except BaseException:
            self.environment.close()
            raise
        self._next_seeds = drawn
        self._algorithms: list[Algorithm] = []

    def _check(self, name: str) -> None:
        """Whether episodes depend on their own seeds alone, and checkpoints can hold one seed's part of the state."""
        if not getattr(self.environment, "independent_copies", True):
            raise UsageError(
                f"--seeds: in {name} an episode depends on the seeds of all its copies, expected on its own alone; "
                "train one seed at a time with --seed"
            )
        state = self._collector.get_state() or {}
        for key, value in state.items():
            if value.shape[:1] != (self._size * self._seeds,):
                raise UsageError(
                    f"--seeds: {name} keeps '{key}' of all its copies together (shape {value.shape}), expected one "
                    f"row a copy; train one seed at a time with --seed"
                )

    def part(self, number: int, config: RunConfig, stop: StopRequest) -> SeedsPart:
        """One seed's; ``stop`` is asked by all."""
        rows = slice(number * self._size, (number + 1) * self._size)
        return SeedsPart(self, number, rows, config.run_settings(), stop)

    # --- what the parts ask for -------------------------------------------------------------------------------------

    def take(self, algorithm: Algorithm) -> None:
        """One more acts, in the part after those that are taken."""
        self._algorithms.append(algorithm)

    def collect(self) -> tuple[Rollout, EpisodeStatistics]:
        """One rollout of all."""
        return self._collector.rollout, self._collector.collect(TeamsOfSeeds(self._algorithms))

    def restart(self, seeds: Mapping[int, np.ndarray]) -> None:
        """New episodes everywhere, from those seeds by part; where there is none from those before."""
        for number, theirs in seeds.items():
            self._next_seeds[number * self._size : (number + 1) * self._size] = theirs
        self._collector.restart(self._next_seeds, TeamsOfSeeds(self._algorithms))

    @property
    def observation(self) -> Observation:
        """What is seen now, by all."""
        return self._collector.observation

    def get_state(self) -> dict[str, np.ndarray] | None:
        """Of all."""
        return self._collector.get_state()

    def set_rows(self, rows: slice, theirs: Mapping[str, np.ndarray]) -> None:
        """Set one seed's part of the state; that of the others stays as it is."""
        state = self._collector.get_state() or {}
        for key, value in theirs.items():
            state[key] = np.array(state[key])  # it may be the environment's own
            state[key][rows] = value
        self._collector.set_state(state)


class SeedsPart:
    """One seed's part of environments that several share: a ``RolloutSource``.

    Args:
        shared: all of them.
        number: of the seed.
        rows: which of the environments are its own.
        settings: of its run.
        stop: asked by all seeds.

    Attributes:
        told: the seed's own request to stop: made before a rollout, so that all seeds stop after the same update.
    """

    def __init__(
        self, shared: SharedEnvironments, number: int, rows: slice, settings: RunSettings, stop: StopRequest
    ) -> None:
        self.shared, self.number, self.rows, self._settings = shared, number, rows, settings
        self._stop, self.told = stop, StopRequest()
        self._rollout: Rollout | None = None

    @property
    def spec(self) -> EnvironmentSpec:
        """The environments'."""
        return self.shared.environment.spec

    @property
    def rollout(self) -> Rollout:
        """The newest one."""
        assert self._rollout is not None
        return self._rollout

    @property
    def saves(self) -> bool:
        """See ``RolloutSource``."""
        return self.shared.get_state() is not None

    @property
    def restarts(self) -> bool:
        """See ``RolloutSource``."""
        return self.shared.observation.restarted is not None

    def pass_on(self) -> None:
        """That stopping has been asked for."""
        if self._stop() and not self.told():
            self.told.ask()

    def collect(self, algorithm: Algorithm) -> EpisodeStatistics:
        """One rollout, along with the others."""
        self._rollout, statistics = ask(_Collecting(self))
        return statistics

    def restart(self, algorithm: Algorithm, update: int) -> None:
        """New episodes, along with the others."""
        ask(_Restarting(self, derived_seeds(self._settings.seed, 1 + update, self._settings.environments)))

    def tensors(self) -> dict[str, Tensor]:
        """Its rows of the environments' state, as a run alone has them."""
        state = self.shared.get_state() or {}
        return {key: torch.as_tensor(value[self.rows].copy()) for key, value in state.items()}

    def load(self, algorithm: Algorithm, tensors: Mapping[str, Tensor], update: int) -> None:
        """Its rows of the environments, before any of them is stepped."""
        if self.saves:
            self.shared.set_rows(self.rows, {key: value.cpu().numpy() for key, value in tensors.items()})
        else:
            self.restart(algorithm, update)

    def figures(self) -> dict[str, float]:
        """None."""
        return {}

    def summary(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def close(self) -> None:
        """Free all of them; the first that does suffices."""
        self.shared.environment.close()


@dataclass(frozen=True)
class _Collecting:
    """A request for a rollout."""

    part: SeedsPart

    @property
    def of_all(self) -> bool:
        """The environments are stepped together."""
        return True

    def alike(self, other: _Collecting) -> bool:
        """They all are."""
        return True

    def together(self, requests: Sequence[Self]) -> list[tuple[Rollout, EpisodeStatistics]]:
        """Each one's part of one rollout."""
        for each in requests:
            each.part.pass_on()
        rollout, statistics = self.part.shared.collect()
        rows = [each.part.rows for each in requests]
        return [(rollout.of(each), statistics.of(each)) for each in rows]


@dataclass(frozen=True)
class _Restarting:
    """A request for new episodes."""

    part: SeedsPart
    seeds: np.ndarray

    @property
    def of_all(self) -> bool:
        """The environments are reset together."""
        return True

    def alike(self, other: _Restarting) -> bool:
        """They all are."""
        return True

    def together(self, requests: Sequence[Self]) -> list[None]:
        """All at once."""
        self.part.shared.restart({each.part.number: each.seeds for each in requests})
        return [None] * len(requests)
