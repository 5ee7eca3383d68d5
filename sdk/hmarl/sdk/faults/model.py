"""What goes wrong on purpose, and how it is written: ``delay=2,loss=0.1;agent_0:out=50``.

A text is a list of faults ``NAME=VALUE``, separated by commas, which hold for all agents. ``AGENT:`` before the
first one makes them that agent's own; ``;`` begins a further list. What an agent's own lists do not name it has from
those for all agents; of several values of one fault the last one counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from hmarl.sdk.errors import UsageError, unknown_name
from hmarl.sdk.fallback import Fallback, Hold, NoOp, Zero

MOST_STEPS_LATE = 100  # so much of the past is kept
NONE = "none"
FALLBACK = Hold(expires_after_steps=5, then=Zero())
# Commas inside brackets belong to an action of several numbers.
_COMMA = re.compile(r",(?![^\[]*\])")


@dataclass(frozen=True)
class Outage:
    """When something is out: in given steps, or by chance.

    Attributes:
        first, last: the steps in which it is out, both included; ``last`` is infinite for ever.
        probability: of beginning at a step, where it is by chance.
        steps: how long it then lasts.
    """

    first: int = 0
    last: float = -1
    probability: float = 0.0
    steps: int = 0

    @property
    def by_chance(self) -> bool:
        """Whether steps are drawn, not given."""
        return self.probability > 0

    def __str__(self) -> str:
        if self.by_chance:
            return f"{_write_number(self.probability)}:{self.steps}"
        return str(self.first) if math.isinf(self.last) else f"{self.first}..{self.last:g}"


@dataclass(frozen=True)
class AgentFaults:
    """What goes wrong with one agent. Steps are those of the episode, from 0.

    Attributes:
        delay: steps that an observation is late, drawn for each between the two.
        loss: probability that an observation is lost.
        noise: standard deviation of what is added to each number of an observation, in the observation's own units.
        freeze: when the agent's senses are stuck at what was seen last; what arrives then is lost, however late it is.
        action_delay: steps that an action is late, drawn for each between the two.
        action_loss: probability that an action is lost.
        out: when the agent neither hears nor is heard: what arrives then is lost, however late it is, and nothing is
            sent. What it sent before is under way and still arrives.
        restart: when the agent is out. At the step where it is back it has forgotten what it remembered.
        fallback: what is done at a step without a fresh action.
    """

    delay: tuple[int, int] = (0, 0)
    loss: float = 0.0
    noise: float = 0.0
    freeze: Outage = Outage()
    action_delay: tuple[int, int] = (0, 0)
    action_loss: float = 0.0
    out: Outage = Outage()
    restart: Outage = Outage()
    fallback: Fallback = FALLBACK

    @property
    def none(self) -> bool:
        """Whether nothing goes wrong."""
        return replace(self, fallback=FALLBACK) == _NOTHING

    @property
    def same_for_all(self) -> bool:
        """Whether agents with these faults still see at each step what they saw alike: nothing is drawn or out."""
        fixed = self.delay[0] == self.delay[1] and not self.loss and not self.noise
        return fixed and self.freeze == self.out == self.restart == Outage()

    def __str__(self) -> str:
        named = {each.name: getattr(self, each.name) for each in fields(self)}
        return ",".join(
            f"{name}={_KINDS[name].write(value)}" for name, value in named.items() if value != getattr(_NOTHING, name)
        )


_NOTHING = AgentFaults()


@dataclass(frozen=True)
class FaultModel:
    """What goes wrong with the agents of a team.

    Attributes:
        everywhere: with each agent that has no entry of its own.
        agents: by id, whole.
    """

    everywhere: AgentFaults = _NOTHING
    agents: Mapping[str, AgentFaults] = field(default_factory=dict)

    def of(self, agent_id: str) -> AgentFaults:
        """What goes wrong with one agent."""
        return self.agents.get(agent_id, self.everywhere)

    def any_of(self, agent_ids: Iterable[str]) -> bool:
        """Whether anything goes wrong with any of these agents."""
        return not all(self.of(each).none for each in agent_ids)

    def check_agents(self, agent_ids: Iterable[str]) -> None:
        """Refuse faults of agents that are not there.

        Raises:
            UsageError: names the agent and those that are there.
        """
        known = list(agent_ids)
        for each in self.agents:
            if each not in known:
                raise UsageError(f"faults: {unknown_name('agent', each, known)}")

    def __str__(self) -> str:
        """As ``parse_faults`` reads it, with each value that is not the default; ``none`` where nothing goes wrong."""
        own = {each: _over(self.everywhere, faults) for each, faults in self.agents.items()}
        lists = [str(self.everywhere), *(f"{each}:{text}" for each, text in own.items() if text)]
        return ";".join(text for text in lists if text) or NONE


def _over(everywhere: AgentFaults, own: AgentFaults) -> str:
    """What an agent's own faults say beyond those for all agents."""
    named = [each.name for each in fields(own) if getattr(own, each.name) != getattr(everywhere, each.name)]
    return ",".join(f"{name}={_KINDS[name].write(getattr(own, name))}" for name in named)


# --- reading ---------------------------------------------------------------------------------------------------------


def parse_faults(given: Any, more: Mapping[str, Any] | None = None) -> FaultModel:
    """Read faults.

    Args:
        given: a text as above, a list of texts, a mapping from ``NAME`` or ``AGENT:NAME`` to a value, or None. ``none``
            is nothing, and undoes what stood before it.
        more: a mapping of the same kind, which goes over it.

    Raises:
        UsageError: an unknown fault, or a value that it does not take.
    """
    settings: dict[tuple[str, str], Any] = {}
    for agent, name, value in _settings(given):
        if name == NONE:
            settings.clear()
        else:
            settings[agent, name] = _KINDS[name].read(_where(agent, name), value)
    for agent, name, value in _of_mapping(more or {}):
        settings[agent, name] = _KINDS[name].read(_where(agent, name), value)
    everywhere = AgentFaults(**{name: value for (agent, name), value in settings.items() if not agent})
    agents = dict.fromkeys(agent for agent, _ in settings if agent)
    own = {
        each: replace(everywhere, **{name: value for (agent, name), value in settings.items() if agent == each})
        for each in agents
    }
    return FaultModel(everywhere, own)


def _where(agent: str, name: str) -> str:
    return f"faults: {agent}:{name}" if agent else f"faults: {name}"


_Setting = tuple[str, str, Any]


def _settings(given: Any) -> Iterable[_Setting]:
    if given is None:
        return
    if isinstance(given, str):
        for part in filter(None, map(str.strip, given.split(";"))):
            yield from _of_list(part)
    elif isinstance(given, list | tuple):
        for each in given:
            yield from _settings(each)
    elif isinstance(given, Mapping):
        yield from _of_mapping(given)
    else:
        raise UsageError(f"faults: got {given!r}, expected a text such as 'delay=2,loss=0.1', or '{NONE}'")


def _of_mapping(given: Mapping[str, Any]) -> Iterable[_Setting]:
    for key, value in given.items():
        agent, _, name = str(key).rpartition(":")
        yield agent, _known(name), value


def _of_list(text: str) -> Iterable[_Setting]:
    """One list: ``[AGENT:]NAME=VALUE,NAME=VALUE``."""
    if text == NONE:
        yield "", NONE, None
        return
    agent = ""
    for number, item in enumerate(_COMMA.split(text)):
        key, equals, value = item.strip().partition("=")
        if not equals:
            raise UsageError(f"faults: got '{item.strip()}' in '{text}', expected NAME=VALUE, e.g. delay=2")
        prefix, _, name = key.strip().rpartition(":")
        if number == 0:
            agent = prefix
        elif prefix:
            raise UsageError(
                f"faults: got '{prefix}:' inside of '{text}', expected it before the first fault of a list: "
                f"write ';{prefix}:{name}={value}', or a --faults of its own"
            )
        yield agent, _known(name.strip()), value.strip()


def _known(name: str) -> str:
    if name not in _KINDS:
        raise UsageError(f"faults: {unknown_name('fault', name, _KINDS)}")
    return name


# --- kinds of values -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """How the values of a fault are read and written.

    Attributes:
        expected: what they are, in words.
        of_text: reads one; a ValueError refuses it.
        write: the text that ``of_text`` reads.
    """

    expected: str
    of_text: Callable[[str], Any]
    write: Callable[[Any], str]

    def read(self, where: str, value: Any) -> Any:
        """One value, also as a number or list of JSON.

        Raises:
            UsageError: not such a value.
        """
        try:
            if isinstance(value, bool) or value is None:
                raise ValueError
            return self.of_text(str(value).replace(" ", ""))
        except (ValueError, OverflowError, UsageError) as error:
            why = f" ({error})" if isinstance(error, UsageError) else ""
            raise UsageError(f"{where}: got {value!r}, expected {self.expected}{why}") from None


def _whole(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text):
        raise ValueError
    return int(text)


def _number(text: str, least: float, most: float) -> float:
    value = float(text)
    if not least <= value <= most:
        raise ValueError
    return value


def _probability(text: str) -> float:
    return _number(text, 0.0, 1.0)


def _deviation(text: str) -> float:
    return _number(text, 0.0, 1e30)


def _steps_late(text: str) -> tuple[int, int]:
    low, dots, high = text.partition("..")
    least, most = _whole(low), _whole(high if dots else low)
    if not least <= most <= MOST_STEPS_LATE:
        raise ValueError
    return least, most


def _outage(text: str) -> Outage:
    if ":" in text:
        probability, _, steps = text.partition(":")
        drawn = Outage(probability=_probability(probability), steps=_whole(steps))
        return drawn if drawn.by_chance and drawn.steps else Outage()
    first, dots, last = text.partition("..")
    outage = Outage(_whole(first), _whole(last) if dots else math.inf)
    if outage.first > outage.last:
        raise ValueError
    return outage


def _restart(text: str) -> Outage:
    """As an outage, but a single step is the last one before the agent is back."""
    outage = _outage(text)
    return outage if outage.by_chance or not math.isinf(outage.last) else Outage(outage.first, outage.first)


def _numbers(text: str) -> tuple[float, ...]:
    """Whole ones as integers: they may be choices."""
    numbers = [float(part) for part in text.split(",")]
    return tuple(int(number) if number.is_integer() else number for number in numbers)


def _fallback(text: str) -> Fallback:
    kind, _, rest = text.partition(":")
    if kind == "zero" and not rest:
        return Zero()
    if kind == "noop":
        return NoOp(_numbers(rest[1:-1]) if rest.startswith("[") and rest.endswith("]") else int(rest))
    if kind == "hold" and rest:
        steps, _, then = rest.partition(":")
        return Hold(expires_after_steps=_whole(steps), then=_fallback(then) if then else Zero())
    raise ValueError


def _write_fallback(fallback: Fallback) -> str:
    if isinstance(fallback, Zero):
        return "zero"
    if isinstance(fallback, NoOp):
        return f"noop:{fallback.action}" if isinstance(fallback.action, int) else f"noop:{list(fallback.action)}"
    if isinstance(fallback, Hold) and math.isinf(fallback.expires_after_s):
        then = "" if fallback.then == Zero() else f":{_write_fallback(fallback.then)}"
        return f"hold:{fallback.expires_after_steps:g}{then}"
    return type(fallback).__name__


def _write_number(value: float) -> str:
    return repr(value).removesuffix(".0")


def _write_range(steps: tuple[int, int]) -> str:
    return str(steps[0]) if steps[0] == steps[1] else f"{steps[0]}..{steps[1]}"


_LATE = _Kind(f"steps from 0 to {MOST_STEPS_LATE}, e.g. 2, or 1..3", _steps_late, _write_range)
_CHANCE = _Kind("a probability from 0 to 1", _probability, _write_number)
_OUT = _Kind("steps, e.g. 50, 50..80, or PROBABILITY:STEPS, e.g. 0.01:20", _outage, str)
_KINDS: dict[str, _Kind] = {
    "delay": _LATE,
    "loss": _CHANCE,
    "noise": _Kind("a standard deviation of at least 0", _deviation, _write_number),
    "freeze": _OUT,
    "action_delay": _LATE,
    "action_loss": _CHANCE,
    "out": _OUT,
    "restart": _Kind("a step, steps, e.g. 50..80, or PROBABILITY:STEPS, e.g. 0.01:20", _restart, str),
    "fallback": _Kind("zero, noop:ACTION, hold:STEPS or hold:STEPS:noop:ACTION", _fallback, _write_fallback),
}
