"""Which keys and certificates sign and are trusted, and what is said of those that are not."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from hmarl.runtime.errors import UsageError
from hmarl.runtime.signing import keys
from hmarl.runtime.signing.envelope import read_envelope
from hmarl.runtime.signing.keys import Signer, Trust, new_key, read_passphrase
from signing_keys import DAY, Certified, certify, write_certificates, write_private, write_public

DIGESTS = {"a": "ab" * 32}
VECTORS = Path(__file__).parents[1] / "vectors" / "oms-1.0"


def sign(signer: Signer) -> bytes:
    return signer.sign("model", DIGESTS, "model.sig")


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_keys_of_the_specifications_curves_sign_and_are_trusted(tmp_path: Path, curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    public = write_public(tmp_path / "k.pub.pem", key)
    content = sign(Signer(write_private(tmp_path / "k.pem", key)))
    name = hashlib.sha256(public.read_bytes()).hexdigest()
    assert Trust([public]).check(content).by == f"key {name}"
    assert read_envelope(content).hint == name
    assert read_envelope(content).payload.count(b"ab" * 32) == 1


OTHER_KEYS: dict[str, Any] = {
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
    "RSA": rsa.generate_private_key(65537, 2048),
    "secp256k1": ec.generate_private_key(ec.SECP256K1()),
    "P-224": ec.generate_private_key(ec.SECP224R1()),
}


@pytest.mark.parametrize("kind", OTHER_KEYS)
def test_other_kinds_of_keys_are_refused_with_the_known_ones(tmp_path: Path, kind: str) -> None:
    key = OTHER_KEYS[kind]
    for refused in (
        lambda: Signer(write_private(tmp_path / "k.pem", key)),
        lambda: Trust([write_public(tmp_path / "k.pub.pem", key)]),
    ):
        with pytest.raises(UsageError, match=r"k\.(pub\.)?pem: got a key .*, expected one of P-256, P-384 or P-521"):
            refused()


def test_a_pair_is_made_once_and_the_private_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    public, name = new_key(tmp_path / "team.pem")
    assert (tmp_path / "team.pem").stat().st_mode & 0o777 == 0o600
    assert public == tmp_path / "team.pub.pem"
    assert name == hashlib.sha256(public.read_bytes()).hexdigest()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match="it is there already, and no key is ever replaced"):
        new_key(tmp_path / "team.pem")
    public.unlink()
    with pytest.raises(UsageError, match=r"team\.pem: it is there already"):
        new_key(tmp_path / "team.pem")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == {
        path: content for path, content in before.items() if path != public
    }
    with pytest.raises(UsageError, match="cannot write: No such file or directory"):
        new_key(tmp_path / "nowhere" / "team.pem")


def test_an_encrypted_key_opens_with_its_passphrase_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "correct horse battery staple"
    (tmp_path / "passphrase").touch(0o600)
    (tmp_path / "passphrase").write_text(secret + "\n")
    public, _ = new_key(tmp_path / "team.pem", read_passphrase(tmp_path / "passphrase"))
    assert b"ENCRYPTED" in (tmp_path / "team.pem").read_bytes()
    monkeypatch.setenv("HMARL_SIGNING_PASSPHRASE", secret)
    for given in (read_passphrase(tmp_path / "passphrase"), read_passphrase(None)):
        assert Trust([public]).check(sign(Signer(tmp_path / "team.pem", given))).by
    monkeypatch.delenv("HMARL_SIGNING_PASSPHRASE")
    with pytest.raises(UsageError, match=r"an encrypted key without its passphrase.*--passphrase-file.*HMARL_SIGNING"):
        Signer(tmp_path / "team.pem", read_passphrase(None))
    with pytest.raises(UsageError, match="got a key that this passphrase does not open") as wrong:
        Signer(tmp_path / "team.pem", b"another")
    assert "another" not in str(wrong.value)
    with pytest.raises(UsageError, match="nowhere: cannot read: No such file"):
        read_passphrase(tmp_path / "nowhere")


def test_what_openssl_makes_is_taken(tmp_path: Path) -> None:
    key, public = tmp_path / "k.pem", tmp_path / "k.pub.pem"
    for command in (
        ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-out", key],  # with its parameters before it
        ["openssl", "ec", "-in", key, "-pubout", "-out", public],
    ):
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
    assert Trust([public]).check(sign(Signer(key))).by


WRONG_FILES = {
    "missing": (None, "cannot read: No such file or directory"),
    "empty": (b"", "got no PEM"),
    "noise": (b"\x00\xff" * 100, "got no PEM"),
    "broken": (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "a public key that cannot be read"),
    "broken certificate": (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cannot be read"),
    "something else": (b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", "got 'X509 CRL'"),
    "large": (b"a" * (2**20 + 1), "got more than 1,048,576 bytes"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_a_wrong_file_is_named_with_exit_code_2(tmp_path: Path, case: str) -> None:
    content, message = WRONG_FILES[case]
    if content is not None:
        (tmp_path / "k.pem").touch(0o600)
        (tmp_path / "k.pem").write_bytes(content)
    with pytest.raises(UsageError, match=r"k\.pem: ") as error:
        Trust([tmp_path / "k.pem"])
    assert message in str(error.value)
    with pytest.raises(UsageError, match=r"k\.pem: "):
        Signer(tmp_path / "k.pem")


def test_a_private_key_is_not_taken_for_a_public_one(tmp_path: Path) -> None:
    new_key(tmp_path / "team.pem")
    with pytest.raises(
        UsageError, match=r"got 'PRIVATE KEY', expected PEM of public keys .*; keep private keys private"
    ):
        Trust([tmp_path / "team.pem"])
    with pytest.raises(UsageError, match="got no PEM of a private key, expected a private key"):
        Signer(tmp_path / "team.pub.pem")


def test_no_key_is_no_trust() -> None:
    """A list that turns out empty must not mean that anything goes."""
    with pytest.raises(UsageError, match="trust: got no file, expected at least one"):
        Trust([])


def test_without_the_extra_one_line_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for use in (lambda: Trust([tmp_path]), lambda: Signer(tmp_path), lambda: new_key(tmp_path / "k.pem")):
        with pytest.raises(UsageError, match=r"signatures need .* pip install 'hmarl\[secure\]'"):
            use()
    assert keys.read_passphrase(None) is None


# --- certificates ----------------------------------------------------------------------------------------------------


@pytest.fixture
def root() -> Certified:
    return certify("the team's authority", authority=True)


def signer_of(folder: Path, *chain: Certified) -> Signer:
    """Signs with the first one's key and certificate; the others follow it."""
    return Signer(
        write_private(folder / "leaf.pem", chain[0].key), None, write_certificates(folder / "chain.pem", chain)
    )


def trust_of(folder: Path, *authorities: Certified) -> Trust:
    return Trust([write_certificates(folder / "ca.pem", authorities)])


def test_a_certificate_of_a_trusted_authority_signs(tmp_path: Path, root: Certified) -> None:
    middle = certify("its deputy", root, authority=True)
    for chain in (
        (certify("maker", root),),
        (certify("maker", middle), middle),
        (certify("maker", middle), middle, root),
    ):
        content = sign(signer_of(tmp_path, *chain))
        name = f"certificate CN=maker ({hashlib.sha256(chain[0].certificate.public_bytes(Encoding.DER)).hexdigest()})"
        assert trust_of(tmp_path, root).check(content).by == name
        assert trust_of(tmp_path, certify("a stranger", authority=True), root).check(content).by == name


def refusal(folder: Path, content: bytes, *authorities: Certified) -> str:
    with pytest.raises(ValueError, match="certificate") as error:
        trust_of(folder, *authorities).check(content)
    return str(error.value)


def test_a_certificate_of_another_authority_is_refused(tmp_path: Path, root: Certified) -> None:
    content = sign(signer_of(tmp_path, certify("maker", root)))
    same_name = certify("the team's authority", authority=True)
    for stranger in (same_name, certify("a stranger", authority=True)):
        line = refusal(tmp_path, content, stranger)
        assert "got a signature by certificate CN=maker" in line
        assert f"a key that certificate {stranger.certificate.subject.rfc4514_string()}" in line
    with pytest.raises(ValueError, match=r"got a signature by certificate CN=maker .*, expected one by key"):
        Trust([new_key(tmp_path / "k.pem")[0]]).check(content)
    middle = certify("its deputy", root, authority=True)
    refusal(tmp_path, sign(signer_of(tmp_path, certify("maker", middle))), root)  # without the one between


def test_an_authority_is_no_key_of_a_signature(tmp_path: Path, root: Certified) -> None:
    content = sign(Signer(write_private(tmp_path / "k.pem", ec.generate_private_key(ec.SECP256R1()))))
    assert "a key that certificate" in refusal(tmp_path, content, root)


@pytest.mark.parametrize(("begin", "end"), [(-2 * DAY, -DAY), (DAY, 2 * DAY)], ids=["expired", "not yet valid"])
def test_a_certificate_outside_its_time_is_refused(
    tmp_path: Path, root: Certified, begin: timedelta, end: timedelta
) -> None:
    content = sign(signer_of(tmp_path, certify("maker", root, begin=begin, end=end)))
    assert "is valid from" in refusal(tmp_path, content, root)


def test_an_authority_outside_its_time_is_refused(tmp_path: Path) -> None:
    root = certify("old", authority=True, begin=-3 * DAY, end=-DAY)
    refusal(tmp_path, sign(signer_of(tmp_path, certify("maker", root))), root)


@pytest.mark.parametrize("purpose", [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH, None])
def test_a_certificate_for_something_else_does_not_sign(
    tmp_path: Path, root: Certified, monkeypatch: pytest.MonkeyPatch, purpose: x509.ObjectIdentifier | None
) -> None:
    """A robot that has a certificate for TLS of the same authority makes no bundles for the others."""
    robot = certify("robot", root, purpose=purpose)
    with pytest.raises(UsageError, match=r"is not for signing, expected key usage digitalSignature and .* codeSigning"):
        signer_of(tmp_path, robot)
    with monkeypatch.context() as patch:
        patch.setattr(keys, "_check_may_sign", lambda leaf: None)  # a signer that does not ask
        content = sign(signer_of(tmp_path, robot))
    assert "is not for signing" in refusal(tmp_path, content, root)


def test_a_makers_certificate_vouches_for_no_other(tmp_path: Path, root: Certified) -> None:
    maker = certify("maker", root)
    refusal(tmp_path, sign(signer_of(tmp_path, certify("a friend", maker), maker)), root)


def test_a_certificate_of_another_key_is_refused(tmp_path: Path, root: Certified) -> None:
    maker, friend = certify("maker", root), certify("friend", root)
    chain = write_certificates(tmp_path / "chain.pem", [friend, maker])
    with pytest.raises(UsageError, match=r"chain\.pem: got no certificate of the key in .*leaf\.pem at its beginning"):
        Signer(write_private(tmp_path / "leaf.pem", maker.key), None, chain)
    content = sign(signer_of(tmp_path, maker))
    theirs = friend.certificate.public_bytes(Encoding.DER)
    exchanged = content.replace(
        base64.b64encode(maker.certificate.public_bytes(Encoding.DER)), base64.b64encode(theirs)
    )
    assert exchanged != content
    assert "is not by certificate CN=friend" in refusal(tmp_path, exchanged, root)


# --- the specification's own test vectors ----------------------------------------------------------------------------


def intermediate_of_vector(folder: Path) -> tuple[Path, Path]:
    """The authority of the specification's certificate, and the key of both methods."""
    leaf, authority = (
        x509.load_der_x509_certificate(each)
        for each in read_envelope((VECTORS / "valid" / "certificate.bundle.json").read_bytes()).certificates
    )
    (folder / "ca.pem").write_bytes(authority.public_bytes(Encoding.PEM))
    public = leaf.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "key.pub.pem").write_bytes(public)
    return folder / "ca.pem", folder / "key.pub.pem"


@pytest.mark.parametrize("method", ["key", "certificate"])
def test_the_specifications_signatures_are_taken_for_their_model(tmp_path: Path, method: str) -> None:
    authority, public = intermediate_of_vector(tmp_path)
    trust = Trust([public if method == "key" else authority])
    signed = trust.check((VECTORS / "valid" / f"{method}.bundle.json").read_bytes())
    assert signed.by.startswith(method)
    assert signed.files.pieces.keys() == {"signme-1", "signme-2"}
    assert signed.files.match("signme-1", b"signme-1\n")
    assert signed.files.match("signme-2", b"signme-2")
    assert not signed.files.match("signme-1", b"signme-2")
    assert not signed.files.match("signme-3", b"signme-1\n")


@pytest.mark.parametrize(
    "vector", sorted(path.relative_to(VECTORS).as_posix() for path in VECTORS.glob("invalid*/*.json"))
)
def test_the_specifications_invalid_files_are_refused(tmp_path: Path, vector: str) -> None:
    trust = Trust(intermediate_of_vector(tmp_path))
    with pytest.raises(ValueError, match=r"."):
        trust.check((VECTORS / vector).read_bytes())


def test_a_signature_of_sigstores_service_is_refused_with_the_reason(tmp_path: Path) -> None:
    """It is valid, but not to be checked without that service."""
    trust = Trust(intermediate_of_vector(tmp_path))
    with pytest.raises(ValueError, match="got the material of Sigstore's service, expected either publicKey or x509"):
        trust.check((VECTORS / "valid" / "sigstore.bundle.json").read_bytes())
