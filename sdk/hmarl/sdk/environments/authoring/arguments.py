"""Checks the arguments that environments are made with: a typing error is told with all that the task takes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hmarl.sdk.errors import UsageError, did_you_mean, unknown_name


@dataclass(frozen=True)
class Rule:
    """What the values of an argument must be.

    Attributes:
        expected: that in words, for messages.
        fits: whether a value is such.
    """

    expected: str
    fits: Callable[[Any], bool]


def resolve_arguments(
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


# --- functions of other people's -------------------------------------------------------------------------------------


def parameters_of(function: Callable[..., Any]) -> dict[str, str]:
    """Names of the parameters that a function takes, with their defaults as ``=value`` ('' where there is none).

    PettingZoo wraps its classes in functions that only take ``**kwargs``; what these close over is followed.
    """
    for callable_ in _with_wrapped(function):
        parameters = _signature(callable_)
        named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
        if named:
            return {each.name: "" if each.default is each.empty else f"={each.default!r}" for each in named}
    return {}


def what_it_takes(function: Callable[..., Any], ours: Sequence[str] = ()) -> str:
    """What a function takes, in words.

    Args:
        function: any.
        ours: parameters that are not the user's to give.
    """
    named = [f"{name}{default}" for name, default in parameters_of(function).items() if name not in ours]
    rest = [f"any other (**{each.name})" for each in _signature(function) if each.kind is each.VAR_KEYWORD]
    # Where what lies behind the ** is known, it has been named.
    return f"it takes: {', '.join(named or rest) or 'no arguments'}"


def check_keys(
    name: str,
    function: Callable[..., Any],
    given: Mapping[str, Any],
    ours: Sequence[str] = (),
    others: Sequence[str] = (),
) -> None:
    """Refuse arguments that a function does not take; one that takes any, by ``**``, is left to refuse them itself.

    Args:
        name: the environment's, for messages.
        function: to be called with ``given``.
        given: arguments by name.
        ours: parameters that are not the user's to give.
        others: arguments that are checked elsewhere, offered when a name looks like a slip.

    Raises:
        UsageError: names the argument, those that the function takes, and the nearest.
    """
    own = _signature(function)
    if not own or any(each.kind is each.VAR_KEYWORD for each in own):
        return
    known = [parameter for parameter in parameters_of(function) if parameter not in ours]
    for key in given:
        if key not in known:
            hint = did_you_mean(key, [*known, *others])
            takes = what_it_takes(function, ours)
            raise UsageError(f"{name}: got an unexpected keyword argument '{key}'; {takes}{hint}")


def _signature(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Parameters of a function; none where it does not say."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return []


def _with_wrapped(function: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    yield function
    for cell in getattr(function, "__closure__", None) or ():
        if callable(cell.cell_contents):
            yield from _with_wrapped(cell.cell_contents)
