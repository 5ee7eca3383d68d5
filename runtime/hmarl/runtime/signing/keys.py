"""Keys and certificates that sign bundles, and those that are trusted (OMS 1.0, sections 4.1 and 8.2).

Elliptic curves P-256, P-384 and P-521, ECDSA with the hash of the curve's size: the specification knows no other keys.
A key is called by its fingerprint: the SHA-256 of its public half as PEM, which signatures carry as a hint.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from hmarl.runtime._files import sync_directory
from hmarl.runtime.errors import UsageError, one_line
from hmarl.runtime.secret_files import check_secret
from hmarl.runtime.signing.envelope import Envelope, read_envelope, signed_bytes, write_envelope
from hmarl.runtime.signing.statement import SignedFiles, read_statement, write_statement

if TYPE_CHECKING:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509 import Certificate

PASSPHRASE_VARIABLE = "HMARL_SIGNING_PASSPHRASE"
_PEM_LIMIT_BYTES = 2**20
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_CURVES = "P-256, P-384 or P-521"


def need_cryptography() -> None:
    """Refuse to go on without the extra ``secure``.

    Raises:
        UsageError: names it.
    """
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise UsageError("signatures need the package 'cryptography': pip install 'hmarl[secure]'") from error


# --- signing ---------------------------------------------------------------------------------------------------------


class Signer:
    """A private key, and the certificates that vouch for it, if any.

    Args:
        key: PEM of the private key.
        passphrase: of an encrypted one.
        certificates: PEM of its certificate, followed by those of the authorities between it and the trusted one.

    Raises:
        UsageError: a file is missing or wrong.
    """

    def __init__(self, key: Path, passphrase: bytes | None = None, certificates: Path | None = None) -> None:
        need_cryptography()
        self._key = _private_key(key, passphrase)
        self._chain: list[Certificate] = []
        if certificates is not None:
            self._chain = [each for each in _pem_objects(certificates) if _is_certificate(each)]
            if not self._chain or self._chain[0].public_key() != self._key.public_key():
                raise UsageError(f"{certificates}: got no certificate of the key in {key} at its beginning")
            try:
                _check_may_sign(self._chain[0])
            except ValueError as error:
                raise UsageError(f"{certificates}: {error}") from error

    @property
    def name(self) -> str:
        """Whose signatures these are, as whoever checks them will call it."""
        return _certificate_name(self._chain[0]) if self._chain else f"key {fingerprint(self._key.public_key())}"

    def sign(self, model: str, digests: Mapping[str, str], signature: str) -> bytes:
        """The content of a signature file.

        Args:
            model: what the bundle is called.
            digests: hex SHA-256 by file.
            signature: the name of the file.
        """
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding

        payload, public = write_statement(model, digests, signature), self._key.public_key()
        made = self._key.sign(signed_bytes(payload), ec.ECDSA(_hash_of(public)))
        chain = tuple(each.public_bytes(Encoding.DER) for each in self._chain)
        return write_envelope(Envelope(payload, made, fingerprint(public), chain))


def read_passphrase(path: Path | None) -> bytes | None:
    """The passphrase in a file, without the end of its line; else the environment's; None where there is none.

    Raises:
        UsageError: the file cannot be read.
    """
    if path is not None:
        return _content(path, "--passphrase-file").rstrip(b"\r\n")
    given = os.environ.get(PASSPHRASE_VARIABLE)
    return None if given is None else given.encode()


def new_key(path: Path, passphrase: bytes | None = None) -> tuple[Path, str]:
    """Make a key pair (P-256): the private key in ``path``, for its owner's eyes alone, the public one beside it.

    Returns:
        The public key's path, NAME.pub.pem for NAME.pem, and the fingerprint.

    Raises:
        UsageError: one of the files is there already, or cannot be written.
    """
    need_cryptography()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    hidden: Any = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden)
    public_path = path.with_name(f"{path.stem}.pub.pem")
    _write_new(public_path, _public_pem(key.public_key()), 0o644)
    try:
        _write_new(path, private, 0o600)
    except BaseException:
        public_path.unlink()
        raise
    return public_path, fingerprint(key.public_key())


def _write_new(path: Path, content: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError as error:
        raise UsageError(f"{path}: it is there already, and no key is ever replaced; choose another path") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot write: {error.strerror}") from error
    try:
        with open(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        path.unlink()
        raise
    sync_directory(path.absolute().parent)


def _private_key(path: Path, passphrase: bytes | None) -> ec.EllipticCurvePrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = _content(path, "--key")
    encrypted = b"ENCRYPTED" in content
    if encrypted and not passphrase:
        raise UsageError(
            f"{path}: got an encrypted key without its passphrase, expected that in the file that --passphrase-file "
            f"names, or in {PASSPHRASE_VARIABLE}"
        )
    try:
        key = load_pem_private_key(content, passphrase if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        wrong = "a key that this passphrase does not open" if encrypted else "no PEM of a private key"
        raise UsageError(f"{path}: got {wrong}, expected a private key, as hmarl-sign --new-key makes one") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UsageError(f"{path}: got a key that is of no elliptic curve, expected one of {_CURVES}")
    _check_curve(path, key.public_key())
    return key


# --- trusting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Signed:
    """A signature that has been checked.

    Attributes:
        by: whose it is: ``key FINGERPRINT``, or ``certificate NAME (FINGERPRINT)``.
        files: what was signed.
    """

    by: str
    files: SignedFiles


class Trust:
    """The public keys and certificate authorities whose signatures are taken.

    Args:
        paths: PEM files, each with one or more public keys or certificates.

    Raises:
        UsageError: none is given, or a file is missing or holds something else.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        need_cryptography()
        if not paths:
            raise UsageError("trust: got no file, expected at least one with a public key or a certificate")
        self._keys: dict[str, ec.EllipticCurvePublicKey] = {}
        self._authorities: list[Certificate] = []
        for path in map(Path, paths):
            for found in _pem_objects(path):
                if _is_certificate(found):
                    self._authorities.append(found)
                else:
                    _check_curve(path, found)
                    self._keys[fingerprint(found)] = found

    @property
    def expected(self) -> str:
        """Whose signatures are taken, in words."""
        authorities = [f"a key that {_certificate_name(each)} vouches for" for each in self._authorities]
        return " or ".join([*(f"key {name}" for name in self._keys), *authorities])

    def check(self, content: bytes) -> Signed:
        """What a signature file says was signed, once the signature has been checked; before, none of it is looked at.

        Raises:
            ValueError: it is no such file, or the signature is by another key, or was changed.
        """
        envelope = read_envelope(content)
        by = self._check_chain(envelope) if envelope.certificates else self._check_key(envelope)
        return Signed(by, read_statement(envelope.payload))

    def _check_key(self, envelope: Envelope) -> str:
        for name, key in self._keys.items():
            if _is_signed(key, envelope):
                return f"key {name}"
        if envelope.hint in self._keys:
            raise ValueError(f"the signature is not by key {envelope.hint}, as it says: it was changed")
        hint = "" if envelope.hint is None else f" {ascii(envelope.hint[:100])[1:-1]}"
        raise ValueError(f"got a signature by key{hint}, expected one by {self.expected}")

    def _check_chain(self, envelope: Envelope) -> str:
        from cryptography import x509
        from cryptography.x509.verification import ExtensionPolicy, PolicyBuilder, Store

        try:
            leaf, *others = [x509.load_der_x509_certificate(each) for each in envelope.certificates]
            name, key = _certificate_name(leaf), leaf.public_key()
        except Exception as error:  # extensions and keys are parsed as they are read, and raise many unrelated types
            raise ValueError(f"a certificate that cannot be read: {one_line(error)}") from error
        if not self._authorities:
            raise ValueError(f"got a signature by {name}, expected one by {self.expected}")
        now = datetime.now(UTC)
        begin, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
        if not begin <= now <= end:
            raise ValueError(f"{name} is valid from {begin:%F %T} to {end:%F %T}, and it is {now:%F %T} (UTC)")
        policy = PolicyBuilder().store(Store(self._authorities)).time(now)
        policy = policy.extension_policies(
            ca_policy=ExtensionPolicy.webpki_defaults_ca(), ee_policy=ExtensionPolicy.permit_all()
        )
        try:
            policy.build_client_verifier().verify(leaf, others)
        except Exception as error:  # also of an extension that cannot be read
            raise ValueError(
                f"got a signature by {name}, expected one by {self.expected}: {one_line(error)}"
            ) from error
        _check_may_sign(leaf)
        if not _has_known_curve(key) or not _is_signed(key, envelope):
            raise ValueError(f"the signature is not by {name}, as it says: it was changed")
        return name


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """What a key is called: hex SHA-256 of its PEM."""
    return hashlib.sha256(_public_pem(key)).hexdigest()


def _public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _is_signed(key: ec.EllipticCurvePublicKey, envelope: Envelope) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key.verify(envelope.signature, signed_bytes(envelope.payload), ec.ECDSA(_hash_of(key)))
    except InvalidSignature:
        return False
    return True


def _hash_of(key: ec.EllipticCurvePublicKey) -> hashes.HashAlgorithm:
    from cryptography.hazmat.primitives import hashes

    sizes: dict[int, hashes.HashAlgorithm] = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}
    return sizes[key.curve.key_size]


def _has_known_curve(key: object) -> TypeGuard[ec.EllipticCurvePublicKey]:
    from cryptography.hazmat.primitives.asymmetric import ec

    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(
        key.curve, ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1
    )


def _check_curve(path: Path, key: object) -> None:
    if not _has_known_curve(key):
        kind = getattr(getattr(key, "curve", None), "name", type(key).__name__)
        raise UsageError(f"{path}: got a key of kind {kind}, expected one of {_CURVES}")


def _is_certificate(found: object) -> bool:
    from cryptography.x509 import Certificate

    return isinstance(found, Certificate)


def _certificate_name(certificate: Certificate) -> str:
    from cryptography.hazmat.primitives.hashes import SHA256

    subject = one_line(certificate.subject.rfc4514_string(), 200)
    return f"certificate {subject} ({certificate.fingerprint(SHA256()).hex()})"


def _check_may_sign(leaf: Certificate) -> None:
    """Refuse certificates for anything but signing, such as those by which a server or a client is known.

    Raises:
        ValueError: it is one.
    """
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    try:
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
        purposes = list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        usage, purposes = False, []
    except Exception as error:  # extensions are parsed as they are read, and raise many unrelated types
        raise ValueError(f"a certificate that cannot be read: {one_line(error)}") from error
    if not usage or ExtendedKeyUsageOID.CODE_SIGNING not in purposes:
        raise ValueError(
            f"{_certificate_name(leaf)} is not for signing, expected key usage digitalSignature and extended "
            "key usage codeSigning"
        )


def _pem_objects(path: Path) -> list[Any]:
    """Public keys and certificates of a file, in its order.

    Raises:
        UsageError: it holds none, or something else.
    """
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from cryptography.x509 import load_pem_x509_certificate

    readers = {b"PUBLIC KEY": load_pem_public_key, b"CERTIFICATE": load_pem_x509_certificate}
    found = []
    for block in _PEM.finditer(_content(path)):
        reader = readers.get(block[1])
        if reader is None:
            raise UsageError(
                f"{path}: got '{block[1].decode()}', expected PEM of public keys or certificates"
                + ("; keep private keys private" if b"PRIVATE" in block[1] else "")
            )
        try:
            found.append(reader(block[0]))
        except Exception as error:  # many unrelated types
            raise UsageError(f"{path}: a {block[1].decode().lower()} that cannot be read: {one_line(error)}") from error
    if not found:
        raise UsageError(
            f"{path}: got no PEM, expected public keys or certificates, as hmarl-sign --new-key makes them"
        )
    return found


def _content(path: Path, secret: str | None = None) -> bytes:
    """A small file of the user's, which may be a pipe.

    Args:
        path: where it is.
        secret: the option that names it, of one that others must not be able to read.

    Raises:
        UsageError: it cannot be read, or is large; or others may read a secret.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(_PEM_LIMIT_BYTES + 1)
            if secret is not None:
                check_secret(secret, path, os.fstat(stream.fileno()), content)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot read: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > _PEM_LIMIT_BYTES:
        raise UsageError(f"{path}: got more than {_PEM_LIMIT_BYTES:,} bytes, expected keys or certificates")
    return content
