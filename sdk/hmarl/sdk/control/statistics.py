"""What a control loop records of its timing and its agents, and how it is told."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hmarl.sdk.control.histogram import Distribution, Histogram
from hmarl.sdk.control.schedule import Schedule, Tick

# What kept a fresh action.
DEADLINE = "deadline"  # it was not there in time
BUSY = "busy"  # the agent was still at an earlier tick
AGENT = "agent"  # the agent itself had none: its own fallback decided, or it raised
NO_OBSERVATION = "no_observation"  # nothing was read for the agent
OLD_OBSERVATION = "old_observation"  # what was read is older than allowed
UNUSABLE = "unusable"  # no action of the agent's, or an illegal one
MISSES = (DEADLINE, BUSY, AGENT)

_WIDTH = 80


@dataclass(frozen=True, slots=True)
class AgentSummary:
    """One agent in a control loop.

    Attributes:
        ticks: at which something was done for it.
        fresh: ticks with a fresh action of its policy.
        fallbacks: ticks without, by what kept one: ``deadline``, ``busy`` (still at an earlier tick), ``agent`` (its
            own fallback decided, or it had no answer), ``no_observation``, ``old_observation``, ``unusable`` (no action
            of its space, or an illegal one).
        misses: ticks whose observation was there, but no fresh action by the deadline.
        bounds_limited: actions that the safety filter brought within the bounds.
        rate_limited: actions whose change it slowed down.
        observation_age_s: of what was read for it, when its tick began; too old ones included.
        act_s: from asking it to its answer, by its own count, where an answer came in time.
    """

    ticks: int
    fresh: int
    fallbacks: Mapping[str, int]
    misses: int
    bounds_limited: int
    rate_limited: int
    observation_age_s: Distribution
    act_s: Distribution


@dataclass(frozen=True, slots=True)
class LoopSummary:
    """A control loop's record; ``str`` makes a table of it, ``as_dict`` what JSON can hold.

    Attributes:
        rate_hz: ticks per second that were asked for.
        deadline_s: seconds that actions are given.
        ticks: that were done.
        deadline_misses: ticks at which the deadline passed for at least one agent.
        overruns: ticks that were not done when the next one was due, or could not begin within their period.
        skipped: ticks that were left out for it.
        period_s: from a tick's beginning to that of the next.
        jitter_s: how far the period is from what it should be, whichever way.
        lateness_s: how late ticks begin.
        execution_s: from a tick's beginning until its actions are written.
        agents: by id.
    """

    rate_hz: float
    deadline_s: float
    ticks: int
    deadline_misses: int
    overruns: int
    skipped: int
    period_s: Distribution
    jitter_s: Distribution
    lateness_s: Distribution
    execution_s: Distribution
    agents: Mapping[str, AgentSummary]

    def as_dict(self) -> dict[str, Any]:
        """All of it in dictionaries and numbers, for JSON; times in seconds."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(_table(self))


class AgentRecord:
    """Counts what happens to one agent."""

    def __init__(self) -> None:
        self.fresh = 0
        self.fallbacks: Counter[str] = Counter()
        self.limited: Counter[str] = Counter()
        self.observation_age = Histogram()
        self.act = Histogram()

    def summary(self) -> AgentSummary:
        """So far."""
        fallbacks = dict(sorted(self.fallbacks.items()))
        return AgentSummary(
            ticks=self.fresh + sum(fallbacks.values()),
            fresh=self.fresh,
            fallbacks=fallbacks,
            misses=sum(fallbacks.get(reason, 0) for reason in MISSES),
            bounds_limited=self.limited["bounds"],
            rate_limited=self.limited["rate"],
            observation_age_s=self.observation_age.distribution(),
            act_s=self.act.distribution(),
        )


class LoopRecord:
    """Counts what happens to a loop, over all of its runs."""

    def __init__(self, schedule: Schedule, agent_ids: Iterable[str]) -> None:
        self.agents = {agent_id: AgentRecord() for agent_id in agent_ids}
        self._schedule = schedule
        self._ticks = 0
        self._deadline_misses = 0
        self._period, self._jitter, self._lateness, self._execution = (Histogram() for _ in range(4))
        self._before: Tick | None = None

    def start(self) -> None:
        """A run begins: no period leads from the one before to it."""
        self._before = None

    def began(self, tick: Tick) -> None:
        """A tick has begun."""
        self._lateness.record(tick.lateness_s)
        if self._before is not None:
            period_s = tick.began_s - self._before.began_s
            self._period.record(period_s)
            self._jitter.record(abs(period_s - self._schedule.period_s))
        self._before = tick

    def ended(self, tick: Tick, now_s: float, missed: bool) -> None:
        """Its actions are written; ``missed`` tells whether the deadline passed for an agent."""
        self._ticks += 1
        self._deadline_misses += missed
        self._execution.record(now_s - tick.began_s)

    def summary(self) -> LoopSummary:
        """So far; may be asked for while the loop runs."""
        schedule = self._schedule
        return LoopSummary(
            rate_hz=schedule.rate_hz,
            deadline_s=schedule.allowed_s,
            ticks=self._ticks,
            deadline_misses=self._deadline_misses,
            overruns=schedule.overruns,
            skipped=schedule.skipped,
            period_s=self._period.distribution(),
            jitter_s=self._jitter.distribution(),
            lateness_s=self._lateness.distribution(),
            execution_s=self._execution.distribution(),
            agents={agent_id: record.summary() for agent_id, record in self.agents.items()},
        )


def _table(summary: LoopSummary) -> list[str]:
    """Lines of at most 80 characters."""
    lines = [
        f"{summary.ticks} ticks at {summary.rate_hz:g} Hz, deadline {1000.0 * summary.deadline_s:.3g} ms: "
        f"{summary.deadline_misses} missed",
        f"{summary.overruns} overruns, {summary.skipped} ticks skipped",
        "",
        _row("milliseconds", "mean", "p50", "p99", "p99.9", "max"),
        *(_times(name, getattr(summary, f"{name}_s")) for name in ("period", "jitter", "lateness", "execution")),
    ]
    for agent_id, agent in summary.agents.items():
        name = agent_id if len(agent_id) <= 24 else f"{agent_id[:23]}…"
        reasons = ", ".join(f"{count} {reason}" for reason, count in agent.fallbacks.items())
        head = f"{name}: {agent.fresh} of {agent.ticks} fresh"
        lines += ["", *textwrap.wrap(f"{head}; fallbacks: {reasons}" if reasons else head, _WIDTH)]
        if agent.bounds_limited or agent.rate_limited:
            lines.append(f"limited: {agent.bounds_limited} by bounds, {agent.rate_limited} by rate")
        lines += [_times("observation age", agent.observation_age_s), _times("act", agent.act_s)]
    return lines


def _times(name: str, times: Distribution) -> str:
    shown = (times.mean_s, times.p50_s, times.p99_s, times.p999_s, times.max_s)
    return _row(name, *(f"{1000.0 * each:.3f}" for each in shown))


def _row(name: str, *cells: str) -> str:
    return f"{name:<18}" + "".join(f"{cell:>12}" for cell in cells)
