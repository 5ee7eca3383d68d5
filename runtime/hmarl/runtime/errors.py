"""The base of all errors that hmarl raises at a user, and those of the runtime. Importing it imports nothing else.

They know no transport: the server maps them to status codes in one place, and commands end with the class's exit code.
Each message says what was got, what was expected and, where it helps, what to do next.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar


class HmarlError(Exception):
    """Base of every error that hmarl raises on purpose; command-line programs print it without a traceback.

    Attributes:
        exit_code: what a command ends with: 2 usage or configuration, 3 a bad bundle, run or checkpoint, 4 a failure
            while running.
    """

    exit_code: ClassVar[int] = 4


class UsageError(HmarlError):
    """A wrong name, argument or configuration value; nothing has been changed."""

    exit_code: ClassVar[int] = 2


class BundleError(HmarlError):
    """A bundle that is damaged, incomplete or not a bundle at all."""

    exit_code: ClassVar[int] = 3


class ObservationError(HmarlError):
    """An observation or action mask of wrong shape, dtype or content; the session's state has not changed."""


class InferenceError(HmarlError):
    """The policy could not compute an action; none was handed out, and the session's state has not changed."""


class NonFiniteError(InferenceError):
    """The policy computed NaN or infinity from an observation that is in order; the next one may be well again."""


class SessionError(HmarlError):
    """A session was used in a way that its state does not allow; the state has not changed."""


class StepOrderError(SessionError):
    """A step that is older than the last one, or that repeats it with other content."""


class UnknownSessionError(SessionError):
    """No session of this id is open: it never was, has ended, has expired, or the process has restarted."""


class SessionLimitError(SessionError):
    """As many sessions are open as the process may hold."""


class RequestError(HmarlError):
    """A request that cannot be read; nothing has changed."""


class UnknownServiceError(HmarlError):
    """The health of a service was asked for that is not served."""


class TakenError(HmarlError):
    """As many calls are open as the process, or one peer, may hold."""


class DrainingError(SessionError):
    """The process is stopping and starts no more episodes."""


def unknown_name(what: str, got: str, known: Iterable[str]) -> str:
    """A message for a name that is not known, with the closest known one suggested."""
    import difflib  # noqa: PLC0415 - memory that programs without a mistake do without

    names = sorted(set(known))
    close = difflib.get_close_matches(got, names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"unknown {what} '{got}'{hint} (known: {', '.join(names)})"


def one_line(said: object, limit: int = 500) -> str:
    """What another library says, for a message: on one line, escaped where not printable, cut where long."""
    text = " ".join(str(said)[: 2 * limit].split())
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return text if len(text) <= limit else text[:limit] + "…"
