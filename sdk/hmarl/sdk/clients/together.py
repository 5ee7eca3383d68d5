"""Episodes of whole teams, all of whose agents play on one bundle, also while their fleet is given another one.

    with AgentClient(a) as first, AgentClient(b) as second:
        reset_together([first, second], seed=7)

The agents of a fleet switch one right after the other, each for its new episodes. So the first agent is asked which
bundle it serves, and all start on that one: an agent that has switched still holds it for a while, and where one has
not switched yet, all begin anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from hmarl.runtime.choices import InstructionChoice
from hmarl.sdk.clients.client import AgentClient
from hmarl.sdk.clock import now_s
from hmarl.sdk.errors import OtherBundleError, UsageError

_PAUSE_S = 0.05
_LIMIT_S = 10.0  # of agents that serve different bundles: then they are of no common fleet


def reset_together(
    clients: Sequence[AgentClient],
    seed: int,
    *,
    sample: bool = False,
    instruction_choice: InstructionChoice | None = None,
    first_step: int = 0,
) -> str:
    """Start an episode with all agents of a team, on one bundle: the one that is served now.

    Args:
        clients: one of each agent.
        seed: of the episode, the same for all.
        sample: whether actions are drawn.
        instruction_choice: see ``Agent.reset``.
        first_step: the step of the first observation.

    Returns:
        SHA-256 of the bundle, which may be another one than that of the episode before.

    Raises:
        UsageError: an argument out of range, or no client.
        OtherBundleError: the agents serve different bundles, and go on doing so.
        AgentError: an agent does not answer, or is another one, or has other spaces by now.
    """
    if not clients:
        raise UsageError("clients: got none, expected one of each agent")

    def start(sha256: str) -> None:
        for client in clients:
            client.reset(
                seed,
                sample=sample,
                instruction_choice=instruction_choice,
                first_step=first_step,
                bundle_sha256=sha256,
            )

    return on_one_bundle(clients[0], start)


def on_one_bundle(first: AgentClient, start: Callable[[str], None], limit_s: float = _LIMIT_S) -> str:
    """Start what has to be of one bundle, and again while the agents do not agree.

    Args:
        first: of the agent that says which bundle it is.
        start: starts everything, from its beginning, on a bundle that it is told by its SHA-256.
        limit_s: seconds after which it is given up.

    Returns:
        The bundle's SHA-256.

    Raises:
        OtherBundleError: they go on not to agree.
    """
    deadline = now_s() + limit_s
    while True:
        sha256 = first.current_bundle()
        try:
            start(sha256)
        except OtherBundleError:
            if now_s() + _PAUSE_S > deadline:
                raise
            time.sleep(_PAUSE_S)
        else:
            return sha256
