"""What calls carry beside their messages: the id by which a request is found in logs, the context of a trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from hmarl.sdk.errors import UsageError

REQUEST_ID = "x-request-id"
_LONGEST = 128  # characters of an id
Metadata = tuple[tuple[str, str], ...]
_CURRENT: ContextVar[Metadata] = ContextVar("call_metadata", default=())


def current() -> Metadata:
    """What a call that is made now carries."""
    return _CURRENT.get()


@contextmanager
def call_metadata(pairs: Iterable[tuple[str, str]]) -> Iterator[None]:
    """Calls of the block carry these as well; one of a name that is known already takes its place."""
    token = _CURRENT.set(tuple((dict(_CURRENT.get()) | dict(pairs)).items()))
    try:
        yield
    finally:
        _CURRENT.reset(token)


@contextmanager
def request_id(name: str) -> Iterator[None]:
    """What clients ask in the block is found in the agents' logs by this id (``--log-format json``).

        with request_id(f"{mission}-{step}"):
            action = agent.act(observation)

    Args:
        name: printable ASCII, at most 128 characters.

    Raises:
        UsageError: it is none such.
    """
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST or not (name.isascii() and name.isprintable()):
        raise UsageError(f"request_id: got {name!r}, expected 1 to {_LONGEST} printable ASCII characters")
    with call_metadata([(REQUEST_ID, name)]):
        yield
