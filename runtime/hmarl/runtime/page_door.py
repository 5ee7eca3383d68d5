"""Who may read metrics where others reach them: whoever may act, by the same certificates, tokens, names and quotas."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Any

from hmarl.runtime.access import Access
from hmarl.runtime.errors import HmarlError
from hmarl.runtime.identity import Shown, bearer_of


class PageDoor:
    """Encrypts connections to a page, and lets those in who show what is asked for.

    Args:
        access: what is asked for; its files are read again when they change.
        turned_away: told of each request that is not let in, and why.
    """

    def __init__(self, access: Access, turned_away: Callable[[HmarlError], None]) -> None:
        self._access = access
        self._turned_away = turned_away

    @property
    def open_health(self) -> bool:
        """Whether health is told to those who show nothing."""
        return self._access.open_health

    def wrapped(self, connection: socket.socket) -> socket.socket:
        """A connection after the TLS handshake; itself where none is asked for.

        Raises:
            OSError: the peer does not speak TLS, or shows no certificate where one is asked for.
        """
        context = self._access.context()
        return connection if context is None else context.wrap_socket(connection, server_side=True)

    def admit(self, connection: socket.socket, authorization: str | None, peer: str) -> None:
        """Let a request in.

        Args:
            connection: as ``wrapped`` made it.
            authorization: its header of that name.
            peer: its host.

        Raises:
            UnauthenticatedError: it does not show what is asked for.
            ForbiddenError: its name is not among those that are let in.
            QuotaError: its client has sent too many requests.
        """
        shown = _shown(connection, bearer_of([("authorization", authorization or "")]))
        try:
            self._access.guard.admit_reader(shown, peer)
        except HmarlError as error:
            self._turned_away(error)
            raise


def _shown(connection: socket.socket, bearer: str | None) -> Shown:
    if not isinstance(connection, ssl.SSLSocket):
        return Shown(False, b"", (), bearer)
    certificate: dict[str, Any] = dict(connection.getpeercert() or {})
    der = connection.getpeercert(True)
    if der is None:
        return Shown(True, b"", (), bearer)
    alternatives = certificate.get("subjectAltName", ())
    names = [value for kind in ("URI", "DNS") for found, value in alternatives if found == kind]
    names += [value for entry in certificate.get("subject", ()) for key, value in entry if key == "commonName"]
    return Shown(True, ssl.DER_cert_to_PEM_cert(der).encode(), names, bearer)
