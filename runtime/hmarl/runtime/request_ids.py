"""The request on which a thread is at work, by the id that its peer gave it: what log lines are found by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

HEADER = "x-request-id"
_LONGEST = 128  # characters; whoever sends more has it cut
_CURRENT: ContextVar[str | None] = ContextVar("request_id", default=None)


def current() -> str | None:
    """The id of the request on which this thread is at work; None when there is none."""
    return _CURRENT.get()


@contextmanager
def request_of(*metadata: Iterable[tuple[str, str | bytes]]) -> Iterator[None]:
    """What is logged in the block belongs to the request that came with this metadata; the first id found counts."""
    token = _CURRENT.set(next((found for found in map(_id, metadata) if found is not None), None))
    try:
        yield
    finally:
        _CURRENT.reset(token)


def _id(metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
    for key, value in metadata:
        if key == HEADER and isinstance(value, str):
            return value[:_LONGEST]
    return None
