"""The signature file: a Sigstore bundle around a DSSE envelope (OMS 1.0, section 4). Read and written, not judged."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from hmarl.runtime.signing.strict_json import read_strictly

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_MEDIA_TYPES = re.compile(r"application/vnd\.dev\.sigstore\.bundle(\.v0\.[0-9]+\+json|\+json;version=0\.[0-9]+)")
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_CERTIFICATES_LIMIT = 10
_Text = Annotated[str, msgspec.Meta(min_length=1)]


class _Signature(msgspec.Struct, forbid_unknown_fields=True):
    sig: _Text
    keyid: str | None = None  # means nothing


class _Envelope(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    payload: _Text
    payload_type: str
    signatures: Annotated[list[_Signature], msgspec.Meta(min_length=1, max_length=1)]


class _PublicKey(msgspec.Struct, rename="camel"):
    hint: str | None = None
    raw_bytes: str | None = None  # of old signatures


class _Certificate(msgspec.Struct, rename="camel"):
    raw_bytes: _Text


class _Chain(msgspec.Struct):
    certificates: Annotated[list[_Certificate], msgspec.Meta(min_length=1, max_length=_CERTIFICATES_LIMIT)]


class _Material(msgspec.Struct, rename="camel"):
    public_key: _PublicKey | None = None
    x509_certificate_chain: _Chain | None = None
    certificate: _Certificate | None = None


class _Bundle(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    media_type: str
    verification_material: _Material
    dsse_envelope: _Envelope


@dataclass(frozen=True)
class Envelope:
    """What a signature file holds.

    Attributes:
        payload: the statement.
        signature: of ``signed_bytes(payload)``.
        hint: what the signer calls its key, by which nothing is trusted; None where there is none.
        certificates: DER of the signer's certificate and of those that vouch for it; empty for a key alone.
    """

    payload: bytes
    signature: bytes
    hint: str | None = None
    certificates: tuple[bytes, ...] = ()


def signed_bytes(payload: bytes) -> bytes:
    """What is signed for a payload: the pre-authentication encoding of DSSE 1.0."""
    return b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload)


def write_envelope(envelope: Envelope) -> bytes:
    """The signature file."""
    material: dict[str, Any] = {"publicKey": {"hint": envelope.hint}}
    if envelope.certificates:
        chain = [{"rawBytes": _encoded(each)} for each in envelope.certificates]
        material = {"x509CertificateChain": {"certificates": chain}}
    document = {
        "mediaType": _MEDIA_TYPE,
        "verificationMaterial": {**material, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": _encoded(envelope.payload),
            "payloadType": _PAYLOAD_TYPE,
            "signatures": [{"sig": _encoded(envelope.signature), "keyid": ""}],
        },
    }
    return (json.dumps(document, indent=2) + "\n").encode()


def read_envelope(content: bytes) -> Envelope:
    """What a signature file holds.

    Raises:
        ValueError: it is none of the specification's, or was made with Sigstore's service, which cannot be checked
            without a network.
    """
    document = read_strictly(content, _Bundle)
    if _MEDIA_TYPES.fullmatch(document.media_type) is None:
        raise ValueError(f"mediaType: got {document.media_type[:100]!a}, expected '{_MEDIA_TYPE}'")
    envelope, material = document.dsse_envelope, document.verification_material
    if envelope.payload_type != _PAYLOAD_TYPE:
        raise ValueError(f"payloadType: got {envelope.payload_type[:100]!a}, expected '{_PAYLOAD_TYPE}'")
    key, chain = material.public_key, material.x509_certificate_chain
    if (key is None) == (chain is None) or material.certificate is not None:
        what = "the material of Sigstore's service" if material.certificate is not None else "none or several"
        raise ValueError(f"verificationMaterial: got {what}, expected either publicKey or x509CertificateChain")
    if key is not None and key.hint is None and key.raw_bytes is None:
        raise ValueError("publicKey: got neither, expected hint or rawBytes")
    certificates: Sequence[_Certificate] = [] if chain is None else chain.certificates
    return Envelope(
        payload=_decoded("payload", envelope.payload),
        signature=_decoded("sig", envelope.signatures[0].sig),
        hint=None if key is None else key.hint,
        certificates=tuple(_decoded("rawBytes", each.raw_bytes) for each in certificates),
    )


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _decoded(field: str, text: str) -> bytes:
    """Base64 of either alphabet, as DSSE has it."""
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/").encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise ValueError(f"{field}: not Base64: {error}") from error
