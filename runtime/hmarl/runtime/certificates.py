"""Certificates and keys as TLS needs them: read, matched, and asked how long they are valid. Uses Python's own ssl."""

from __future__ import annotations

import binascii
import calendar
import re
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hmarl.runtime.errors import UsageError, one_line
from hmarl.runtime.secret_files import read_file, read_secret

_UTC_TIME, _VERSION = 0x17, 0xA0
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True)
class KeyPair:
    """A certificate with its chain, and its private key.

    Attributes:
        certificate: PEM.
        key: PEM; not shown.
        expires_at: seconds since 1970.
        context: a server's, which shows the certificate.
    """

    certificate: bytes
    key: bytes
    expires_at: float
    context: ssl.SSLContext

    def __repr__(self) -> str:
        return f"KeyPair(expires_at={self.expires_at})"


def read_pair(cert_option: str, certificate: Path, key_option: str, key: Path) -> KeyPair:
    """A certificate and its key.

    Raises:
        UsageError: one of them cannot be read or used, they do not belong together, or others may read the key.
    """
    pair = read_file(cert_option, certificate), read_secret(key_option, key)
    expires_at = expiry(cert_option, certificate, pair[0])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        raise UsageError(
            f"{key_option}: '{key}' is not the private key, in PEM and without a password, of the certificate "
            f"'{certificate}': {one_line(getattr(error, 'reason', None) or error)}"
        ) from error
    except OSError as error:
        raise UsageError(f"{cert_option}: cannot read '{certificate}' and '{key}': {error.strerror}") from error
    return KeyPair(*pair, expires_at, context)


def read_authority(option: str, path: Path) -> bytes:
    """The certificates of those who are trusted to vouch for others, in PEM.

    Raises:
        UsageError: there is none.
    """
    content = read_file(option, path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=content.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise UsageError(f"{option}: got no certificate in PEM in '{path}': {one_line(error)}") from error
    return content


def ask_clients(context: ssl.SSLContext, authority: bytes, *, required: bool) -> None:
    """Have a server ask for client certificates.

    Args:
        context: the server's.
        authority: whose certificates are taken, in PEM.
        required: whether those without any are turned away at the handshake.
    """
    context.load_verify_locations(cadata=authority.decode("ascii"))
    context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL


def expiry(option: str, path: Path, content: bytes) -> float:
    """When the first certificate of a file is valid no longer, in seconds since 1970.

    Raises:
        UsageError: there is none.
    """
    try:
        return validity(content)[1]
    except ValueError as error:
        raise UsageError(f"{option}: got no certificate in PEM in '{path}': {one_line(error)}") from error


def validity(pem: bytes) -> tuple[float, float]:
    """From when until when a certificate is valid, in seconds since 1970.

    Raises:
        ValueError: it is none.
    """
    found = _PEM.search(pem)
    if found is None:
        raise ValueError("no certificate")
    try:
        (_, certificate), *_ = _elements(binascii.a2b_base64(found[1]))
        (_, to_be_signed), *_ = _elements(certificate)
        # Version (left out in the first one), serial number, algorithm, issuer, validity, subject, ...: RFC 5280, 4.1.
        fields = [content for tag, content in _elements(to_be_signed) if tag != _VERSION]
        begin, end = (_time(tag, content) for tag, content in _elements(fields[3]))
    except (IndexError, binascii.Error) as error:
        raise ValueError("damaged certificate") from error
    return begin, end


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Tags and contents of what stands in a row in DER."""
    at = 0
    while at < len(der):
        tag, length = der[at], der[at + 1]
        at += 2
        if length & 0x80:
            more = length & 0x7F
            length = int.from_bytes(der[at : at + more], "big")
            at += more
        if at + length > len(der):
            raise ValueError("damaged certificate")
        yield tag, der[at : at + length]
        at += length


def _time(tag: int, content: bytes) -> float:
    text = content.decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    return float(calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ")))


def _no_password() -> str:
    raise ValueError("it has a password")
