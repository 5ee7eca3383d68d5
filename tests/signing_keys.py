"""Keys and certificates for tests of signed bundles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hmarl.runtime.signing.envelope import Envelope, signed_bytes, write_envelope

DAY = timedelta(days=1)


def write_private(path: Path, key: Any) -> Path:
    path.touch(0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


def write_public(path: Path, key: Any) -> Path:
    path.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


def envelope_of(key: ec.EllipticCurvePrivateKey, payload: bytes, **fields: Any) -> bytes:
    """A signature file around any payload, signed by a key of P-256."""
    made = key.sign(signed_bytes(payload), ec.ECDSA(hashes.SHA256()))
    return write_envelope(Envelope(**{"payload": payload, "signature": made, "hint": "whatever", **fields}))


@dataclass(frozen=True)
class Certified:
    """A key and its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def certify(
    name: str,
    issuer: Certified | None = None,
    *,
    authority: bool = False,
    purpose: x509.ObjectIdentifier | None = ExtendedKeyUsageOID.CODE_SIGNING,
    begin: timedelta = -DAY,
    end: timedelta = DAY,
) -> Certified:
    """A new key and its certificate: of an authority, or for a purpose; signed by ``issuer``, or by itself."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    vouching = Certified(key, None) if issuer is None else issuer  # type: ignore[arg-type]
    others = "content_commitment key_encipherment data_encipherment key_agreement crl_sign encipher_only decipher_only"
    usage = dict.fromkeys(others.split(), False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begin)
        .not_valid_after(now + end)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=not authority, key_cert_sign=authority, **usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(vouching.key.public_key()), critical=False)
    )
    if purpose is not None and not authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    return Certified(key, builder.sign(vouching.key, hashes.SHA256()))


def write_certificates(path: Path, certified: Sequence[Certified]) -> Path:
    path.write_bytes(b"".join(each.certificate.public_bytes(Encoding.PEM) for each in certified))
    return path
