"""JSON that strangers wrote, read so that it can mean one thing only."""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

import msgspec

from hmarl.runtime.errors import one_line
from hmarl.runtime.plain_json import read_json

M = TypeVar("M")


def read_strictly(content: bytes, model: type[M]) -> M:
    """A document that fits a model.

    Args:
        content: the document, whose size has been checked.
        model: a ``msgspec.Struct``.

    Raises:
        ValueError: it is no JSON in UTF-8, says a key twice, nests too deeply, or does not fit the model.
    """
    document = read_json(content, _once, _refuse_constant)
    try:
        return msgspec.convert(document, model)
    except msgspec.ValidationError as error:
        raise ValueError(one_line(error)) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; two readers of one that says a key twice may take it for different things."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:100]!a} is there more than once")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"got {name}, which is no JSON")
