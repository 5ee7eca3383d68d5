"""Closed-loop evaluation: a team plays episodes with fixed seeds, and the figures of what came out.

Return means the undiscounted sum over one episode of the team reward, which the environment's spec defines.

No evaluation goes on for ever: an episode that still runs after ``step_limit`` steps is cut off there, counts with what
it has earned so far, and is reported as ``unfinished``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from hmarl.sdk.clients.agent import AgentStatistics
from hmarl.sdk.environment import Observation, StepResult, VectorEnvironment, as_array, as_numpy
from hmarl.sdk.errors import EnvironmentFault, UsageError
from hmarl.sdk.evaluation.finite import check_observations, check_rewards
from hmarl.sdk.evaluation.statistics import iqm, iqm_interval
from hmarl.sdk.evaluation.waves import Wave, waves_of
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.sdk.team import Team

Progress = Callable[[int, int], None]

# Steps of an episode at most where the environment declares no horizon.
STEP_LIMIT = 5_000
_LOSSES = ("rejoins", "state_resets", "missed_steps")


@runtime_checkable
class TimedTeam(Protocol):
    """A team that measures how long its agents take to act."""

    @property
    def latency_of(self) -> str:
        """What one latency is of, e.g. ``"one agent's act over gRPC"``."""
        ...

    def latencies_s(self) -> npt.NDArray[np.float64]:
        """[L] seconds, of everything measured so far, oldest first."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """What E episodes of one team came to.

    Attributes:
        environment: the environment's name.
        team: the team's name.
        seed: what the episodes' seeds were derived from.
        seeds: [E] int64, the episodes' seeds.
        returns: [E] float64, undiscounted sums of the team reward.
        agent_returns: [E, N] float64, undiscounted sums of every agent's own reward.
        lengths: [E] int64, steps.
        successes: [E] bool where the task knows success, else None.
        latencies_s: [L] float64, seconds.
        latency_of: what one latency is of.
        actions: when recorded, one array per group, [E, max length, N_group, *action_shape]; zero after the episode's
            end and for agents that had left.
        unfinished: episodes that still ran after ``step_limit`` steps and were cut off there.
        step_limit: steps of an episode at most.
        faults: what went wrong on purpose, as ``--faults`` spells it; empty where nothing did.
        serving: what the clients of served agents counted meanwhile (by the team's ``statistics``), None where nothing
            is served.
        batch_size: B, episodes that were played side by side.
        first: number of the first episode among those of the seed.
    """

    environment: str
    team: str
    seed: int
    seeds: npt.NDArray[np.int64]
    returns: npt.NDArray[np.float64]
    agent_returns: npt.NDArray[np.float64]
    lengths: npt.NDArray[np.int64]
    successes: npt.NDArray[np.bool_] | None
    latencies_s: npt.NDArray[np.float64]
    latency_of: str
    actions: tuple[npt.NDArray[Any], ...] | None = None
    unfinished: int = 0
    step_limit: int = STEP_LIMIT
    faults: str = ""
    serving: AgentStatistics | None = None
    batch_size: int = 1
    first: int = 0

    @property
    def episodes(self) -> int:
        """E."""
        return int(self.returns.size)

    @property
    def typical(self) -> int:
        """The episode whose return is nearest to the median."""
        return int(np.abs(self.returns - np.median(self.returns)).argmin())

    def wave_of(self, episode: int) -> Wave:
        """An episode with those that it was played beside."""
        return waves_of(self.seed, self.episodes, self.batch_size, self.first)[episode // self.batch_size]

    def summary(self) -> dict[str, Any]:
        """The figures in brief.

        ``return_ci95`` is [low, high], the percentile-bootstrap interval of the interquartile mean ``return_iqm``;
        ``success_rate`` is None where the task does not know success, latencies (microseconds) where none was measured,
        ``faults`` where nothing went wrong on purpose, ``rejoins``, ``state_resets`` and ``missed_steps`` (see
        ``AgentStatistics``) where nothing is served.
        """
        timed = self.latencies_s.size > 0
        return {
            "episodes": self.episodes,
            "faults": self.faults or None,
            "return_mean": float(self.returns.mean()),
            "return_median": float(np.median(self.returns)),
            "return_iqm": float(iqm(self.returns)),
            "return_ci95": list(iqm_interval(self.returns)),
            "return_std": float(self.returns.std()),
            "length_mean": float(self.lengths.mean()),
            "unfinished": self.unfinished,
            **{name: None if self.serving is None else getattr(self.serving, name) for name in _LOSSES},
            "success_rate": None if self.successes is None else float(self.successes.mean()),
            "latency_p50_us": float(np.quantile(self.latencies_s, 0.50)) * 1e6 if timed else None,
            "latency_p99_us": float(np.quantile(self.latencies_s, 0.99)) * 1e6 if timed else None,
        }


def unfinished_remark(evaluation: Evaluation, setting: str) -> str | None:
    """What to say of episodes that were cut off, and by which ``setting``; None where there are none."""
    if not evaluation.unfinished:
        return None
    return (
        f"{evaluation.unfinished} of {evaluation.episodes} episodes still ran after {evaluation.step_limit:,} steps, "
        f"were cut off and count as far as they went; {setting} sets the limit"
    )


def serving_remark(evaluation: Evaluation) -> str | None:
    """What to say of served agents that lost their memory or observations; None where none did."""
    found = evaluation.serving
    if found is None or not (found.rejoins or found.state_resets or found.missed_steps):
        return None
    return (
        f"agents were joined again {found.rejoins:,} times in mid-episode, {found.state_resets:,} times with nothing "
        f"remembered, and {found.missed_steps:,} observations never arrived: the figures are of a team to which that "
        "happened; the agents' logs say why"
    )


def limit_of(spec: EnvironmentSpec, step_limit: int | None) -> int:
    """Steps after which an episode is cut off: as given, else the declared horizon, else ``STEP_LIMIT``.

    Raises:
        UsageError: a limit below 1.
    """
    if step_limit is not None and step_limit < 1:
        raise UsageError(f"step_limit: got {step_limit}, expected at least 1")
    return step_limit or spec.declared_horizon or STEP_LIMIT


def evaluate(
    environment: VectorEnvironment,
    team: Team,
    episodes: int,
    seed: int,
    *,
    first: int = 0,
    progress: Progress | None = None,
    record: bool = False,
    step_limit: int | None = None,
) -> Evaluation:
    """Play ``episodes`` episodes, B at a time, and collect what they came to.

    Every wave resets the B environments with the seeds of its episodes and steps until each has ended once; what an
    environment does after its first end is ignored. In a last wave that is not full the surplus rows are ignored too.

    Args:
        environment: B environments; equal seeds must give equal episodes.
        team: who acts.
        episodes: E, at least 1.
        seed: see ``episode_seeds``.
        first: number of the first episode, so that many can be played part by part.
        progress: called with (episodes done, E) whenever an episode has ended.
        record: keep every action, for comparisons action by action.
        step_limit: see ``limit_of``.

    Raises:
        UsageError: no episodes, a negative seed, or no steps.
        EnvironmentFault: an episode goes on beyond the horizon that the environment declares, or a number of it is NaN
            or infinite.
    """
    if episodes < 1:
        raise UsageError(f"episodes: got {episodes}, expected at least 1")
    if first < 0:
        raise UsageError(f"first: got {first}, expected at least 0")
    waves = waves_of(seed, episodes, environment.batch_size, first)
    limit = limit_of(environment.spec, step_limit)
    tally = _Tally(environment.spec, episodes, record, progress)
    clock = _Clock(team)
    before = _counted(team)
    for wave in waves:
        _play_wave(environment, clock, tally, wave, limit)
    now = _counted(team)
    return Evaluation(
        environment=environment.spec.name,
        team=team.name,
        seed=seed,
        seeds=np.concatenate([each.seeds for each in waves])[:episodes],
        returns=tally.returns,
        agent_returns=tally.agent_returns,
        lengths=tally.lengths,
        successes=tally.successes if environment.spec.has_success else None,
        latencies_s=clock.latencies_s(),
        latency_of=clock.latency_of,
        actions=tally.recorded() if record else None,
        unfinished=tally.unfinished,
        step_limit=limit,
        faults=environment.spec.faults,
        serving=None if before is None or now is None else now.since(before),
        batch_size=environment.batch_size,
        first=first,
    )


def _counted(team: Team) -> AgentStatistics | None:
    """A copy of what a team's clients have counted so far; None for a team that has none."""
    found = getattr(team, "statistics", None)
    if not isinstance(found, AgentStatistics):
        return None
    copied = AgentStatistics()
    copied.add(found)
    return copied


def _play_wave(
    environment: VectorEnvironment,
    clock: _Clock,
    tally: _Tally,
    wave: Wave,
    limit: int,
) -> None:
    """Play B episodes, as far as they are wanted."""
    first, seeds, running = wave.first, wave.seeds, wave.wanted
    wanted_until = first + int(running.sum())
    spec = environment.spec
    observation = as_numpy(environment.reset(seeds))
    clock.team.reset(seeds)
    horizon = spec.declared_horizon
    step = 0

    def when(row: int) -> str:
        return f"step {step} of the episode of seed {seeds[row]}"

    check_observations(spec, observation, running, when)
    while running.any():
        if horizon is not None and step >= horizon:
            raise EnvironmentFault(
                f"{spec.name}: the episode of seed {seeds[running][0]} goes on after its horizon "
                f"of {horizon} steps; where the horizon is an argument (env.horizon), null says that there is none"
            )
        if step >= limit:
            tally.cut_off(first + np.flatnonzero(running))
            break
        actions = clock.act(observation, running)
        result = environment.step(actions)
        tally.add(first=first, running=running, step=step, actions=actions, observation=observation, result=result)
        step += 1
        check_rewards(spec, as_array(result.rewards), running, when)
        ended = running & (as_array(result.terminated) | as_array(result.truncated))
        running = running & ~ended
        observation = as_numpy(result.observation)
        check_observations(spec, observation, running, when)
        if ended.any():
            tally.report(wanted_until - int(running.sum()))


class _Clock:
    """The team, with the seconds that its act calls take, in case it does not measure them itself."""

    def __init__(self, team: Team) -> None:
        self.team = team
        self._measured: list[float] = []
        self.latency_of = team.latency_of if isinstance(team, TimedTeam) else "one act of the whole team"
        self._skip = len(team.latencies_s()) if isinstance(team, TimedTeam) else 0

    def act(self, observation: Observation, running: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[Any], ...]:
        begin = time.perf_counter()
        actions = self.team.act(observation, running)
        self._measured.append(time.perf_counter() - begin)
        return actions

    def latencies_s(self) -> npt.NDArray[np.float64]:
        if isinstance(self.team, TimedTeam):
            return self.team.latencies_s()[self._skip :]
        return np.asarray(self._measured)


class _Tally:
    """Sums over the wanted episodes, filled in wave by wave."""

    def __init__(self, spec: EnvironmentSpec, episodes: int, record: bool, progress: Progress | None) -> None:
        self.episodes = episodes
        self.returns = np.zeros(episodes)
        self.agent_returns = np.zeros((episodes, len(spec.agents)))
        self.lengths = np.zeros(episodes, np.int64)
        self.successes = np.zeros(episodes, np.bool_)
        self.unfinished = 0
        self._spec = spec
        self._record = record
        self._progress = progress
        self._steps: list[tuple[int, npt.NDArray[np.int64], tuple[npt.NDArray[Any], ...]]] = []

    def report(self, done: int) -> None:
        if self._progress is not None:
            self._progress(done, self.episodes)

    def add(
        self,
        *,
        first: int,
        running: npt.NDArray[np.bool_],
        step: int,
        actions: tuple[npt.NDArray[Any], ...],
        observation: Observation,
        result: StepResult,
    ) -> None:
        """Count one step of the running rows; row r is episode ``first + r``."""
        rows = np.flatnonzero(running)
        episodes = first + rows
        rewards = as_array(result.rewards)[rows].astype(np.float64)
        self.returns[episodes] += self._spec.team_rewards(rewards, observation.active[rows])
        self.agent_returns[episodes] += rewards
        self.lengths[episodes] += 1
        if result.success is not None:
            self.successes[episodes] = as_array(result.success)[rows]
        if self._record:
            self._steps.append((step, episodes, self._kept(actions, observation.active, rows)))

    def cut_off(self, episodes: npt.NDArray[np.int64]) -> None:
        """These will not be played to their end, which is no success."""
        self.unfinished += len(episodes)
        self.successes[episodes] = False
        self.report(int(episodes[-1]) + 1)

    def _kept(
        self, actions: tuple[npt.NDArray[Any], ...], active: npt.NDArray[np.bool_], rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[Any], ...]:
        """Copies of the rows' actions, zero for agents that have left."""
        kept = []
        for group, block in zip(self._spec.groups, actions, strict=True):
            present = active[np.ix_(rows, np.asarray(group.agents))]
            chosen = np.asarray(block)[rows]
            present = present.reshape(present.shape + (1,) * (chosen.ndim - 2))
            kept.append(np.where(present, chosen, 0).astype(chosen.dtype))
        return tuple(kept)

    def recorded(self) -> tuple[npt.NDArray[Any], ...]:
        """The recorded actions as one block per group."""
        blocks = []
        for index, group in enumerate(self._spec.groups):
            shape = (self.episodes, int(self.lengths.max()), len(group.agents), *group.example.action_shape)
            block = np.zeros(shape, group.example.action_dtype)
            for step, episodes, actions in self._steps:
                block[episodes, step] = actions[index]
            blocks.append(block)
        return tuple(blocks)


def marl_eval_json(evaluations: Iterable[Evaluation], step_count: int = 0) -> dict[str, Any]:
    """The evaluations in marl-eval's form: environment → task → algorithm → run → step and absolute metrics.

    A task with faults is another task, ``TASK [faults]``, so that figures with and without them are never mixed.

    Args:
        evaluations: one per team; each becomes the run ``seed_<seed>`` of the algorithm named like the team.
        step_count: training steps behind the policies, 0 when unknown.
    """
    document: dict[str, Any] = {}
    for evaluation in evaluations:
        family, _, task = evaluation.environment.partition("/")
        task = (task or family) + (f" [{evaluation.faults}]" if evaluation.faults else "")
        metrics: dict[str, list[float]] = {
            "return": evaluation.returns.tolist(),
            "episode_length": evaluation.lengths.astype(np.float64).tolist(),
        }
        if evaluation.successes is not None:
            metrics["success_rate"] = evaluation.successes.astype(np.float64).tolist()
        runs = document.setdefault(family, {}).setdefault(task, {}).setdefault(evaluation.team, {})
        runs[f"seed_{evaluation.seed}"] = {
            "step_0": {"step_count": step_count, **metrics},
            "absolute_metrics": metrics,
        }
    return document
