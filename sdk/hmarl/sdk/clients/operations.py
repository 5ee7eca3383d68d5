"""What the scripts of ``RemoteEpisode`` ask a client to do over the network, and how it fails."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, NamedTuple

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.status import Code


class Act(NamedTuple):
    """Send this request, over a stream as it is or its ``act`` in a call, and wait for the response to its step."""

    request: agent_pb2.StreamActRequest
    step: int
    timeout_s: float


@dataclass(frozen=True)
class Start:
    """Wait for the response to this request, which is sent unless it is on its way already.

    When the time is over the request stays on its way, and the same operation waits on; sent again, it would open a
    session each time, and a server that takes longer than an act may would never be joined.
    """

    request: agent_pb2.StartEpisodeRequest
    timeout_s: float


@dataclass(frozen=True)
class Abandon:
    """Nothing waits any longer for the ``Start`` on its way, if there is one."""


@dataclass(frozen=True)
class End:
    """End a session without waiting for the response."""

    session_id: str


@dataclass(frozen=True)
class Describe:
    """Ask the server who is served, now or in a bundle that is named."""

    timeout_s: float
    bundle_sha256: str = ""


@dataclass(frozen=True)
class Reconnect:
    """Leave the connection to itself and make a new one."""

    connect_timeout_s: float
    receive_limit_bytes: int


@dataclass(frozen=True)
class Examine:
    """Find out why no answer comes, and raise AgentError where the client or the agent has to be set up otherwise."""

    limit_s: float


@dataclass(frozen=True)
class Pause:
    """Do nothing for a while."""

    seconds: float


Operation = Act | Start | Abandon | End | Describe | Reconnect | Examine | Pause
Script = Generator[Operation, Any, Any]


class CallFailed(Exception):
    """A remote call ended with a status other than OK; ``heard``: the peer has shown meanwhile that it is there."""

    def __init__(self, code: Code, details: str, *, heard: bool = False) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code = code
        self.details = details
        self.heard = heard
