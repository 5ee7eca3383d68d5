"""Several seeds of one run, trained at once: their environments are stepped as one batch, in which all teams act in one
call a group, and their gradient steps are taken together.

Each seed is an ordinary run with a directory, and draws what it would draw alone; what it computes equals that up to
rounding. It works in a thread of its own (``together.company``) and meets the others where they compute as one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from hmarl.sdk.environment import Observation, VectorEnvironment
from hmarl.sdk.environments import make
from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.algorithms import ALGORITHMS, find_algorithm
from hmarl.trainer.contract.algorithm import Algorithm
from hmarl.trainer.experience.finite import broken_observation
from hmarl.trainer.experience.rollout import Collector, Decision, EpisodeStatistics, Rollout
from hmarl.trainer.networks.flat import Mlp
from hmarl.trainer.runs.config import RunConfig, device_of
from hmarl.trainer.runs.directory import refuse_other_run, resume_command
from hmarl.trainer.runs.run import Run
from hmarl.trainer.runs.seeds import derived_seeds
from hmarl.trainer.runs.settings import RunSettings
from hmarl.trainer.runs.sources import RolloutSource
from hmarl.trainer.runs.stopping import StopRequest
from hmarl.trainer.runs.training import MakeSource
from hmarl.trainer.together.company import Company, Outcome, ask


def check_many_seeds(config: RunConfig, option: str = "--seeds", instead: str = "") -> None:
    """Whether seeds of such a run can be trained at once.

    Args:
        config: of one of them.
        option: by which that is asked for.
        instead: what to do where they cannot; by default to train them one after the other.

    Raises:
        UsageError: they cannot; says what to do.
    """
    instead = instead or f"train one after the other: hmarl-train {config.algorithm} --seed N"
    if not find_algorithm(config.algorithm).many_seeds:
        able = ", ".join(name for name, kind in ALGORITHMS.items() if kind.many_seeds)
        raise UsageError(f"{option}: got {config.algorithm}, expected one of {able}; {instead}")
    if config.settings().recurrent:
        raise UsageError(
            f"{option}: got algorithm.recurrent=true, expected policies without memory; leave it out, or {instead}"
        )
    if workers := config.run_settings().workers:
        raise UsageError(
            f"{option}: got run.workers={workers}, expected 0: the environments of all seeds are stepped as one batch; "
            f"leave it out, or {instead}"
        )


def check_resumed_seeds(configs: Sequence[RunConfig], directories: Sequence[Path]) -> None:
    """Whether runs can be gone on with at once.

    Raises:
        UsageError: they differ in more than their seeds, or are of a kind that cannot; says what to do.
    """
    instead = "resume one after the other"
    for config, directory in zip(configs, directories, strict=True):
        check_many_seeds(config, f"--resume {directory}", instead)
        if differing := sorted(_differences(configs[0], config)):
            raise UsageError(
                f"--resume {directory}: got another {', '.join(differing)} than {directories[0]}, expected runs that "
                f"differ in their seeds alone; {instead}"
            )


def _differences(one: RunConfig, other: RunConfig) -> set[str]:
    """Names of what differs between two runs, their seeds apart."""
    ours, theirs = _named_settings(one), _named_settings(other)
    return {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)} - {"run.seed"}


def _named_settings(config: RunConfig) -> dict[str, Any]:
    """All that determines a run, by name."""
    groups = {
        "algorithm": config.settings().model_dump(),
        "run": config.run_settings().model_dump(),
        "env": config.environment_arguments,
    }
    named = {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}
    return {"algorithm": config.algorithm, "environment": config.environment, **named}


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
        try:
            return self._collector.rollout, self._collector.collect(TeamsOfSeeds(self._algorithms))
        except Exception as error:
            # Actions made of such numbers may be what an environment has choked on.
            if broken := broken_observation(self.environment.spec, self._collector.observation):
                error.add_note(broken)
            raise

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


def _given(part: SeedsPart, config: RunConfig) -> RolloutSource:
    return part


class ManyRuns:
    """Runs that differ in their seeds, trained at once. ``create`` makes them.

    Args:
        runs: one a seed.
        parts: of the environments that they share.
        stop: once asked, all end with a checkpoint after the same update.
    """

    def __init__(self, runs: Sequence[Run], parts: Sequence[SeedsPart], stop: StopRequest) -> None:
        self.runs, self._parts, self._stop = runs, parts, stop

    @classmethod
    def create(cls, configs: Sequence[RunConfig], directories: Sequence[Path], stop: StopRequest) -> ManyRuns:
        """Fresh runs, as ``Run.create`` makes one.

        Args:
            configs: which differ in their seeds alone.
            directories: where they write.
            stop: see the class.

        Raises:
            UsageError: they cannot be trained at once; or as ``Run.create``.
            StorageError: there is no space for config.json.
        """
        check_many_seeds(configs[0])
        for directory in directories:
            refuse_other_run(directory)

        def create(number: int, make_source: MakeSource, among: str) -> Run:
            return Run.create(configs[number], directories[number], make_source, among)

        return cls._opened(configs, stop, create, Run.withdraw)

    @classmethod
    def resume(cls, directories: Sequence[Path], steps: int | None, stop: StopRequest) -> ManyRuns:
        """Go on with runs, as ``Run.resume`` does with one.

        Args:
            directories: theirs.
            steps: raises or lowers the goal of all.
            stop: see the class.

        Raises:
            UsageError: they cannot be trained at once; or as ``Run.resume``.
            CheckpointError: as ``Run.resume``.
        """
        configs = [RunConfig.read(directory) for directory in directories]
        if steps is not None:
            configs = [config.model_copy(update={"run": {**config.run, "steps": steps}}) for config in configs]
        check_resumed_seeds(configs, directories)

        def resume(number: int, make_source: MakeSource, among: str) -> Run:
            return Run.resume(directories[number], steps, make_source, among)

        many = cls._opened(configs, stop, resume, Run.close)
        try:
            many.check_in_step()
        except BaseException:
            many.close()
            raise
        return many

    @classmethod
    def _opened(
        cls,
        configs: Sequence[RunConfig],
        stop: StopRequest,
        open_run: Callable[[int, MakeSource, str], Run],
        undo: Callable[[Run], None],
    ) -> ManyRuns:
        """All of them, each opened by its number with its part of the environments; ``undo`` where another fails."""
        shared = SharedEnvironments(configs)
        with ExitStack() as undone:
            undone.callback(shared.environment.close)
            runs, parts = list[Run](), list[SeedsPart]()
            for number, config in enumerate(configs):
                part = shared.part(number, config, stop)
                run = open_run(number, partial(_given, part), f"seed {config.run_settings().seed}")
                undone.callback(undo, run)
                shared.take(run.algorithm)
                parts.append(part)
                runs.append(run)
            undone.pop_all()
        return cls(runs, parts, stop)

    def resume_command(self) -> str:
        """What to type to continue with all of them."""
        return resume_command(*(run.directory for run in self.runs))

    def check_in_step(self) -> None:
        """Environments that cannot be saved begin new episodes at every checkpoint, all at the same one.

        Raises:
            UsageError: checkpoints are of different updates there.
        """
        updates = {run.counters.update for run in self.runs}
        if len(updates) > 1 and not self._parts[0].saves:
            told = ", ".join(f"{run.directory} at {run.counters.steps:,} steps" for run in self.runs)
            raise UsageError(
                f"--resume: got {told}, expected checkpoints of the same step, for the state of "
                f"{self.runs[0].config.environment} cannot be saved; resume one after the other"
            )

    def train(self) -> list[Outcome[dict[str, Any]]]:
        """Train all of them to their end, as ``Run.train`` does one.

        Returns:
            By run its summary, or the error that ended it; the others have gone on.
        """
        works = [partial(run.train, part.told) for run, part in zip(self.runs, self._parts, strict=True)]
        with self._stop.postponed():
            return Company().work(works)

    def close(self) -> None:
        """Free the environments and the directories."""
        for run in self.runs:
            run.close()
