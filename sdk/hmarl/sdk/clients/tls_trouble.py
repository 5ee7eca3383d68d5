"""Why a connection fails, found out by trying it: gRPC says no more than that there is none."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from pathlib import Path

from hmarl.runtime.certificates import validity
from hmarl.runtime.errors import one_line
from hmarl.sdk.clients.security import Security
from hmarl.sdk.clock import now_s

_UNTRUSTED = frozenset({2, 18, 19, 20, 21})  # OpenSSL's numbers for issuers that are not known
_LEAST_S = 0.001
_EXPIRED, _NOT_YET, _OTHER_HOST, _OTHER_IP = 10, 9, 62, 64
_PLAIN = "give the client security=Security(ca=...), or 'hmarl-eval' an endpoints file that names the authority"


def why_unreachable(address: str, security: Security | None, limit_s: float) -> str | None:
    """Why no call gets through although something listens: what is wrong with TLS on either side, and what to do.

    Args:
        address: of the agent.
        security: the client's.
        limit_s: seconds that the look may take.

    Returns:
        None where TLS is not the reason, or it cannot be told.
    """
    until = now_s() + limit_s
    try:
        if security is None or security.ca is None:
            return f"the agent speaks TLS, the client does not: {_PLAIN}" if _speaks_tls(address, until) else None
        return _why_tls_fails(address, security, until)
    except (OSError, ValueError):
        return None


def _connect(address: str, until: float) -> socket.socket:
    if address.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_left(until))
        connection.connect(address.removeprefix("unix:").removeprefix("//"))
        return connection
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host.strip("[]"), int(port)), _left(until))
    connection.settimeout(_left(until))
    return connection


def _left(until: float) -> float:
    return max(until - now_s(), _LEAST_S)


def _speaks_tls(address: str, until: float) -> bool:
    """Whether an agent takes up TLS, whoever it is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with _connect(address, until) as connection:
        try:
            with context.wrap_socket(connection):
                return True
        except ssl.SSLError as error:
            return "ALERT" in str(error.reason)


def _why_tls_fails(address: str, security: Security, until: float) -> str | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(security.ca)
    context.set_alpn_protocols(["h2"])
    if security.cert is not None and security.key is not None:
        context.load_cert_chain(security.cert, security.key)
    host = security.server_name or ("localhost" if address.startswith("unix:") else address.rpartition(":")[0])
    with _connect(address, until) as connection:
        try:
            with context.wrap_socket(connection, server_hostname=host.strip("[]")) as secured:
                secured.settimeout(_left(until))
                return _after_handshake(secured, security)
        except ssl.SSLCertVerificationError as error:
            return _unverified(error, host, security)
        except ssl.SSLError as error:
            return _refused(error, security)
        except ConnectionError:
            return None


def _after_handshake(secured: ssl.SSLSocket, security: Security) -> str | None:
    """In TLS 1.3 a server judges a client's certificate once the client has finished; what it thinks comes after."""
    with contextlib.suppress(TimeoutError):
        try:
            if not secured.recv(1):
                return _certificate_refused(security)
        except ssl.SSLError as error:
            return _refused(error, security)
        except ConnectionError:
            return _certificate_refused(security)
    return None


def _unverified(error: ssl.SSLCertVerificationError, host: str, security: Security) -> str:
    code = error.verify_code
    if code in _UNTRUSTED:
        return (
            f"the agent's certificate is of another authority than {security.ca}: give the client the ca.pem of the "
            "agent's authority"
        )
    if code == _EXPIRED:
        return "the agent's certificate has expired: renew it there (hmarl-keys renew)"
    if code == _NOT_YET:
        return "the agent's certificate is not valid yet: are the clocks of both machines right?"
    if code in {_OTHER_HOST, _OTHER_IP}:
        return (
            f"the agent's certificate is not for '{host}': issue one for that name (hmarl-keys issue NAME --host "
            f"{host}), or say which name it has (Security(server_name=...))"
        )
    return f"the agent's certificate is not accepted: {one_line(error.verify_message)}"


def _refused(error: ssl.SSLError, security: Security) -> str:
    reason = str(error.reason or error).upper()
    if any(each in reason for each in ("WRONG_VERSION_NUMBER", "RECORD_LAYER", "HTTP_REQUEST")):
        return "the agent does not speak TLS, the client does: serve it with --tls-cert, or leave Security.ca out"
    return _certificate_refused(security)


def _certificate_refused(security: Security) -> str:
    """The agent ends the connection once it has seen the client's certificate, and does not say why."""
    if security.cert is None:
        return (
            "the agent asks for a client certificate, and the client shows none: make one with 'hmarl-keys client "
            "NAME', and give Security(cert=..., key=...)"
        )
    begin, end = validity(Path(security.cert).read_bytes())
    if end < time.time():
        return f"the client's certificate {security.cert} has expired: renew it (hmarl-keys renew)"
    if begin > time.time():
        return f"the client's certificate {security.cert} is not valid yet: are the clocks of both machines right?"
    return (
        f"the agent refuses the client's certificate {security.cert}: it is of another authority than the agent's, or "
        "no client's; take one made by its 'hmarl-keys client NAME'"
    )
