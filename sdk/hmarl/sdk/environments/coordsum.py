"""CoordSum: agents that see the same number name numbers that must add up to it; and its one-step toy, sum to 10.

They show what factorised policies can and cannot do: many combinations of names are right, and agents that choose
independently must agree on one of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from hmarl.sdk.drawing.board import Round, draw_board, present_places
from hmarl.sdk.drawing.canvas import Frame
from hmarl.sdk.environment import VECTORISED, Observation, StepResult, VectorEnvironment
from hmarl.sdk.environments.authoring import EpisodeStreams, RandomStreams, checked_actions, checked_state
from hmarl.sdk.environments.backends import BACKEND_ARGUMENTS, torch_device
from hmarl.sdk.environments.mpe.drawing import agent_colour
from hmarl.sdk.errors import UsageError, unknown_name
from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec

# Any other NxA-max is a task too.
TASKS = ["3x10-30", "3x30-50", "5x20-80", "8x15-100", "sum-to-10", "sum-to-10-full"]
EPISODE_STEPS = 100
Record = Literal["own", "reference"]
COPY_COST = VECTORISED

_NAMES_OF_SUM_TO_TEN: dict[str, tuple[int, ...]] = {"sum-to-10": (4, 6), "sum-to-10-full": tuple(range(11))}


def make(task: str, batch_size: int = 1, **arguments: Any) -> VectorEnvironment:
    """Make B copies of a CoordSum task.

    Args:
        task: ``NxA-max`` (N agents, numbers in [0, A), targets in [0, max)), ``sum-to-10`` or ``sum-to-10-full``.
        batch_size: B, at least 1.
        arguments: for ``NxA-max`` alone ``record``: ``own`` (default) or ``reference``, see ``CoordSum``; ``backend``:
            ``numpy`` (default) or ``torch``, and with the latter ``device``, a torch device (``cpu``).

    Raises:
        UsageError: an unknown task or argument, or a wrong value.
        MissingExtraError: torch is not installed.
    """
    sizes = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)-([1-9]\d*)", task)
    if sizes is None and task not in _NAMES_OF_SUM_TO_TEN:
        raise UsageError(unknown_name("coordsum task", task, [*TASKS, "NxA-max"]))
    takes = [] if sizes is None else ["record", *BACKEND_ARGUMENTS]
    for name in arguments:
        if name not in takes:
            raise UsageError(unknown_name(f"argument of coordsum/{task}", name, takes))
    if sizes is None:
        return SumToTen(task, batch_size)
    record = arguments.get("record", "own")
    if record not in ("own", "reference"):
        raise UsageError(f"record: got {record!r}, expected 'own' or 'reference'")
    device = torch_device(f"coordsum/{task}", arguments)
    agents, numbers, targets = (int(size) for size in sizes.groups())
    if device is None:
        return CoordSum(batch_size, agents, numbers, targets, record=record)
    from hmarl.sdk.environments.on_device.coordsum import DeviceCoordSum  # noqa: PLC0415 - imports torch

    return DeviceCoordSum(batch_size, CoordSum(1, agents, numbers, targets, record=record), device)


class CoordSum:
    """B copies of CoordSum; a ``VectorEnvironment``.

    In each of 100 steps all agents see a target, uniform in [0, max), and each names a number in [0, A). The team is
    rewarded 2 when the sum is the target and an adversary has not guessed agent 0's number, 1 when the sum is the
    target but the guess is right, else 0. The guess is the number that agent 0 has named most often so far in this
    episode at steps of the same record (the smallest of several; 0 where it has named none). The episode ends by
    termination.

    An agent observes (target / max, step / 100). The state adds the adversary's present guess / A, which follows
    from the past alone.

    Args:
        batch_size: B.
        agents: N.
        numbers: A.
        targets: max.
        record: ``own``: one record a target. ``reference``: A records; target t uses the record min(t, A - 1), so that
            all targets from A - 1 on share the last one, as in the environment of MAGPO's authors.

    Attributes:
        target_count: max.
        record_shape: records, and A; record_of: [max] the record that each target uses.
    """

    def __init__(self, batch_size: int, agents: int, numbers: int, targets: int, *, record: Record) -> None:
        self.batch_size = batch_size
        layout = (("target", 1), ("step", 1))
        self.spec = EnvironmentSpec(
            name=f"coordsum/{agents}x{numbers}-{targets}",
            agents=_agents(agents, spaces.Discrete(numbers), layout),
            state_size=3,
            horizon=EPISODE_STEPS,
            team_reward="shared",
            arguments={"record": record},
            common_observations=("target", "step"),
        )
        self.target_count = targets
        self.record_shape = (targets if record == "own" else numbers, numbers)
        self.record_of = np.minimum(np.arange(targets), self.record_shape[0] - 1)
        # One target more than is played: the final observation shows it.
        self._targets = np.zeros((batch_size, EPISODE_STEPS + 1), dtype=np.int64)
        self._record = np.zeros((batch_size, *self.record_shape), dtype=np.int64)
        self._steps = np.zeros(batch_size, dtype=np.int64)
        # What was named at every step, and the adversary's guess: for pictures alone; -1 where it is not known.
        self._played = np.full((batch_size, EPISODE_STEPS, agents + 1), -1, dtype=np.int32)
        self._rows = np.arange(batch_size)
        self._streams = EpisodeStreams(batch_size)

    def reset(self, seeds: npt.NDArray[np.int64]) -> Observation:
        """Start B new episodes; an episode's targets are drawn at its start.

        Args:
            seeds: [B] integers, at least 0.

        Raises:
            UsageError: seeds of another shape, or negative.
        """
        self._restart(self._streams.begin(seeds), self._rows)
        return self._observe()

    def step(self, actions: tuple[npt.NDArray[Any], ...]) -> StepResult:
        """Compare the named numbers with the targets.

        Args:
            actions: one array [B, N] int64.

        Raises:
            UsageError: before the first ``reset``, or actions of a wrong shape or kind or out of range; nothing has
                then changed.
        """
        streams = self._streams.running("step")
        (named,) = checked_actions(actions, self.spec.groups, self.batch_size)
        target = self._target()
        right = named.sum(axis=1) == target
        guess = self._guess(target)
        surprising = named[:, 0] != guess
        rewards = np.where(right, 1.0 + surprising, 0.0).astype(np.float32)
        self._record[self._rows, self.record_of[target], named[:, 0]] += 1
        self._played[self._rows, self._steps, :-1] = named
        self._played[self._rows, self._steps, -1] = guess
        self._steps += 1
        terminated = self._steps >= EPISODE_STEPS
        observation, final = self._observe(), None
        ended = np.flatnonzero(terminated)
        if len(ended):
            self._restart(streams, ended)
            observation, final = self._observe(), observation
        return _shared_result(self.spec, observation, rewards, terminated, final)

    def get_state(self) -> dict[str, npt.NDArray[Any]]:
        """Everything that determines the future, as new arrays.

        Returns:
            ``targets`` [B, 101], ``record`` [B, records, A] (how often agent 0 named what) and ``steps`` [B], int64;
            the generators as in ``RandomStreams.get_state``.

        Raises:
            UsageError: before the first ``reset``.
        """
        return {**self._episode_state(), **self._streams.running("get_state").get_state()}

    def set_state(self, state: Mapping[str, npt.NDArray[Any]]) -> Observation:
        """Continue where ``get_state`` was called.

        Raises:
            UsageError: an array is missing, unknown, of another shape or kind, or holds impossible numbers; nothing has
                then changed.
        """
        saved = self.checked_episodes(state, self.batch_size)
        self._streams.resume(saved)
        self._targets, self._record, self._steps = saved["targets"], saved["record"], saved["steps"]
        self._played[:] = -1
        return self._observe()

    def render(self, index: int = 0) -> Frame:
        """The last rounds of copy ``index`` and its present target as a picture, see ``draw_board``.

        Raises:
            UsageError: before the first ``reset``.
            IndexError: there is no copy ``index``.
        """
        self._streams.running("render")
        steps = range(int(self._steps[index]))
        rounds = [
            Round(int(self._targets[index, step]), tuple(played[:-1].tolist()), int(played[-1]))
            for step, played in zip(steps, self._played[index], strict=False)
            if played[-1] >= 0
        ]
        colours = [agent_colour(agent) for agent in range(len(self.spec.agents))]
        return draw_board(rounds, int(self._target()[index]), colours)

    def agent_pixels(self, index: int = 0) -> npt.NDArray[np.float64]:
        """[N, 3] x, y and radius of the agents in that picture."""
        return present_places(len(self.spec.agents))

    def close(self) -> None:
        """Nothing to free."""

    # --- what the torch backend shares ------------------------------------------------------------------------------

    def spec_with(self, **arguments: Any) -> EnvironmentSpec:
        """The spec with further arguments."""
        return replace(self.spec, arguments={**self.spec.arguments, **arguments})

    def draw_targets(self, streams: RandomStreams, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.int64]:
        """[R, 101] the targets of new episodes of the copies ``rows``."""
        return streams.integers(rows, self.target_count, EPISODE_STEPS + 1)

    def checked_episodes(self, state: Mapping[str, npt.NDArray[Any]], batch_size: int) -> dict[str, npt.NDArray[Any]]:
        """Copies of the arrays of ``state``, of so many copies of this task.

        Raises:
            UsageError: see ``set_state``.
        """
        like = {
            "targets": np.empty((batch_size, EPISODE_STEPS + 1), dtype=np.int64),
            "record": np.empty((batch_size, *self.record_shape), dtype=np.int64),
            "steps": np.empty(batch_size, dtype=np.int64),
            **EpisodeStreams(batch_size).layout(),
        }
        saved = checked_state(state, like)
        for name, limit in (("targets", self.target_count), ("steps", EPISODE_STEPS)):
            if saved[name].min() < 0 or saved[name].max() >= limit:
                raise UsageError(f"state '{name}': got numbers outside [0, {limit})")
        return saved

    def draw_target(self, target: int) -> Frame:
        """A picture of a target alone."""
        return draw_board([], target, [agent_colour(agent) for agent in range(len(self.spec.agents))])

    def _restart(self, streams: RandomStreams, rows: npt.NDArray[np.intp]) -> None:
        self._targets[rows] = self.draw_targets(streams, rows)
        self._record[rows] = 0
        self._steps[rows] = 0

    def _target(self) -> npt.NDArray[np.int64]:
        return self._targets[self._rows, self._steps]

    def _guess(self, target: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The adversary's guess [B]; argmax takes the smallest number of equal counts, and 0 of an empty record."""
        guess: npt.NDArray[np.int64] = self._record[self._rows, self.record_of[target]].argmax(axis=1)
        return guess

    def _observe(self) -> Observation:
        target = self._target()
        state = np.empty((self.batch_size, 3), dtype=np.float32)
        state[:, 0] = target / self.target_count
        state[:, 1] = self._steps / EPISODE_STEPS
        state[:, 2] = self._guess(target) / self.record_shape[1]
        return _shared_observation(self.spec, state[:, :2], state)

    def _episode_state(self) -> dict[str, npt.NDArray[Any]]:
        return {"targets": self._targets.copy(), "record": self._record.copy(), "steps": self._steps.copy()}


class SumToTen:
    """B copies of sum to 10; a ``VectorEnvironment``.

    Two agents, one step: each names a number (4 or 6; in the full game 0 to 10), the team is rewarded 1, and succeeds,
    when they add up to 10. Observation and state are the constant 1. Nothing is random, nothing is remembered.

    Args:
        task: ``sum-to-10`` or ``sum-to-10-full``.
        batch_size: B.
    """

    deterministic = True

    def __init__(self, task: str, batch_size: int) -> None:
        self.batch_size = batch_size
        self._named = np.array(_NAMES_OF_SUM_TO_TEN[task])
        self.spec = EnvironmentSpec(
            name=f"coordsum/{task}",
            agents=_agents(2, spaces.Discrete(len(self._named)), (("constant", 1),)),
            state_size=1,
            horizon=1,
            team_reward="shared",
            has_success=True,
        )

    def reset(self, seeds: npt.NDArray[np.int64]) -> Observation:
        """Start B new episodes, all alike.

        Args:
            seeds: [B] integers, at least 0.

        Raises:
            UsageError: seeds of another shape, or negative.
        """
        RandomStreams(seeds, self.batch_size)
        return self._observe()

    def step(self, actions: tuple[npt.NDArray[Any], ...]) -> StepResult:
        """Play the one step; action a names the a-th of the allowed numbers.

        Args:
            actions: one array [B, 2] int64.

        Raises:
            UsageError: actions of a wrong shape or kind, or out of range.
        """
        (chosen,) = checked_actions(actions, self.spec.groups, self.batch_size)
        success = self._named[chosen].sum(axis=1) == 10
        terminated = np.ones(self.batch_size, dtype=bool)
        return _shared_result(
            self.spec, self._observe(), success.astype(np.float32), terminated, self._observe(), success=success
        )

    def get_state(self) -> dict[str, npt.NDArray[Any]]:
        """No array is needed: every episode is alike."""
        return {}

    def set_state(self, state: Mapping[str, npt.NDArray[Any]]) -> Observation:
        """Continue where ``get_state`` was called.

        Raises:
            UsageError: ``state`` holds an array.
        """
        checked_state(state, {})
        return self._observe()

    def render(self, index: int = 0) -> None:
        """There is nothing to draw."""

    def close(self) -> None:
        """Nothing to free."""

    def _observe(self) -> Observation:
        state = np.ones((self.batch_size, 1), dtype=np.float32)
        return _shared_observation(self.spec, state, state)


def _agents(count: int, space: spaces.Discrete[np.int64], layout: tuple[tuple[str, int], ...]) -> tuple[AgentSpec, ...]:
    size = sum(length for _, length in layout)
    return tuple(AgentSpec(f"agent_{i}", size, space, observation_layout=layout) for i in range(count))


def _shared_observation(
    spec: EnvironmentSpec, seen: npt.NDArray[np.float32], state: npt.NDArray[np.float32]
) -> Observation:
    """All agents see ``seen`` [B, size]."""
    agents = len(spec.agents)
    active = np.ones((len(seen), agents), dtype=bool)
    return Observation((np.repeat(seen[:, None], agents, axis=1),), (None,), state, active)


def _shared_result(
    spec: EnvironmentSpec,
    observation: Observation,
    team_rewards: npt.NDArray[np.float32],
    terminated: npt.NDArray[np.bool_],
    final: Observation | None,
    *,
    success: npt.NDArray[np.bool_] | None = None,
) -> StepResult:
    """Every agent receives the team reward [B]; nothing is ever truncated."""
    rewards = np.repeat(team_rewards[:, None], len(spec.agents), axis=1)
    return StepResult(observation, rewards, terminated, np.zeros_like(terminated), final, success)
