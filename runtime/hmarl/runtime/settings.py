"""How an agent is served, and the defaults of all that serves or runs one: functions and commands take them from here.

Imports nothing, so that a command can say them at once.
"""

from __future__ import annotations

from dataclasses import dataclass

PROVIDER = "cpu"  # what policies run on unless told otherwise


@dataclass(frozen=True)
class ServerSettings:
    """How an agent is served.

    Attributes:
        listen: ``HOST:PORT`` (port 0 takes a free one) or ``unix:PATH``.
        max_sessions: episodes open at once.
        session_ttl_s: seconds after which an idle session may be forgotten.
        max_streams: StreamAct calls open at once.
        reflection: whether clients may ask for the protocol.
        oip: whether the Open Inference Protocol is spoken too.
        max_request_bytes: the largest message that is taken; see ``message_limits.request_limit_bytes``.
        grace_s: seconds that running episodes get when the server stops.
    """

    listen: str = "127.0.0.1:50051"
    max_sessions: int = 1024
    session_ttl_s: float = 600.0
    max_streams: int = 64
    reflection: bool = True
    oip: bool = False
    max_request_bytes: int = 4 * 2**20
    grace_s: float = 5.0
