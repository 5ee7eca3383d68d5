"""Who may be told what sessions do: the one place where acts are seen whole, whichever door they came by.

A policy whose ``observer`` is set gives each session that it makes an observer of its own. Without one nothing is told,
and nothing is paid. What is told comes in order, from within the session: whoever hears it must neither wait nor raise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt

if TYPE_CHECKING:
    from hmarl.runtime._graph import Buffers
    from hmarl.runtime.choices import InstructionChoice
    from hmarl.runtime.session import Action, Policy

ENDED, FORGOTTEN, REPLACED, RESTARTED = "ended", "forgotten", "replaced", "restarted"


@dataclass(frozen=True, slots=True)
class EpisodeStart:
    """How an episode was started; see ``PolicySession.reset``.

    Attributes:
        seed: likewise.
        sample: likewise.
        instruction_choice: as it was asked for; None: as the bundle's manifest says.
        first_step: likewise.
        diagnostics: likewise.
        states: those that were given, by input name.
    """

    seed: int
    sample: bool = False
    instruction_choice: InstructionChoice | None = None
    first_step: int = 0
    diagnostics: bool = False
    states: Mapping[str, npt.NDArray[Any]] | None = None


class SessionObserver(Protocol):
    """Is told what one session does."""

    def began(self, start: EpisodeStart) -> None:
        """An episode was started."""
        ...

    def named(self, session_id: str) -> None:
        """The session is known by an id, which lets its reader act in it."""
        ...

    def acted(self, began_ns: int, action: Action, buffers: Buffers) -> None:
        """The policy acted.

        Args:
            began_ns: when it began, of ``time.monotonic_ns``.
            action: what came of it.
            buffers: what it was given and all that it computed, until this call returns.
        """
        ...

    def refused(self, began_ns: int, step: int, observation: object, action_mask: object, error: Exception) -> None:
        """An act ended with an error.

        Args:
            began_ns: when it began, of ``time.monotonic_ns``.
            step: which one.
            observation: as it was given, checked or not.
            action_mask: likewise.
            error: what was raised.
        """
        ...

    def ended(self, steps: int, missed_steps: int, reason: str) -> None:
        """The episode is over: ``ENDED``, ``FORGOTTEN``, ``REPLACED`` or ``RESTARTED``."""
        ...


class PolicyObserver(Protocol):
    """Has an observer for each session."""

    def session(self, policy: Policy, buffers: Buffers) -> SessionObserver:
        """That of a session which is made now.

        Args:
            policy: whose session.
            buffers: the session's.
        """
        ...
