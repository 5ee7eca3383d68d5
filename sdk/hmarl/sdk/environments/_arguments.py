"""Checks the arguments that environments are made with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hmarl.sdk.errors import UsageError, unknown_name


@dataclass(frozen=True)
class Rule:
    """What the values of an argument must be.

    Attributes:
        expected: that in words, for messages.
        fits: whether a value is such.
    """

    expected: str
    fits: Callable[[Any], bool]


def resolve(
    environment: str,
    arguments: Mapping[str, Any],
    defaults: Mapping[str, Any],
    rules: Mapping[str, Rule],
    others: Sequence[str] = (),
) -> dict[str, Any]:
    """The defaults with ``arguments`` put in, checked; None is allowed where it is the default.

    Args:
        environment: ``FAMILY/TASK``, for messages.
        arguments: as given.
        defaults: of all arguments that the task takes.
        rules: for at least these.
        others: arguments that are checked elsewhere, to be named among those known.

    Raises:
        UsageError: an unknown argument, or a value that breaks its rule.
    """
    for name, value in arguments.items():
        if name not in defaults:
            raise UsageError(unknown_name(f"argument of {environment}", name, [*defaults, *others]))
        if (value is None and defaults[name] is None) or rules[name].fits(value):
            continue
        takes = ", ".join(f"{key}={default}" for key, default in defaults.items())
        raise UsageError(f"{name}: got {value!r}, expected {rules[name].expected} ({environment} takes {takes})")
    return {**defaults, **arguments}


def is_integer(value: Any) -> bool:
    """An int, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """A finite int or float, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def at_least(least: int) -> Rule:
    """Integers from ``least`` on."""
    return Rule(f"an integer of at least {least}", lambda value: is_integer(value) and value >= least)


FLAG = Rule("true or false", lambda value: isinstance(value, bool))
COUNT = at_least(1)
NUMBER = Rule("a number", is_number)
POSITIVE = Rule("a number above 0", lambda value: is_number(value) and value > 0)
PROPORTION = Rule("a number in [0, 1]", lambda value: is_number(value) and 0 <= value <= 1)
