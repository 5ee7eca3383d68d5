"""How an agent is served, and the defaults of all that serves or runs one: functions and commands take them from here.

Imports nothing, so that a command can say them at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PROVIDER = "cpu"  # what policies run on unless told otherwise


@dataclass(frozen=True)
class SecuritySettings:
    """Who is let in, and how much one client may ask for.

    Attributes:
        tls_cert: the server's certificate with its chain, PEM; None for plaintext.
        tls_key: its private key, PEM.
        tls_client_ca: the authority whose client certificates are asked for; None asks for none.
        allow_clients: names (URI, DNS or common name) of the client certificates that are let in; empty for all of the
            authority's.
        allow_file: further such names, one a line.
        token_file: bearer tokens, one a line, ``TOKEN`` or ``NAME TOKEN``; None asks for none.
        open_health: answer ``grpc.health.v1`` without a token and whatever the certificate's name.
        insecure: listen where others reach it although it does not ask who they are, or does not encrypt.
        client_sessions: episodes that one client may have open; 0 for any number.
        client_streams: streams that one client may have open; 0 for any number.
        client_rate: requests that one client may send a second; 0 for any number.
        probe_secret: lets a supervisor ask for health whatever else is asked for; None makes one up.
    """

    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    allow_clients: tuple[str, ...] = ()
    allow_file: Path | None = None
    token_file: Path | None = None
    open_health: bool = False
    insecure: bool = False
    client_sessions: int = 0
    client_streams: int = 0
    client_rate: float = 0.0
    probe_secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class ServerSettings:
    """How an agent is served.

    Attributes:
        listen: ``HOST:PORT`` (port 0 takes a free one) or ``unix:PATH``, over gRPC.
        grpc: whether it is served over gRPC.
        frames: the Unix socket at which it is served by frames, too; None for nowhere.
        frames_users: numbers of the users who may come to that beside its own and root.
        max_sessions: episodes open at once.
        session_ttl_s: seconds after which an idle session may be forgotten.
        max_streams: StreamAct calls open at once.
        reflection: whether clients may ask for the protocol; None: where only this machine reaches it.
        oip: whether the Open Inference Protocol is spoken too.
        max_request_bytes: the largest message that is taken; see ``message_limits.request_limit_bytes``.
        grace_s: seconds that running episodes get when the server stops.
        security: who is let in.
    """

    listen: str = "127.0.0.1:50051"
    grpc: bool = True
    frames: Path | None = None
    frames_users: tuple[int, ...] = ()
    max_sessions: int = 1024
    session_ttl_s: float = 600.0
    max_streams: int = 64
    reflection: bool | None = None
    oip: bool = False
    max_request_bytes: int = 4 * 2**20
    grace_s: float = 5.0
    security: SecuritySettings = SecuritySettings()
