"""A control loop: read, ask the agents, write, at a fixed rate.

    with AgentClient("unix:/run/hmarl/left.sock") as left, AgentClient("unix:/run/hmarl/right.sock") as right:
        left.reset(1), right.reset(1)
        with ControlLoop(200.0, [left, right], robot.read, robot.write,
                         fallback=Hold(expires_after_s=0.1, then=Zero()), safe_action=Zero()) as loop:
            print(loop.run(duration_s=60.0))

``read`` returns what each agent observes, by agent id; ``write`` is given a ``Command`` for each. The loop for asyncio
is in ``async_loop``; what is decided at a tick is in ``team``, and is the same for both.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self, TypeAlias

from hmarl.sdk.clients.agent import Agent
from hmarl.sdk.clock import checked_seconds
from hmarl.sdk.control.asking import Workers, ask, keeps_deadlines
from hmarl.sdk.control.limits import ActionLimits
from hmarl.sdk.control.schedule import OverrunPolicy, Schedule, Tick
from hmarl.sdk.control.statistics import LoopSummary
from hmarl.sdk.control.team import Agents, Answer, Command, PerAgent, Readings, Request, Team
from hmarl.sdk.errors import MisuseError, UsageError
from hmarl.sdk.fallback import Fallback

Read: TypeAlias = Callable[[], Readings]
Write: TypeAlias = Callable[[Mapping[str, Command]], object]

SLICE_S = 0.05  # after which a loop that waits looks whether it is to stop
SETTLE_S = 1.0  # that agents are given to finish their last step

_log = logging.getLogger("hmarl.sdk.control")


class Ending:
    """When a run is over: after so many ticks, so many seconds, or when it is told to stop.

    Args:
        ticks: None for any number.
        duration_s: None for any time.

    Raises:
        UsageError: an argument is out of range.
    """

    def __init__(self, ticks: int | None, duration_s: float | None) -> None:
        if ticks is not None and (not isinstance(ticks, int) or isinstance(ticks, bool) or ticks < 1):
            raise UsageError(f"ticks: got {ticks!r}, expected a positive number of ticks, or None")
        self._ticks = ticks
        self._duration_s = None if duration_s is None else checked_seconds("duration_s", duration_s)
        self._done = 0
        self._end_s = float("inf")

    def start(self, now_s: float) -> None:
        """The run begins."""
        if self._duration_s is not None:
            self._end_s = now_s + self._duration_s

    def count(self) -> None:
        """A tick is done."""
        self._done += 1

    def over(self, due_s: float) -> bool:
        """Whether the tick that is due then is not to be done any more."""
        return (self._ticks is not None and self._done >= self._ticks) or due_s >= self._end_s


class ControlLoop:
    """Agents asked at a fixed rate, all at once, with one deadline; one that is slow costs its own action only.

    Ticks are due at multiples of the period (CLOCK_MONOTONIC), so that the rate does not drift. Clients are given what
    is left until the deadline as their ``timeout_s``. Agents are to be ``reset`` before a run, and are not closed.

    Whatever ends a run, ``safe_action`` is written, and no agent is left in the middle of a step.

    Args:
        rate_hz: ticks per second.
        agents: one of each agent: ``AgentClient``, ``LocalAgent``, ``FaultyAgent``, or one alone; or a mapping from
            names that take the place of their ids, when several robots have agents of one id.
        read: returns what agents observe, by id: a ``StampedObservation``, an array that counts as measured at that
            moment, or None (or nothing) for an agent of which nothing is known.
        write: is given a ``Command`` for each agent, by id.
        deadline_s: seconds after a tick is due by which actions have to be there; None: four fifths of the period.
        fallback: decides for an agent without a fresh action, or for each by id; by default that ends the loop. What a
            client's own fallback has decided is taken, and counted as a fallback.
        max_observation_age_s: an observation that is older is not acted on; None: any is.
        overrun: what follows a tick that takes longer than its period: ``skip`` those that are overdue, ``catch_up``
            by doing them at once, or ``stop``.
        limits: bounds and rates that actions are held to, of all agents or of each by id. Whatever is given, actions
            stay within the agents' action spaces.
        safe_action: decides what is written when a run ends, for whatever reason; None writes nothing more. It is
            brought within the bounds, but not slowed down.
        spin_s: the last seconds before a tick that are waited for without sleeping: begins more exactly, for the price
            of a processor that is busy so long at each tick.

    Raises:
        UsageError: an argument is out of range, or does not fit the agents.
    """

    def __init__(
        self,
        rate_hz: float,
        agents: Agents[Agent],
        read: Read,
        write: Write,
        *,
        deadline_s: float | None = None,
        fallback: PerAgent[Fallback] | None = None,
        max_observation_age_s: float | None = None,
        overrun: OverrunPolicy = "skip",
        limits: PerAgent[ActionLimits] | None = None,
        safe_action: Fallback | None = None,
        spin_s: float = 0.0,
    ) -> None:
        self._schedule = Schedule(rate_hz, deadline_s, overrun)
        self._team = Team(agents, self._schedule, fallback, limits, max_observation_age_s)
        for agent_id, seat in self._team.seats.items():
            if inspect.iscoroutinefunction(seat.agent.act):
                raise UsageError(f"agent '{agent_id}': got one for asyncio, expected a blocking one: AsyncControlLoop")
        self._read, self._write = read, write
        self._safe_action = safe_action
        self._spin_s = checked_spin(spin_s)
        alone = list(self._team.seats.values())
        # One alone that keeps deadlines by itself needs no thread, which is quicker.
        self._alone = alone[0].agent if len(alone) == 1 and keeps_deadlines(alone[0].agent) else None
        self._workers: Workers | None = None
        self._running = self._stopping = self._closed = False

    @property
    def summary(self) -> LoopSummary:
        """What has been recorded in all runs so far; may be asked for while the loop runs, from any thread."""
        return self._team.record.summary()

    def stop(self) -> None:
        """End the run after the tick that it is at, or the next run before its first; from any thread or a signal."""
        self._stopping = True

    def run(self, *, ticks: int | None = None, duration_s: float | None = None) -> LoopSummary:
        """Go on until told to stop, or for so many ticks or seconds.

        Returns:
            The summary of all runs so far.

        Raises:
            StaleActionError: an agent has no fresh action, and its fallback allows none instead.
            OverrunError: a tick took longer than its period, and ``overrun`` is ``stop``.
            ObservationError: what was read is not what an agent observes.
            AgentError: an agent refuses to go on.
            MisuseError: the loop is closed, or runs already.
        """
        if self._closed or self._running:
            raise MisuseError(f"the control loop {'is closed' if self._closed else 'runs already'}: make another one")
        ending = Ending(ticks, duration_s)
        self._running = True
        if self._alone is None and self._workers is None:
            self._workers = Workers(self._team.seats)
        try:
            self._go(ending)
        finally:
            self._end()
        return self.summary

    def _go(self, ending: Ending) -> None:
        schedule, record = self._schedule, self._team.record
        self._team.start()
        now = time.monotonic()
        schedule.start(now)
        ending.start(now)
        while not ending.over(schedule.due_s) and self._wait(schedule.due_s):
            tick = schedule.begin(time.monotonic())
            if tick is None:
                continue
            record.began(tick)
            missed = self._do(tick)
            now = time.monotonic()
            record.ended(tick, now, missed)
            ending.count()
            schedule.end(now)

    def _wait(self, due_s: float) -> bool:
        """Wait until then; False when the loop is to stop."""
        while not self._stopping:
            left_s = due_s - time.monotonic()
            if left_s <= 0.0:
                return True
            if left_s > self._spin_s:
                time.sleep(min(left_s - self._spin_s, SLICE_S))
        return False

    def _do(self, tick: Tick) -> bool:
        """Read, ask, write; returns whether the deadline passed for an agent."""
        if self._workers is not None:
            self._workers.look()
        readings = self._read()
        requests, answers = self._team.asked(tick, readings, time.monotonic())
        answers |= self._asked(requests, tick.deadline_s)
        commands, missed = self._team.commands(tick, readings, answers, time.monotonic())
        self._write(commands)
        return missed

    def _asked(self, requests: Mapping[str, Request], deadline_s: float) -> dict[str, Answer]:
        if self._workers is not None:
            return self._workers.ask(requests, deadline_s)
        agent = self._alone
        assert agent is not None
        return {agent_id: ask(agent, request) for agent_id, request in requests.items()}

    def _end(self) -> None:
        """Write what is safe, and leave no agent in the middle of a step."""
        try:
            if self._safe_action is not None:
                self._write(self._team.last_commands(self._schedule.number, self._safe_action, time.monotonic()))
        finally:
            left = [] if self._workers is None else self._workers.settle(SETTLE_S)
            if left:
                _log.warning("%s: still at a step %g s after the loop's end", ", ".join(left), SETTLE_S)
            self._team.settle()
            self._running = self._stopping = False

    def close(self) -> None:
        """End the loop's threads; a second call does nothing. The agents stay open.

        Raises:
            MisuseError: the loop runs.
        """
        if self._running:
            raise MisuseError("the control loop runs: stop() it first")
        self._closed = True
        if self._workers is not None:
            self._workers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def checked_spin(spin_s: float) -> float:
    """How long to wait without sleeping.

    Raises:
        UsageError: no number of seconds.
    """
    return 0.0 if spin_s == 0.0 else checked_seconds("spin_s", spin_s)
