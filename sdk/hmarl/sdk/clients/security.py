"""What a client shows, and whom it trusts: TLS, a client certificate, a bearer token.

Python's gRPC channels cannot read certificates again. A client therefore makes another channel when its files have
changed, connects it aside, and changes over between two steps.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from hmarl.runtime.reloading import Reloaded
from hmarl.runtime.secret_files import first_token
from hmarl.sdk.clients.link import stays_on_this_machine
from hmarl.sdk.errors import UsageError

if TYPE_CHECKING:
    from hmarl.runtime.certificates import KeyPair

LOGGER = logging.getLogger("hmarl.client")
LOOK_EVERY_S = 0.5
_LONG_S = 5.0


@dataclass(frozen=True)
class Security:
    """How a client and its agent know each other. Files are read again when they change.

    Attributes:
        ca: certificates of the authority that vouches for agents, PEM; None connects without TLS.
        cert: the client's own certificate, PEM; None shows none.
        key: its private key, PEM.
        token_file: a file whose first line is a bearer token; None shows none.
        server_name: the name that the agent's certificate must have, where it is not that of the address.
    """

    ca: Path | str | None = None
    cert: Path | str | None = None
    key: Path | str | None = None
    token_file: Path | str | None = None
    server_name: str | None = None


@dataclass(frozen=True)
class _Content:
    """What the files hold."""

    authority: bytes | None
    pair: KeyPair | None
    token: str | None


class Keys:
    """The content of a ``Security``'s files, for one client of one address.

    Args:
        security: which files.
        address: of the agent.

    Raises:
        UsageError: fields do not go together, a file cannot be used, or a token would travel readable.
    """

    def __init__(self, security: Security, address: str) -> None:
        _check(security, address)
        self._security = security
        self._address = address
        given = (security.ca, security.cert, security.key, security.token_file)
        self._content = Reloaded(
            "the client's files", [Path(each) for each in given if each is not None], self._read, LOGGER
        )
        self._looked_at = time.monotonic()

    @property
    def security(self) -> Security:
        """Which files."""
        return self._security

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call shows."""
        token = self._content.value.token
        return () if token is None else (("authorization", f"Bearer {token}"),)

    @property
    def version(self) -> int:
        """Another number when the files have been read again."""
        return self._content.reloads

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """For a channel; None without TLS."""
        content = self._content.value
        if content.authority is None:
            return None
        pair = content.pair
        return grpc.ssl_channel_credentials(
            content.authority, None if pair is None else pair.key, None if pair is None else pair.certificate
        )

    @property
    def channel_options(self) -> tuple[tuple[str, str], ...]:
        """Further arguments of a channel."""
        name = self._security.server_name
        if name is None and self._address.startswith("unix"):
            name = "localhost"  # where gRPC would look for the socket's path among the certificate's names
        return () if name is None else (("grpc.ssl_target_name_override", name),)

    def look(self, *, now: bool = False) -> bool:
        """Read the files again when they have changed; looks at them twice a second at most, or ``now``."""
        at = time.monotonic()
        if not now and at - self._looked_at < LOOK_EVERY_S:
            return False
        self._looked_at = at
        return self._content.look()

    def _read(self) -> _Content:
        from hmarl.runtime.certificates import read_authority, read_pair  # noqa: PLC0415 - ssl, where it is needed

        security = self._security
        return _Content(
            None if security.ca is None else read_authority("security.ca", Path(security.ca)),
            None
            if security.cert is None or security.key is None
            else read_pair("security.cert", Path(security.cert), "security.key", Path(security.key)),
            None if security.token_file is None else first_token("security.token_file", Path(security.token_file)),
        )


class Age:
    """How long a new connection has been waited for while the old one serves on; said once."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._told = False

    def tell(self, address: str) -> None:
        """Say so when it takes long."""
        if not self._told and time.monotonic() - self._since > _LONG_S:
            self._told = True
            LOGGER.warning(
                "%s: no connection stands yet with the files' present content, the old one serves on: does the agent "
                "accept them?",
                address,
            )


def _check(security: Security, address: str) -> None:
    if not isinstance(security, Security):
        raise UsageError(f"security: got {type(security).__name__}, expected hmarl.sdk.Security")
    if (security.cert is None) != (security.key is None):
        raise UsageError("security: got one of cert and key, expected both or none")
    if security.ca is None and (security.cert is not None or security.server_name is not None):
        raise UsageError("security.ca: got none with cert or server_name, expected the authority's certificate")
    if security.ca is None and security.token_file is None:
        raise UsageError("security: got neither ca nor token_file, expected one of them; security=None is plaintext")
    if security.ca is None and not stays_on_this_machine(address):
        raise UsageError(
            f"{address}: security.ca: got none, but without TLS the token would travel readable: give the authority's "
            "certificate"
        )


def open_channel(
    address: str, options: Sequence[tuple[str, Any]], credentials: grpc.ChannelCredentials | None
) -> grpc.Channel:
    """A channel, encrypted where there are credentials."""
    if credentials is None:
        return grpc.insecure_channel(address, options)
    return grpc.secure_channel(address, credentials, options)
