"""The control loop for asyncio, with the schedule, decisions and record of the blocking one."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from hmarl.sdk.clients.agent import Action, Agent
from hmarl.sdk.control.asking import allow, ask
from hmarl.sdk.control.limits import ActionLimits
from hmarl.sdk.control.loop import SETTLE_S, SLICE_S, Ending, checked_spin
from hmarl.sdk.control.schedule import OverrunPolicy, Schedule, Tick
from hmarl.sdk.control.statistics import AGENT, DEADLINE, LoopSummary
from hmarl.sdk.control.team import Agents, Answer, Command, Missing, PerAgent, Readings, Request, Seat, Seated, Team
from hmarl.sdk.errors import MisuseError, StaleActionError
from hmarl.sdk.fallback import Fallback

AsyncRead: TypeAlias = Callable[[], "Readings | Awaitable[Readings]"]
AsyncWrite: TypeAlias = Callable[[Mapping[str, Command]], object]

_log = logging.getLogger("hmarl.sdk.control")


class AsyncAgent(Seated, Protocol):
    """An agent whose ``act`` is awaited."""

    async def act(self, observation: npt.NDArray[Any], action_mask: npt.NDArray[np.bool_] | None = None) -> Action:
        """The action for the next step."""
        ...


AnyAgent: TypeAlias = AsyncAgent | Agent


class AsyncControlLoop:
    """``ControlLoop`` for asyncio; for its arguments see there.

    ``agents`` are ``AsyncAgentClient``, connected, or blocking ones, which are asked in threads. ``read`` and ``write``
    may be coroutine functions. Timers of asyncio are rounded up to the next millisecond, so ticks begin so much late;
    ``spin_s=0.001`` makes up for it.
    """

    def __init__(
        self,
        rate_hz: float,
        agents: Agents[AnyAgent],
        read: AsyncRead,
        write: AsyncWrite,
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
        self._team: Team[AnyAgent] = Team(agents, self._schedule, fallback, limits, max_observation_age_s)
        self._read, self._write = read, write
        self._safe_action = safe_action
        self._spin_s = checked_spin(spin_s)
        self._late: dict[str, asyncio.Task[Answer]] = {}
        self._running = self._stopping = False

    @property
    def summary(self) -> LoopSummary:
        """What has been recorded in all runs so far; may be asked for while the loop runs."""
        return self._team.record.summary()

    def stop(self) -> None:
        """End the run after the tick that it is at, or the next run before its first; from any task or thread."""
        self._stopping = True

    async def run(self, *, ticks: int | None = None, duration_s: float | None = None) -> LoopSummary:
        """Go on until told to stop or cancelled, or for so many ticks or seconds; see ``ControlLoop.run``."""
        if self._running:
            raise MisuseError("the control loop runs already: make another one")
        ending = Ending(ticks, duration_s)
        self._running = True
        try:
            await self._go(ending)
        finally:
            await self._end()
        return self.summary

    async def _go(self, ending: Ending) -> None:
        schedule, record = self._schedule, self._team.record
        self._team.start()
        now = time.monotonic()
        schedule.start(now)
        ending.start(now)
        while not ending.over(schedule.due_s) and await self._wait(schedule.due_s):
            tick = schedule.begin(time.monotonic())
            if tick is None:
                continue
            record.began(tick)
            missed = await self._do(tick)
            now = time.monotonic()
            record.ended(tick, now, missed)
            ending.count()
            schedule.end(now)

    async def _wait(self, due_s: float) -> bool:
        """Wait until then; False when the loop is to stop."""
        while not self._stopping:
            left_s = due_s - time.monotonic()
            if left_s <= 0.0:
                return True
            # Spinning lets other tasks run, as sleeping does.
            await asyncio.sleep(min(left_s - self._spin_s, SLICE_S) if left_s > self._spin_s else 0.0)
        return False

    async def _do(self, tick: Tick) -> bool:
        """Read, ask, write; returns whether the deadline passed for an agent."""
        self._look()
        read = self._read()
        readings = await read if inspect.isawaitable(read) else read
        requests, answers = self._team.asked(tick, readings, time.monotonic())
        answers |= await self._asked(requests, tick.deadline_s)
        commands, missed = self._team.commands(tick, readings, answers, time.monotonic())
        await self._written(commands)
        return missed

    async def _written(self, commands: Mapping[str, Command]) -> None:
        written = self._write(commands)
        if inspect.isawaitable(written):
            await written

    async def _asked(self, requests: Mapping[str, Request], deadline_s: float) -> dict[str, Answer]:
        """Ask all at once; those who have not answered by the deadline miss it, and go on aside."""
        if not requests:
            return {}
        tasks = {name: asyncio.create_task(_ask(self._team.seats[name], each)) for name, each in requests.items()}
        self._late |= tasks
        for name in tasks:
            self._team.seats[name].busy = True
        await asyncio.wait(tasks.values(), timeout=max(deadline_s - time.monotonic(), 0.0))
        late = Missing(DEADLINE, "no answer by the deadline")
        answers = {
            name: task.result() if task.done() and not task.exception() else late for name, task in tasks.items()
        }
        self._look()
        return answers

    def _look(self) -> None:
        """Take the answers that have come: those agents may be asked again.

        Raises:
            HmarlError: what an agent raised.
        """
        done = {name: task for name, task in self._late.items() if task.done()}
        for name in done:
            del self._late[name]
            self._team.seats[name].busy = False
        for task in done.values():
            task.result()

    async def _end(self) -> None:
        """Write what is safe, and leave no agent in the middle of a step."""
        try:
            if self._safe_action is not None:
                number = self._schedule.number
                await self._written(self._team.last_commands(number, self._safe_action, time.monotonic()))
        finally:
            if self._late:
                await asyncio.wait(self._late.values(), timeout=SETTLE_S)
            for name in [name for name, task in self._late.items() if task.done()]:
                _succeeded(self._late.pop(name))  # looked at, or asyncio would report its failure
                self._team.seats[name].busy = False
            if self._late:
                _log.warning("%s: still at a step %g s after the loop's end", ", ".join(self._late), SETTLE_S)
            self._team.settle()
            self._running = self._stopping = False


def _succeeded(task: asyncio.Task[Answer]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


async def _ask(seat: Seat[AnyAgent], request: Request) -> Answer:
    """See ``asking.ask``."""
    agent = seat.agent
    if not inspect.iscoroutinefunction(agent.act):
        return await asyncio.to_thread(ask, agent, request)  # type: ignore[arg-type]
    if request.skipped:
        agent.skip(request.skipped)
    allow(agent, request.deadline_s)
    try:
        action: Action = await agent.act(request.observation, request.action_mask)
    except StaleActionError as error:
        return Missing(AGENT, str(error))
    return action
