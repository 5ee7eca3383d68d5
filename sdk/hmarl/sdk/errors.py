"""All errors that the SDK raises, on the one base that all parts of hmarl share. Importing it imports nothing heavy."""

from __future__ import annotations

from hmarl.runtime.errors import BundleError, HmarlError, ObservationError, UsageError, did_you_mean, unknown_name

__all__ = [
    "AgentError",
    "BundleError",
    "EnvironmentFault",
    "HmarlError",
    "MissingExtraError",
    "MisuseError",
    "ObservationError",
    "OtherBundleError",
    "StaleActionError",
    "UsageError",
    "did_you_mean",
    "unknown_name",
]


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
