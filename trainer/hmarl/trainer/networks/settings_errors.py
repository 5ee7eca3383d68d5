"""What is wrong with a setting, in plain words: what was got, and what was expected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

TRUTH_VALUE = "truth_value"
"""True or false where a number is expected, which pydantic would take for 1 or 0."""

# Of pydantic's kinds of errors; what stands in braces is the error's context.
_EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "keys and values",
    "extra_forbidden": "no such key",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "int_parsing_size": "an integer",
    "int_type": "an integer",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "list_type": "a list",
    "missing": "a value",
    "model_type": "keys and values",
    "string_type": "a text",
    "too_short": "a list of at least {min_length}",
    "tuple_type": "a list",
    TRUTH_VALUE: "a value that is neither true nor false",
}


def explained(error: ValidationError, content: Mapping[str, Any]) -> str:
    """What is wrong, e.g. ``kl_limit: got 0, expected a number above 0``; of several faults the first.

    Args:
        error: pydantic's.
        content: what was checked.
    """
    problems = error.errors()
    places = [_place(problem, content) for problem in problems]
    # Each branch of a union has an error; those that got farther into a value are about what the user meant.
    place = max((each for each in places if each[:1] == places[0][:1]), key=len)
    alike = [problem for problem, each in zip(problems, places, strict=True) if each == place]
    got = "nothing" if alike[0]["type"] == "missing" else repr(alike[0]["input"])
    expected = " or ".join(dict.fromkeys(map(_expected, alike)))
    return f"{'.'.join(place)}: got {got}, expected {expected}"


def _place(problem: ErrorDetails, content: Any) -> list[str]:
    """Keys and numbers that lead to what is wrong, without the names of a union's branches, which no user has typed."""
    place, words = [], problem["loc"]
    for i, word in enumerate(words):
        inside = isinstance(content, Mapping) and word in content
        missing = problem["type"] == "missing" and i == len(words) - 1
        if inside or missing or isinstance(word, int):
            place.append(str(word))
        if inside:
            content = content[word]
        elif isinstance(word, int):
            content = content[word] if isinstance(content, list | tuple) and word < len(content) else None
    return place


def _expected(problem: ErrorDetails) -> str:
    kind, context = problem["type"], {name: _shortest(value) for name, value in problem.get("ctx", {}).items()}
    if kind == "literal_error":
        names = str(context["expected"])
        return f"one of {names}" if " or " in names else names
    if kind in _EXPECTED:
        return _EXPECTED[kind].format(**context)
    return problem["msg"].removeprefix("Value error, ")  # a validator of ours says what it expects


def _shortest(limit: Any) -> Any:
    """1 for 1.0."""
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit
