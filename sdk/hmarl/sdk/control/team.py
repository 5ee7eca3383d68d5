"""What is decided at a tick, whoever waits for the agents: who is asked, and what is done for each."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt

from hmarl.sdk.clients.agent import Action
from hmarl.sdk.clock import checked_seconds, now_s
from hmarl.sdk.control.limits import ActionFilter, ActionLimits, Limit
from hmarl.sdk.control.schedule import Schedule, Tick
from hmarl.sdk.control.statistics import (
    AGENT,
    BUSY,
    DEADLINE,
    MISSES,
    NO_OBSERVATION,
    OLD_OBSERVATION,
    UNUSABLE,
    AgentRecord,
    LoopRecord,
)
from hmarl.sdk.errors import MisuseError, StaleActionError, UsageError
from hmarl.sdk.fallback import Fail, Fallback, Situation
from hmarl.sdk.spaces import AgentSpec


class Seated(Protocol):
    """What the blocking and the asyncio interface of agents have in common."""

    @property
    def spec(self) -> AgentSpec:
        """The agent's id, observation size and spaces."""
        ...

    def skip(self, steps: int = 1) -> None:
        """Steps go by at which the agent is not asked."""
        ...


AgentT = TypeVar("AgentT", bound=Seated)
ValueT = TypeVar("ValueT")
Agents: TypeAlias = AgentT | Iterable[AgentT] | Mapping[str, AgentT]
PerAgent: TypeAlias = ValueT | Mapping[str, ValueT]


@dataclass(frozen=True, slots=True, eq=False)
class StampedObservation:
    """What one agent observes, and since when it is so.

    Attributes:
        observation: [observation_size] float32.
        action_mask: [mask_size] bool, when the policy has a mask input.
        stamp_s: ``time.monotonic()`` when it was measured (CLOCK_MONOTONIC, as drivers stamp); None: when it is read.
    """

    observation: npt.NDArray[Any]
    action_mask: npt.NDArray[np.bool_] | None = None
    stamp_s: float | None = None


Readings: TypeAlias = Mapping[str, StampedObservation | npt.NDArray[Any] | None]


@dataclass(frozen=True, slots=True, eq=False)
class Command:
    """What is done for one agent at a tick.

    Attributes:
        action: an int, int64 [branches] or float32 [D], in the environment's units, within the limits.
        fresh: whether the policy chose it for this tick; otherwise the fallback did.
        reason: what kept a fresh action, see ``AgentSummary.fallbacks``, or ``end``: the safe action, which is written
            last. None when it is fresh.
        limited: the limits that have changed it: ``bounds``, ``rate``, both or none.
    """

    action: int | npt.NDArray[Any]
    fresh: bool
    reason: str | None
    limited: tuple[Limit, ...]


class Missing(NamedTuple):
    """There is no fresh action: a reason to be counted, and in words."""

    reason: str
    words: str


Answer: TypeAlias = Action | Missing


class Request(NamedTuple):
    """What an agent is asked at a tick, and how many it has missed before."""

    observation: npt.NDArray[Any]
    action_mask: npt.NDArray[np.bool_] | None
    skipped: int
    deadline_s: float


class Seat(Generic[AgentT]):
    """One agent in a loop.

    Attributes:
        agent: the agent.
        record: what has happened to it.
        busy: whether it is at a request whose answer has not been taken.
        owed: steps that went by without it, of which it has not been told.
    """

    def __init__(
        self, agent_id: str, agent: AgentT, record: AgentRecord, fallback: Fallback, limits: ActionFilter
    ) -> None:
        self.agent = agent
        self.record = record
        self.busy = False
        self.owed = 0
        self._id = agent_id
        self._space = agent.spec.action_space_model
        self._masked = agent.spec.has_action_mask
        self._fallback = fallback
        self._limits = limits
        self._last_action: npt.NDArray[Any] | None = None
        self._last_time_s = -math.inf
        self._last_tick = 0

    def start(self) -> None:
        """A run begins; nothing of an earlier one may be held on to."""
        self._last_action, self._last_time_s = None, -math.inf
        self.owed = 0

    def settle(self) -> None:
        """A run is over; the agent is told of the last steps that went by without it."""
        if self.owed and not self.busy:
            with contextlib.suppress(MisuseError):  # it was closed meanwhile
                self.agent.skip(self.owed)

    def command(self, tick: Tick, answer: Answer, mask: npt.NDArray[np.bool_] | None, began_s: float) -> Command:
        """What is done, given what the agent answered.

        Raises:
            StaleActionError: there is no fresh action, and the fallback allows none instead.
        """
        missing, action = self._taken(tick, answer, mask)
        if missing is not None:
            self.record.fallbacks[missing.reason] += 1
            if action is None:
                action = self._decided(self._fallback, self._situation(tick.number, mask, missing.words))
        assert action is not None
        allowed, limited = self._limits.enforce(action, began_s)
        self.record.limited.update(limited)
        reason = None if missing is None else missing.reason
        return Command(self._plain(allowed), missing is None, reason, limited)

    def _taken(
        self, tick: Tick, answer: Answer, mask: npt.NDArray[np.bool_] | None
    ) -> tuple[Missing | None, npt.NDArray[Any] | None]:
        """What is missing, and the action that the agent gave; one that its own fallback chose is not fresh."""
        if isinstance(answer, Missing):
            return answer, None
        action = np.asarray(answer.action)
        if not self._limits.usable(answer.action, mask if self._masked else None):
            return Missing(UNUSABLE, f"its action is {action.tolist()}"), None
        if not answer.fresh:
            return Missing(AGENT, "its own fallback decided"), action
        self.record.fresh += 1
        self.record.act.record(answer.latency_s)
        self._last_action, self._last_time_s, self._last_tick = action, now_s(), tick.number
        return None, action

    def last_command(self, tick: int, fallback: Fallback, began_s: float) -> Command:
        """What is written when the loop ends.

        Raises:
            StaleActionError: the fallback has none.
        """
        action = self._decided(fallback, self._situation(tick, None, "the loop ends"))
        allowed, limited = self._limits.release(action, began_s)
        return Command(self._plain(allowed), False, "end", limited)

    def _decided(self, fallback: Fallback, situation: Situation) -> npt.NDArray[Any]:
        try:
            return fallback.decide(situation)
        except StaleActionError as error:
            raise StaleActionError(f"agent '{self._id}': {error}") from error

    def _situation(self, tick: int, mask: npt.NDArray[np.bool_] | None, reason: str) -> Situation:
        return Situation(
            step=tick,
            action_space=self._space,
            action_mask=mask,
            last_action=self._last_action,
            age_s=now_s() - self._last_time_s,
            age_steps=math.inf if self._last_action is None else tick - self._last_tick,
            reason=reason,
        )

    def _plain(self, action: npt.NDArray[Any]) -> int | npt.NDArray[Any]:
        """As ``Action`` has it: a number for one choice, else an array that the caller may change."""
        return action.copy() if action.ndim else int(action)


class Team(Generic[AgentT]):
    """The agents of a loop, and what is decided for them.

    Args:
        agents: one of each, or one alone, known by their own ids; or by ids that are given.
        schedule: of the loop.
        fallback: of all or by agent; None: no action but a fresh one.
        limits: of all or by agent; None: the bounds of the action space.
        max_observation_age_s: an observation that is older is not acted on; None: any is.

    Raises:
        UsageError: no agent, two of one id, unknown ids, or a limit that does not fit.
    """

    def __init__(
        self,
        agents: Agents[AgentT],
        schedule: Schedule,
        fallback: PerAgent[Fallback] | None,
        limits: PerAgent[ActionLimits] | None,
        max_observation_age_s: float | None,
    ) -> None:
        given = _named(agents)
        ids = list(given)
        fallbacks = _by_agent("fallback", fallback, ids, Fail())
        limited = _by_agent("limits", limits, ids, ActionLimits())
        self.record = LoopRecord(schedule, ids)
        self._max_age_s = math.inf
        if max_observation_age_s is not None:
            self._max_age_s = checked_seconds("max_observation_age_s", max_observation_age_s)
        self.seats: dict[str, Seat[AgentT]] = {
            agent_id: Seat(
                agent_id,
                agent,
                self.record.agents[agent_id],
                fallbacks[agent_id],
                ActionFilter(limited[agent_id], agent.spec, schedule.period_s),
            )
            for agent_id, agent in given.items()
        }

    def start(self) -> None:
        """A run begins."""
        self.record.start()
        for seat in self.seats.values():
            seat.start()

    def settle(self) -> None:
        """A run is over."""
        for seat in self.seats.values():
            seat.settle()

    def asked(self, tick: Tick, readings: Readings, read_s: float) -> tuple[dict[str, Request], dict[str, Answer]]:
        """Who is asked what, and why the others are not.

        Args:
            tick: the tick.
            readings: what was read for it.
            read_s: when.

        Raises:
            UsageError: something was read for an agent that is not in the loop.
        """
        unknown = readings.keys() - self.seats.keys()
        if unknown:
            raise UsageError(f"read: got observations of {sorted(unknown)}, expected some of {list(self.seats)}")
        requests: dict[str, Request] = {}
        missing: dict[str, Answer] = {}
        for agent_id, seat in self.seats.items():
            reading = readings.get(agent_id)
            outcome = self._request(seat, tick, reading, read_s)
            if isinstance(outcome, Missing):
                missing[agent_id] = outcome
                seat.owed += 1
            else:
                requests[agent_id] = outcome
                seat.owed = 0
        return requests, missing

    def _request(
        self,
        seat: Seat[AgentT],
        tick: Tick,
        reading: StampedObservation | npt.NDArray[Any] | None,
        read_s: float,
    ) -> Request | Missing:
        if reading is None:
            return Missing(NO_OBSERVATION, "nothing was read for it")
        if not isinstance(reading, StampedObservation):
            reading = StampedObservation(reading)
        age_s = 0.0 if reading.stamp_s is None else read_s - reading.stamp_s
        seat.record.observation_age.record(age_s)
        # A stamp from the future is of another clock, and tells no age.
        if not -1.0 < age_s <= self._max_age_s:
            allowed = f"at most {self._max_age_s:g} s" if age_s > 0.0 else "one of time.monotonic()"
            return Missing(OLD_OBSERVATION, f"its observation is {age_s:.3f} s old, expected {allowed}")
        if seat.busy:
            return Missing(BUSY, "the agent is still at an earlier tick")
        if read_s >= tick.deadline_s:
            return Missing(DEADLINE, "the deadline had passed before it was asked")
        return Request(reading.observation, reading.action_mask, seat.owed, tick.deadline_s)

    def commands(
        self, tick: Tick, readings: Readings, answers: Mapping[str, Answer], done_s: float
    ) -> tuple[dict[str, Command], bool]:
        """What is done for each agent, and whether the deadline passed for one.

        Raises:
            StaleActionError: an agent has no fresh action, and its fallback allows none instead.
        """
        commands = {}
        for agent_id, seat in self.seats.items():
            reading = readings.get(agent_id)
            mask = reading.action_mask if isinstance(reading, StampedObservation) else None
            commands[agent_id] = seat.command(tick, answers[agent_id], mask, done_s)
        return commands, any(command.reason in MISSES for command in commands.values())

    def last_commands(self, tick: int, fallback: Fallback, now: float) -> dict[str, Command]:
        """What is written when the loop ends, for those for whom the fallback has something."""
        commands = {}
        for agent_id, seat in self.seats.items():
            try:
                commands[agent_id] = seat.last_command(tick, fallback, now)
            except StaleActionError:
                continue
        return commands


def _named(agents: Agents[AgentT]) -> dict[str, AgentT]:
    """The agents by the ids that a loop knows them by.

    Raises:
        UsageError: there is none, or two have one id, or one is not an agent.
    """
    if isinstance(agents, Mapping):
        named = dict(agents)
        ids = list(named)
    else:
        given = cast("list[AgentT]", [agents] if hasattr(agents, "act") else list(cast("Iterable[AgentT]", agents)))
        named = {agent.spec.id: agent for agent in given}
        ids = [agent.spec.id for agent in given]
    if not ids or len(set(ids)) != len(ids):
        raise UsageError(
            f"agents: got {ids}, expected at least one, and each once; several of one id can be given by other names, "
            "as a mapping"
        )
    for agent in named.values():
        if not hasattr(agent, "skip"):
            raise UsageError(f"agents: got a {type(agent).__name__} without skip(), expected what Agent has")
    return named


def _by_agent(name: str, given: PerAgent[ValueT] | None, ids: list[str], default: ValueT) -> dict[str, ValueT]:
    """One value for each agent.

    Raises:
        UsageError: a value for an agent that is not there.
    """
    if not isinstance(given, Mapping):
        return dict.fromkeys(ids, default if given is None else given)
    unknown = given.keys() - set(ids)
    if unknown:
        raise UsageError(f"{name}: got a value for {sorted(unknown)}, expected some of {ids}")
    return {agent_id: given.get(agent_id, default) for agent_id in ids}
