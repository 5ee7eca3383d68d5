"""All errors that the SDK raises, on the one base that all parts of hmarl share. Importing it imports nothing heavy."""

from __future__ import annotations

from hmarl.runtime.errors import (
    BundleError,
    HmarlError,
    MissingExtraError,
    ObservationError,
    SignatureError,
    UsageError,
    did_you_mean,
    unknown_name,
)

__all__ = [
    "AgentError",
    "BundleError",
    "EnvironmentFault",
    "HmarlError",
    "MissingExtraError",
    "MisuseError",
    "ObservationError",
    "OtherBundleError",
    "OverrunError",
    "SignatureError",
    "StaleActionError",
    "UsageError",
    "did_you_mean",
    "unknown_name",
]


class MisuseError(UsageError):
    """An agent or a client of one was used as it must not be: closed, copied, after a fork, by two callers at once."""


class EnvironmentFault(HmarlError):
    """An environment broke its contract (shape, dtype, a mask without a legal action, a lost worker)."""


class AgentError(HmarlError):
    """The process that serves an agent refused a request, or could not be reached."""


class OtherBundleError(AgentError):
    """The process serves another bundle than a client, or its episode, is for."""


class StaleActionError(HmarlError):
    """No fresh action arrived in time, and nothing may stand in for it any longer."""


class OverrunError(HmarlError):
    """A control loop did not keep its period, and is to stop then."""
