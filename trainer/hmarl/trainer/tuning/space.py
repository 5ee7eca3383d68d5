"""What is searched: settings, each with its range or its choices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hmarl.runtime.plain_json import read_json
from hmarl.sdk.errors import UsageError

_EXPECTED = "expected LOW..HIGH, log:LOW..HIGH or A|B|C"


class Suggests(Protocol):
    """What a trial draws from, as Optuna's ``Trial``."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number of a range."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """An integer of a range, both ends included."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of several."""


@dataclass(frozen=True)
class Range:
    """Numbers between two, both included; integers where both are."""

    low: float
    high: float
    log: bool = False

    @property
    def integers(self) -> bool:
        """Whether only integers are drawn."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def suggest(self, trial: Suggests, name: str) -> Any:
        """A trial's value."""
        if self.integers:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def holds(self, value: Any) -> bool:
        """Whether a value could be drawn."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.low <= value <= self.high and (not self.integers or isinstance(value, int))

    def ends(self) -> tuple[Any, ...]:
        """Values that the setting must be able to take."""
        return (self.low, self.high)


@dataclass(frozen=True)
class Choice:
    """One of several values; lists stand for themselves."""

    values: tuple[Any, ...]

    def suggest(self, trial: Suggests, name: str) -> Any:
        """A trial's value. Optuna is given the place among them: it keeps no lists."""
        return self.values[trial.suggest_categorical(name, list(range(len(self.values))))]

    def holds(self, value: Any) -> bool:
        """Whether a value could be drawn."""
        return value in self.values

    def ends(self) -> tuple[Any, ...]:
        """Values that the setting must be able to take."""
        return self.values


Dimension = Range | Choice
Space = Mapping[str, Dimension]
"""By setting, e.g. ``algorithm.gamma``."""


def parse_dimension(where: str, text: Any) -> Dimension:
    """A range or choices, as they are typed; a list is choices.

    Args:
        where: how the user named it.
        text: e.g. ``log:1e-4..1e-2``, ``1..10``, ``relu|tanh``.

    Raises:
        UsageError: it is neither.
    """
    if isinstance(text, list):
        return _choice(where, tuple(text))
    if not isinstance(text, str):
        raise UsageError(f"{where}: got {text!r}, {_EXPECTED}, or a list in a file")
    kind, colon, rest = text.rpartition(":")
    if ".." not in rest:
        return _choice(where, tuple(_value(part) for part in text.split("|")))
    low, high = (_value(part) for part in rest.split("..", 1))
    if kind not in ("", "log") or (colon and not kind):
        raise UsageError(f"{where}: got '{text}', {_EXPECTED}")
    return _range(where, text, low, high, kind == "log")


def _choice(where: str, values: tuple[Any, ...]) -> Choice:
    if len(values) < 2:
        raise UsageError(f"{where}: got {'|'.join(map(str, values))!r} alone, {_EXPECTED}: there is nothing to search")
    return Choice(values)


def _range(where: str, text: str, low: Any, high: Any, log: bool) -> Range:
    for end in (low, high):
        if isinstance(end, bool) or not isinstance(end, int | float) or not math.isfinite(end):
            raise UsageError(f"{where}: got '{text}', expected numbers at both ends")
    if low >= high or (log and low <= 0):
        least = "0 < LOW < HIGH" if log else "LOW < HIGH"
        raise UsageError(f"{where}: got '{text}', expected {least}")
    return Range(low, high, log)


def _value(text: str) -> Any:
    """JSON where possible, else the text."""
    try:
        return read_json(text)
    except ValueError:
        return text


def suggested(space: Space, trial: Suggests) -> dict[str, Any]:
    """A trial's settings."""
    return {name: dimension.suggest(trial, name) for name, dimension in space.items()}


def as_parameters(space: Space, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Settings as Optuna keeps them; None where one lies outside of the space, or is not known."""
    found: dict[str, Any] = {}
    for name, dimension in space.items():
        value = settings.get(name)
        if not dimension.holds(value):
            return None
        found[name] = dimension.values.index(value) if isinstance(dimension, Choice) else value
    return found
