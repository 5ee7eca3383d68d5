"""What protects an agent's door, put together from settings: TLS, the guard, and the files that both are read from."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import stat
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmarl.runtime.errors import UsageError
from hmarl.runtime.identity import Asked, Guard
from hmarl.runtime.quotas import RequestQuota
from hmarl.runtime.reloading import Reloaded, Watch
from hmarl.runtime.repeats import RepeatLog
from hmarl.runtime.secret_files import Tokens, read_names, read_tokens
from hmarl.runtime.settings import SecuritySettings

if TYPE_CHECKING:
    import ssl

    import grpc

    from hmarl.runtime.certificates import KeyPair

LOGGER = logging.getLogger("hmarl.agent")
_SAY_EXPIRY_EVERY_S = 3600.0
_EXPIRES_SOON_S = 86400.0
_MAKE_SAFE = (
    "give --tls-cert, --tls-key and --tls-client-ca (hmarl-keys makes the files) or TLS and --token-file; or listen on "
    "{private}; or say --insecure where something in front protects it"
)


class Access:
    """Who gets in, and how.

    Args:
        settings: what protects the door.
        log: for what peers can cause.

    Attributes:
        guard: lets callers in or not; counts those that it does not.
        server_credentials: for gRPC; None for plaintext.
        certificate: the server's; None for plaintext. Counts reloads and failures.

    Raises:
        UsageError: options do not go together, or a file cannot be used.
    """

    def __init__(self, settings: SecuritySettings, log: RepeatLog) -> None:
        _check_options(settings)
        self._settings = settings
        self._expiry_log = RepeatLog(LOGGER, _SAY_EXPIRY_EVERY_S)
        self._watched: list[Reloaded[Any]] = []
        self.certificate = self._read_certificate()
        self.server_credentials = self._credentials()
        asked = Asked(
            tls=self.certificate is not None,
            certificates=settings.tls_client_ca is not None,
            allowed=frozenset(settings.allow_clients) or None,
            listed=self._listed(),
            tokens=self._tokens(),
        )
        self.guard = Guard(asked, RequestQuota(settings.client_rate), log, settings.probe_secret)

    @property
    def expires_at(self) -> float | None:
        """When the server's certificate is valid no longer, in seconds since 1970; None for plaintext."""
        return None if self.certificate is None else self.certificate.value[0].expires_at

    @property
    def open_health(self) -> bool:
        """Whether health is told to those who show nothing."""
        return self._settings.open_health

    def context(self) -> ssl.SSLContext | None:
        """What a connection that is not gRPC's is encrypted by, with the files as they are now; None for plaintext.

        With ``open_health`` its handshake goes without a certificate, which ``Guard`` then asks for.
        """
        if self.certificate is None:
            return None
        self.certificate.look()
        return self.certificate.value[0].context

    def start(self, stopped: threading.Event) -> None:
        """Look at the files until ``stopped`` is set."""
        if self._watched:
            Watch(self._watched, self._say_expiry).start(stopped)

    def _read_certificate(self) -> Reloaded[tuple[KeyPair, bytes | None]] | None:
        cert, key, authority = self._settings.tls_cert, self._settings.tls_key, self._settings.tls_client_ca
        if cert is None or key is None:
            return None
        from hmarl.runtime.certificates import ask_clients, read_authority, read_pair  # noqa: PLC0415 - for TLS alone

        def read() -> tuple[KeyPair, bytes | None]:
            pair = read_pair("--tls-cert", cert, "--tls-key", key)
            trusted = None if authority is None else read_authority("--tls-client-ca", authority)
            if trusted is not None:
                ask_clients(pair.context, trusted, required=not self._settings.open_health)
            return pair, trusted

        paths = [cert, key, *([] if authority is None else [authority])]
        return self._watch(Reloaded("the certificate", paths, read, LOGGER))

    def _credentials(self) -> grpc.ServerCredentials | None:
        certificate = self.certificate
        if certificate is None:
            return None
        import grpc  # noqa: PLC0415 - an agent may be served without it

        taken = certificate.value

        def fetch() -> Any:
            """What gRPC asks for at each handshake: another configuration, or None to go on with the one it has."""
            nonlocal taken
            certificate.look()
            value = certificate.value
            if value is taken:
                return None
            configuration = _configuration(*value)
            taken = value
            return configuration

        return grpc.dynamic_ssl_server_credentials(
            _configuration(*taken), fetch, require_client_authentication=self._settings.tls_client_ca is not None
        )

    def _listed(self) -> Reloaded[frozenset[str]] | None:
        path = self._settings.allow_file
        if path is None:
            return None
        return self._watch(
            Reloaded("the clients that are let in", [path], lambda: read_names("--allow-file", path), LOGGER)
        )

    def _tokens(self) -> Reloaded[Tokens] | None:
        path = self._settings.token_file
        if path is None:
            return None
        return self._watch(Reloaded("the tokens", [path], lambda: read_tokens("--token-file", path), LOGGER))

    def _watch(self, value: Reloaded[Any]) -> Reloaded[Any]:
        self._watched.append(value)
        return value

    def _say_expiry(self) -> None:
        """Say now and then that the server's certificate is about to expire."""
        if self.expires_at is None:
            return
        left_s = self.expires_at - time.time()
        if left_s <= 0:
            text = "the certificate has expired, and new connections fail: renew it"
            self._expiry_log.say("expired", logging.ERROR, f"{text} ({self._settings.tls_cert})")
        elif left_s < _EXPIRES_SOON_S:
            text = f"the certificate expires in {left_s / 3600:.1f} h: renew it"
            self._expiry_log.say("expires", logging.WARNING, f"{text} ({self._settings.tls_cert})")


def _configuration(pair: KeyPair, authority: bytes | None) -> Any:
    import grpc  # noqa: PLC0415 - see above

    return grpc.ssl_server_certificate_configuration([(pair.key, pair.certificate)], root_certificates=authority)


def _check_options(settings: SecuritySettings) -> None:
    given = {"--tls-cert": settings.tls_cert, "--tls-key": settings.tls_key}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == 1:
        raise UsageError(f"{missing[0]}: got nothing, expected a file: a certificate and its key go together")
    if settings.tls_client_ca is not None and missing:
        raise UsageError("--tls-client-ca: got it without --tls-cert and --tls-key, expected all three")
    if (settings.allow_clients or settings.allow_file is not None) and settings.tls_client_ca is None:
        raise UsageError(
            "--allow-client: got names without --tls-client-ca, expected the authority that vouches for them"
        )


def check_exposure(
    settings: SecuritySettings,
    host: str,
    unix_path: Path | None,
    door: str = "listen",
    private: str = "127.0.0.1 or a Unix socket",
) -> None:
    """Refuse to be reached by others without asking who they are.

    Args:
        settings: what protects the door.
        host: where it listens; empty for a Unix socket.
        unix_path: the socket, which is bound already.
        door: what it is called.
        private: where it might listen without all that.

    Raises:
        UsageError: with what is missing.
    """
    tls, identity = settings.tls_cert is not None, settings.tls_client_ca or settings.token_file
    if unix_path is not None:
        if reachable := _others_may_connect(unix_path):
            where, problem = f"unix:{unix_path}", None if identity else f"other users may connect ({reachable})"
        else:
            return
    elif is_loopback(host):
        return
    else:
        where = host
        if identity and tls:
            return
        problem = (
            "without TLS its token would travel readable"
            if settings.token_file
            else "anyone who can reach it could use it"
            if tls
            else "without encryption or authentication: anyone who can reach it can use it"
        )
    if problem is None:
        return
    if not settings.insecure:
        raise UsageError(f"{door}: got {where}, {problem}: {_MAKE_SAFE.format(private=private)}")
    LOGGER.warning("%s: got %s, %s", door, where, problem)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _others_may_connect(path: Path) -> str | None:
    """Why users other than the owner and the group may connect to a socket; None where they may not."""
    mode = os.stat(path).st_mode
    if not mode & stat.S_IWOTH:
        return None
    folders = path.absolute().parents
    closed = any(not os.stat(folder).st_mode & stat.S_IXOTH for folder in folders)
    return None if closed else f"its mode is {stat.S_IMODE(mode):04o}, and no folder above it is closed to them"


def parse_address(listen: str) -> tuple[str, int]:
    """Split ``HOST:PORT``; an IPv6 host is in brackets.

    Raises:
        UsageError: malformed.
    """
    match = re.fullmatch(r"(\[[0-9a-fA-F:.%\w]+\]|[^:\[\]\s/]+):(\d+)", listen)
    if match is None:
        raise UsageError(f"listen: got '{listen}', expected HOST:PORT (for example 127.0.0.1:50051) or unix:PATH")
    port = int(match[2])
    if port > 65535:
        raise UsageError(f"listen: port must be between 0 and 65535, got {port}")
    return match[1], port
