"""A small certificate authority for one team: a folder with its key, and the certificates of agents and clients.

    authority = Authority.create(Path("keys"))
    authority.issue_agent("agent_0", hosts=["robot.local"])  # keys/agents/agent_0.pem and .key
    authority.issue_client("operator")  # keys/clients/operator.pem and .key; keys/allowed names it

A certificate lives for days, not years, and is renewed before that. Needs the extra ``secure``.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import ipaddress
import os
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote, unquote

from hmarl.runtime._files import replace_file
from hmarl.runtime.errors import MissingExtraError, UsageError, one_line
from hmarl.runtime.secret_files import read_file, read_names, read_secret

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 30
_EARLIER = datetime.timedelta(minutes=5)  # clocks differ
_RENEW_BELOW = 1 / 3  # of its life is left
_PRIVATE_FOLDER, _PRIVATE_FILE, _PUBLIC_FILE = 0o700, 0o600, 0o644
_HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")
Role = Literal["agent", "fleet", "client"]
_FOLDERS: dict[Role, str] = {"agent": "agents", "fleet": "fleets", "client": "clients"}


@dataclass(frozen=True)
class Issued:
    """A certificate of the authority.

    Attributes:
        role: whether an agent, a fleet (where its metrics are read) or a client shows it.
        name: whose it is.
        certificate: its file; that of the private key beside it ends with ``.key``.
        hosts: the names and addresses under which an agent or a fleet may be reached.
        begins_at: from when it is valid.
        expires_at: until when.
        allowed: whether an agent that goes by the list lets it in; agents' certificates let no one in.
        usable: whether its own key lies beside it, and this authority signed it.
    """

    role: Role
    name: str
    certificate: Path
    hosts: tuple[str, ...]
    begins_at: datetime.datetime
    expires_at: datetime.datetime
    allowed: bool
    usable: bool

    @property
    def key(self) -> Path:
        """The file of its private key."""
        return self.certificate.with_suffix(".key")

    def left(self, now: datetime.datetime) -> float:
        """The part of its life that is left; 0 or less once it has expired."""
        return (self.expires_at - now) / (self.expires_at - self.begins_at)


class DamagedCertificateError(UsageError):
    """A file that holds no certificate as the authority makes them."""


def this_machine() -> list[str]:
    """The names and addresses by which this machine's own programs reach it, and its host name."""
    return ["localhost", "127.0.0.1", "::1", socket.gethostname()]


class Authority:
    """A team's certificate authority.

    Args:
        path: its folder.

    Attributes:
        path: its folder.
        certificate: the file of its own certificate, which those who trust it are given.
        allowed: the file that names the clients that are let in.

    Raises:
        UsageError: it is none, or others may read its key.
        MissingExtraError: the package ``cryptography`` is not installed.
    """

    def __init__(self, path: Path) -> None:
        _need_cryptography()
        from cryptography import x509  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

        self.path = path.absolute()
        self.certificate = self.path / "ca.pem"
        self.allowed = self.path / "allowed"
        self._key_file = self.path / "ca.key"
        if not self.certificate.is_file():
            raise UsageError(f"keys: got '{path}', which is no authority, expected a folder made by: hmarl-keys init")
        try:
            self._certificate = x509.load_pem_x509_certificate(read_file("keys", self.certificate))
            self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
            key = load_pem_private_key(read_secret("keys", self._key_file), None)
        except _unreadable() as error:
            raise UsageError(f"keys: '{path}': damaged authority: {one_line(error)}") from error
        if key.public_key() != self._certificate.public_key():
            raise UsageError(f"keys: '{self._key_file}' is not the key of '{self.certificate}'")
        self._key: ec.EllipticCurvePrivateKey = key  # type: ignore[assignment]

    @classmethod
    def create(cls, path: Path, name: str = "hmarl team", days: float = AUTHORITY_DAYS) -> Authority:
        """Make an authority in a new or an empty folder, which from then on is its owner's alone.

        Raises:
            UsageError: there is one, or the folder holds other things, or cannot be made.
            MissingExtraError: the package ``cryptography`` is not installed.
        """
        _need_cryptography()
        try:
            path.mkdir(parents=True, exist_ok=True, mode=_PRIVATE_FOLDER)
        except OSError as error:
            raise UsageError(f"keys: cannot make the folder '{path}': {error.strerror}") from error
        with _locked(path):
            if any((path / each).exists() for each in ("ca.pem", "ca.key")):
                raise UsageError(f"keys: '{path}' has an authority already: use it, or choose another folder")
            if any(path.iterdir()):
                raise UsageError(f"keys: got '{path}', which holds other things, expected a new or an empty folder")
            path.chmod(_PRIVATE_FOLDER)
            key = _new_key()
            builder = _builder(_named(name), _named(name), key, days)
            certificate = _sign(_authority_extensions(builder, key), key)
            replace_file(path / "ca.key", _key_pem(key), _PRIVATE_FILE)
            replace_file(path / "allowed", b"", _PUBLIC_FILE)
            replace_file(path / "ca.pem", certificate, _PUBLIC_FILE)  # last: what is there then is whole
        return cls(path)

    def issue_agent(self, name: str, hosts: Sequence[str] = (), days: float = CERTIFICATE_DAYS) -> Issued:
        """A certificate for an agent, which clients verify; replaces one of that name.

        Args:
            name: the agent's id.
            hosts: names and addresses under which it is reached, beside those of this machine.
            days: that it is valid.

        Raises:
            UsageError: a name or address is none.
        """
        return self._issue("agent", name, list(dict.fromkeys([*this_machine(), *hosts])), days)

    def issue_client(self, name: str, days: float = CERTIFICATE_DAYS) -> Issued:
        """A certificate for a client, which agents verify, and which the list of those that are let in then names.

        Raises:
            UsageError: the name is empty, too long, or has line breaks or a '#'.
        """
        self._issue("client", name, [], days)
        with self._list() as names:
            names.add(name)
        return self.find("client", name)

    def revoke(self, name: str) -> None:
        """Take a client off the list of those that are let in; agents that go by it notice within seconds.

        Raises:
            UsageError: it is not on the list.
        """
        with self._list() as names:
            if name not in names:
                raise UsageError(f"revoke: got '{name}', expected one of {', '.join(sorted(names)) or 'no client'}")
            names.remove(name)

    def renew(self, issued: Issued) -> Issued:
        """The same certificate with another key, valid as long again."""
        days = (issued.expires_at - issued.begins_at) / datetime.timedelta(days=1)
        return self.replace(issued.role, issued.name, issued.hosts, days)

    def replace(self, role: Role, name: str, hosts: Sequence[str], days: float) -> Issued:
        """Another certificate in the place of one; whom agents let in stays as it is."""
        return self._issue(role, name, hosts, days)

    def due(self, now: datetime.datetime | None = None) -> list[Issued]:
        """All of which ``is_due`` says so."""
        return [each for each in self.issued() if self.is_due(each, now)]

    def is_due(self, issued: Issued, now: datetime.datetime | None = None) -> bool:
        """Whether it is to be renewed; never that of a client that is let in no more.

        Less than a third of its life is left, or it is not usable, or, since a clock was wrong, not valid yet.
        """
        now = now or _now()
        wanted = issued.role != "client" or issued.allowed
        return wanted and (not issued.usable or now < issued.begins_at or issued.left(now) < _RENEW_BELOW)

    def has(self, role: Role, name: str) -> bool:
        """Whether there is a certificate of that name, in whatever state."""
        return self._file(role, name).exists()

    def issued(self) -> list[Issued]:
        """All certificates, agents first, by name."""
        found = []
        for role, folder in _FOLDERS.items():
            found += [self.find(role, unquote(path.stem)) for path in sorted((self.path / folder).glob("*.pem"))]
        return found

    def find(self, role: Role, name: str) -> Issued:
        """A certificate that was issued.

        Raises:
            DamagedCertificateError: it cannot be read.
            UsageError: there is none of that name.
        """
        from cryptography import x509  # noqa: PLC0415

        path = self._file(role, name)
        try:
            certificate = x509.load_pem_x509_certificate(read_file("keys", path))
            hosts = () if role == "client" else _hosts_of(certificate)
        except _unreadable() as error:
            raise DamagedCertificateError(f"keys: '{path}': damaged certificate: {one_line(error)}") from error
        return Issued(
            role,
            name,
            path,
            hosts,
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
            role == "client" and name in read_names("keys", self.allowed),
            self._usable(certificate, path.with_suffix(".key")),
        )

    def _usable(self, certificate: x509.Certificate, key: Path) -> bool:
        """Whether a certificate is this authority's, and a file holds its key."""
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

        refused: tuple[type[Exception], ...] = (*_unreadable(), InvalidSignature, UsageError)
        try:
            certificate.verify_directly_issued_by(self._certificate)
            return load_pem_private_key(read_secret("keys", key), None).public_key() == certificate.public_key()
        except refused:
            return False

    def expires_at(self) -> datetime.datetime:
        """Until when the authority's own certificate is valid."""
        return self._certificate.not_valid_after_utc

    def _file(self, role: Role, name: str) -> Path:
        return self.path / _FOLDERS[role] / f"{quote(name, safe='')}.pem"

    def _issue(self, role: Role, name: str, hosts: Sequence[str], days: float) -> Issued:
        _check_name(name)
        self._check_clock()
        key = _new_key()
        builder = _builder(_named(name), self._certificate.subject, key, days, until=self.expires_at())
        certificate = _sign(_leaf_extensions(builder, role, name, hosts, key, self._certificate), self._key)
        path = self._file(role, name)
        path.parent.mkdir(exist_ok=True, mode=_PRIVATE_FOLDER)
        with _locked(self.path):  # a certificate and its key come from one and the same
            replace_file(path.with_suffix(".key"), _key_pem(key), _PRIVATE_FILE)
            replace_file(path, certificate, _PUBLIC_FILE)
        return self.find(role, name)

    def _check_clock(self) -> None:
        begin, end, now = self._certificate.not_valid_before_utc, self.expires_at(), _now()
        if not begin <= now < end:
            problem = "has expired" if now >= end else "is not valid yet"
            raise UsageError(
                f"keys: the authority '{self.certificate}' {problem}: it is valid from {begin:%Y-%m-%d %H:%M} to "
                f"{end:%Y-%m-%d %H:%M} UTC, and this machine's clock says {now:%Y-%m-%d %H:%M}: set the clock, or make "
                "another authority and give its ca.pem to all"
            )

    @contextlib.contextmanager
    def _list(self) -> Iterator[set[str]]:
        """The names that are let in, to be changed by one at a time."""
        with _locked(self.path):
            names = set(read_names("keys", self.allowed))
            yield names
            replace_file(self.allowed, "".join(f"{name}\n" for name in sorted(names)).encode(), _PUBLIC_FILE)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """A folder in which only one at a time changes something, of whichever process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _unreadable() -> tuple[type[Exception], ...]:
    """What cryptography raises for what is no certificate or key, or one of a kind that is not made here."""
    from cryptography import x509  # noqa: PLC0415
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415

    unexpected = (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)
    return ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm, *unexpected


def _need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401, PLC0415
    except ImportError as error:
        raise MissingExtraError("cryptography", "secure", "making keys and certificates") from error


def _check_name(name: str) -> None:
    if not name.strip() or name != name.strip() or not name.isprintable() or "#" in name or len(name.encode()) > 64:
        raise UsageError(
            f"name: got '{one_line(name, 100)}', expected 1 to 64 printable characters (bytes in UTF-8) without '#'"
        )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _new_key() -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    return ec.generate_private_key(ec.SECP256R1())


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization as form  # noqa: PLC0415

    return key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    days: float,
    until: datetime.datetime | None = None,
) -> x509.CertificateBuilder:
    """What all certificates have in common; none outlives its issuer."""
    from cryptography import x509  # noqa: PLC0415

    now = _now()
    end = now + datetime.timedelta(days=days)
    begin = min(now, end) - _EARLIER
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end if until is None else min(end, until))
    )


def _named(name: str) -> x509.Name:
    from cryptography import x509  # noqa: PLC0415

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509  # noqa: PLC0415

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_extensions(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    from cryptography import x509  # noqa: PLC0415

    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _leaf_extensions(
    builder: x509.CertificateBuilder,
    role: Role,
    name: str,
    hosts: Sequence[str],
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate,
) -> x509.CertificateBuilder:
    """An agent may not pass for a client, nor a client for an agent."""
    from cryptography import x509  # noqa: PLC0415
    from cryptography.x509.oid import ExtendedKeyUsageOID  # noqa: PLC0415

    usage = ExtendedKeyUsageOID
    uri = x509.UniformResourceIdentifier(f"hmarl://{role}/{quote(name, safe='')}")
    own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([usage.CLIENT_AUTH if role == "client" else usage.SERVER_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName([uri, *map(_host, hosts)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own), critical=False)
    )


def _host(text: str) -> x509.GeneralName:
    from cryptography import x509  # noqa: PLC0415

    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    if len(text) > 253 or _HOST.fullmatch(text) is None:
        raise UsageError(f"host: got '{text[:100]}', expected a host name or an IP address")
    return x509.DNSName(text)


def _hosts_of(certificate: x509.Certificate) -> tuple[str, ...]:
    from cryptography import x509  # noqa: PLC0415

    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return tuple(str(each.value) for each in names if isinstance(each, x509.DNSName | x509.IPAddress))


def _sign(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415

    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
