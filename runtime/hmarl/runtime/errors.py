"""The base of all errors that hmarl raises at a user, and those of the runtime. Importing it imports nothing else.

They know no transport: the server maps them to status codes in one place, and commands end with the class's exit code.
Each message says what was got, what was expected and, where it helps, what to do next.
"""

from __future__ import annotations

from collections.abc import Iterable


class HmarlError(Exception):
    """Base of every error that hmarl raises on purpose; command-line programs print it without a traceback.

    Attributes:
        exit_code: what a command ends with: 2 usage or configuration, 3 a bad bundle, run, checkpoint or recording, 4 a
            failure while running.
    """

    exit_code: int = 4


class UsageError(HmarlError):
    """A wrong name, argument or configuration value; nothing has been changed."""

    exit_code: int = 2


class MissingExtraError(UsageError):
    """A part of hmarl needs a package that an extra installs.

    Args:
        package: the import name that was not found.
        extra: the extra of the distribution that installs it.
        purpose: what it was needed for, e.g. ``"the environment family vmas"``.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{package}': pip install 'hmarl[{extra}]'")
        self.package = package
        self.extra = extra


class BundleError(HmarlError):
    """A bundle that is damaged, incomplete or not a bundle at all."""

    exit_code: int = 3


class SignatureError(BundleError):
    """A bundle that is not what a trusted signer signed: unsigned, changed, or signed by another key."""


class RecordingError(HmarlError):
    """A recording that is damaged, is none at all, or needs a bundle that is not given."""

    exit_code: int = 3


class DifferenceError(HmarlError):
    """A recording that was run again, and did not come out the same."""


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


class BundleNotHeldError(SessionError):
    """An episode was asked for in a bundle that the process does not serve, or does not hold any longer."""


class SessionLimitError(SessionError):
    """As many sessions are open as the process may hold."""


class RequestError(HmarlError):
    """A request that cannot be read; nothing has changed."""


class TooLargeError(RequestError):
    """A request that is larger than the process takes."""


class TooLateError(RequestError):
    """A request that its client waits for no longer; it was not done."""


class UnknownRequestError(RequestError):
    """A request of a kind that the process does not know."""


class UnknownServiceError(HmarlError):
    """The health of a service was asked for that is not served."""


class UnknownModelError(HmarlError):
    """A model, or a version of it, was asked for that this process does not serve."""


class TakenError(HmarlError):
    """As many calls are open as the process, or one peer, may hold."""


class UnauthenticatedError(HmarlError):
    """A caller does not show who it is, in the way that this process asks for."""


class ForbiddenError(HmarlError):
    """A caller shows who it is, and is not among those that are let in."""


class QuotaError(HmarlError):
    """One client asks for more than it may."""


class DrainingError(SessionError):
    """The process is stopping and starts no more episodes."""


# As many names as a line can hold; of more the closest are told, and where the others are.
_LISTED = 20
_SUGGESTED = 3
# Names whose likeness to what was typed differs by no more than this are about as close.
_AS_CLOSE = 0.05


def did_you_mean(got: str, known: Iterable[str], rest: str = "") -> str:
    """The known names that are closest to one that is not, to be appended to a message; empty where none is close.

    Args:
        got: the name.
        known: those that there are.
        rest: what was typed after the name.
    """
    import difflib  # noqa: PLC0415 - memory that programs without a mistake do without

    names, prefix = sorted(set(known)), got[: got.rfind(".") + 1]
    if not all(name.startswith(prefix) for name in names):
        prefix = ""
    slip, tails = got.removeprefix(prefix), [name.removeprefix(prefix) for name in names]
    found = difflib.get_close_matches(slip, tails, n=_SUGGESTED)  # a prefix in common makes no name closer
    likeness = [difflib.SequenceMatcher(None, tail, slip).ratio() for tail in found]
    about_as_close = [tail for tail, ratio in zip(found, likeness, strict=True) if ratio >= likeness[0] - _AS_CLOSE]
    close = [f"'{prefix}{tail}{rest}'" for tail in about_as_close]
    return f"; did you mean {' or '.join(close)}?" if close else ""


def unknown_name(what: str, got: str, known: Iterable[str], listed_by: str | None = None) -> str:
    """A message for a name that is not known, with the closest known ones, and all of them or how to list them.

    Args:
        what: of what the name is.
        got: the name.
        known: those that there are.
        listed_by: the command that lists them.
    """
    names = sorted(set(known))
    if len(names) <= _LISTED:
        listed = f"known: {', '.join(names)}"
    elif listed_by is not None:
        listed = f"{listed_by} lists all"
    else:
        listed = f"known: {', '.join(names[:_LISTED])} and {len(names) - _LISTED} more"
    hint = did_you_mean(got, names)
    if len(names) > 1 and all(f"'{name}'" in hint for name in names):  # the list says it as well, in order
        hint = ""
    return f"unknown {what} '{got}'{hint} ({listed})"


def one_line(said: object, limit: int = 500) -> str:
    """What another library says, for a message: on one line, escaped where not printable, cut where long."""
    text = printable(" ".join(str(said)[: 2 * limit].split()))
    return text if len(text) <= limit else text[:limit] + "…"


def printable(text: str) -> str:
    """A text whose line breaks, and whatever else is not printable, are escaped."""
    return text if text.isprintable() else "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
