"""Signatures beside the reference implementation of the OpenSSF Model Signing specification, PyPI's model-signing: it
checks ours, we check its, and both judge what was changed and the specification's own test vectors.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from command_lines import run_in_pipes
from hmarl.runtime.bundle import SIGNATURE, load_bundle
from hmarl.runtime.errors import BundleError
from hmarl.runtime.signing.envelope import read_envelope
from hmarl.runtime.signing.keys import Trust, new_key
from signing_keys import certify, envelope_of, write_certificates, write_private, write_public
from toy_bundle import write_toy_bundle

pytestmark = pytest.mark.peers

# model-signing 1.1.1 imports the latter two and does not say so.
REQUIREMENTS = ("model-signing==1.1.1", "pyopenssl==26.4.0", "certifi==2026.10.19.post1")
VECTORS = Path(__file__).parents[1] / "vectors" / "oms-1.0"
_SIGN_OTHERWISE = """
import sys
from model_signing import hashing, signing
bundle, key, method = sys.argv[1:]
config = hashing.Config().set_ignored_paths(paths=["model.sig"])
if method == "shards":
    config.use_shard_serialization(shard_size=1000)
else:
    config.use_file_serialization(hashing_algorithm="blake2")
signing.Config().use_elliptic_key_signer(private_key=key).set_hashing_config(config).sign(bundle, bundle + "/model.sig")
"""


@dataclass
class Peer:
    """Both programs, and what they said."""

    python: Path
    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def theirs(self, *words: object) -> subprocess.CompletedProcess[str]:
        program = self.python.with_name("model_signing")
        return subprocess.run([program, *map(str, words)], capture_output=True, text=True, check=False, timeout=120)

    def compare(self, case: str, bundle: Path, key: Path, authority: bool = False) -> tuple[bool, bool]:
        """Whether we, and they, take a bundle that this key, or authority, is to have signed."""
        code, _, error = run_in_pipes("hmarl-verify", bundle, "--trust", key)
        assert code in (0, 3), error
        how = ["certificate", "--certificate_chain"] if authority else ["key", "--public_key"]
        done = self.theirs("verify", how[0], bundle, "--signature", bundle / SIGNATURE, how[1], key)
        said = "taken" if code == 0 else error.removeprefix(f"hmarl-verify: bundle {bundle}: ").strip()
        their_words = "taken" if done.returncode == 0 else f"refused, {done.returncode}"
        self.rows.append((case, said, their_words))
        return code == 0, done.returncode == 0


@pytest.fixture(scope="module")
def peer(peer_python: Callable[[str, Sequence[str]], Path]) -> Iterator[Peer]:
    found = Peer(peer_python("model-signing", REQUIREMENTS))
    yield found
    print("\n\n| case | `hmarl-verify --trust` | `model_signing verify` |\n|---|---|---|")
    for row in found.rows:
        print(f"| {' | '.join(row)} |")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_toy_bundle(tmp_path / "bundle").path


def signed(bundle: Path, *words: object) -> None:
    code, _, error = run_in_pipes("hmarl-sign", bundle, *words)
    assert code == 0, error


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_they_take_our_keys_signatures(peer: Peer, bundle: Path, tmp_path: Path, curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    public = write_public(tmp_path / "k.pub.pem", key)
    signed(bundle, "--key", write_private(tmp_path / "k.pem", key))
    assert peer.compare(f"signed by hmarl-sign, {curve.name}", bundle, public) == (True, True)


def test_they_take_our_certificates_signatures(peer: Peer, bundle: Path, tmp_path: Path) -> None:
    root = certify("root", authority=True)
    deputy = certify("deputy", root, authority=True)
    maker = certify("maker", deputy)
    chain = write_certificates(tmp_path / "chain.pem", [maker, deputy])
    signed(bundle, "--key", write_private(tmp_path / "k.pem", maker.key), "--certificate", chain)
    authority = write_certificates(tmp_path / "ca.pem", [root])
    assert peer.compare("signed by hmarl-sign, certificate", bundle, authority, authority=True) == (True, True)
    stranger = write_certificates(tmp_path / "other.pem", [certify("root", authority=True)])
    assert peer.compare("the same, another authority", bundle, stranger, authority=True) == (False, False)


def test_they_take_a_zip_that_we_signed_once_it_is_unpacked(peer: Peer, tmp_path: Path) -> None:
    packed = write_toy_bundle(tmp_path / "b.zip").path
    public, _ = new_key(tmp_path / "k.pem")
    signed(packed, "--key", tmp_path / "k.pem")
    assert load_bundle(packed, public).signed_by is not None
    zipfile.ZipFile(packed).extractall(tmp_path / "unpacked")
    assert peer.compare("a zip signed by hmarl-sign, unpacked", tmp_path / "unpacked", public) == (True, True)


@pytest.mark.parametrize("how", ["key", "certificate", "blake2b", "shards"])
def test_we_take_their_signatures(peer: Peer, bundle: Path, tmp_path: Path, how: str) -> None:
    root = certify("root", authority=True)
    maker = certify("maker", root)
    key, public = write_private(tmp_path / "k.pem", maker.key), write_public(tmp_path / "k.pub.pem", maker.key)
    certificate = write_certificates(tmp_path / "maker.pem", [maker])
    authority = write_certificates(tmp_path / "ca.pem", [root])
    if how in ("key", "certificate"):
        more = ["--signing_certificate", certificate, "--certificate_chain", authority] * (how == "certificate")
        done = peer.theirs("sign", how, bundle, "--private_key", key, *more, "--signature", bundle / SIGNATURE)
    else:
        words = [str(peer.python), "-c", _SIGN_OTHERWISE, str(bundle), str(key), how]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    trust = authority if how == "certificate" else public
    ours, theirs = peer.compare(f"signed by model_signing, {how}", bundle, trust, how == "certificate")
    assert ours
    assert theirs or how in ("blake2b", "shards")  # with which 1.1.1 signs, and does not verify
    (bundle / "agents" / "agent_0.onnx").open("ab").write(b"x")
    assert peer.compare("the same, one byte more", bundle, trust, how == "certificate") == (False, False)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replace(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


CHANGES: dict[str, Callable[[Path], object]] = {
    "one byte of a graph changed": lambda path: flip(path / "agents" / "agent_0.onnx"),
    "one byte of the manifest changed": lambda path: flip(path / "manifest.json"),
    "unsigned": lambda path: (path / SIGNATURE).unlink(),
    "a file added": lambda path: (path / "agents" / "more.onnx").write_bytes(b"x"),
    "a file missing": lambda path: (path / "manifest.sha256").unlink(),
    "the signature cut": lambda path: (path / SIGNATURE).write_bytes((path / SIGNATURE).read_bytes()[:-200]),
    "one byte of the payload changed": lambda path: replace(path / SIGNATURE, b'"payload": "ey', b'"payload": "fy'),
    "a signature file of 100 MB": lambda path: (path / SIGNATURE).write_bytes(b'{"a": "' + b"a" * 10**8 + b'"}'),
    "deep JSON": lambda path: (path / SIGNATURE).write_bytes(b"[" * 10**6),
}
# What the specification lets clients ignore, or does not speak of; a bundle holds no such files.
STRICTER: dict[str, Callable[[Path], object]] = {
    "a file added to .git": lambda path: ((path / ".git").mkdir(), (path / ".git" / "hook").write_bytes(b"x")),
    "a key twice in the signature file": lambda path: replace(
        path / SIGNATURE, b'"mediaType"', b'"mediaType": "", "mediaType"'
    ),
}


@pytest.mark.parametrize("case", [*CHANGES, *STRICTER])
def test_what_was_changed_is_refused(peer: Peer, bundle: Path, tmp_path: Path, case: str) -> None:
    public, _ = new_key(tmp_path / "k.pem")
    signed(bundle, "--key", tmp_path / "k.pem")
    {**CHANGES, **STRICTER}[case](bundle)
    ours, theirs = peer.compare(case, bundle, public)
    assert not ours
    assert case in STRICTER or not theirs


def test_another_key_and_another_bundle_are_refused(peer: Peer, bundle: Path, tmp_path: Path) -> None:
    public, _ = new_key(tmp_path / "k.pem")
    other, _ = new_key(tmp_path / "other.pem")
    signed(bundle, "--key", tmp_path / "k.pem")
    assert peer.compare("signed by another key", bundle, other) == (False, False)
    second = write_toy_bundle(tmp_path / "second", action="box").path
    shutil.copy(bundle / SIGNATURE, second / SIGNATURE)
    assert peer.compare("the signature of another bundle", second, public) == (False, False)


def test_a_statement_that_leads_out_is_refused(peer: Peer, bundle: Path, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    public = write_public(tmp_path / "k.pub.pem", key)
    signed(bundle, "--key", write_private(tmp_path / "k.pem", key))
    statement = json.loads(read_envelope((bundle / SIGNATURE).read_bytes()).payload)
    statement["predicate"]["resources"][0]["name"] = "../outside"
    (bundle / SIGNATURE).write_bytes(envelope_of(key, json.dumps(statement).encode()))
    assert not peer.compare("a path that leads out, in a signed statement", bundle, public)[0]


@pytest.fixture
def vector_model(tmp_path: Path) -> tuple[Path, Path, Path]:
    """The model that the specification's test vectors sign, the authority of its certificate, and its key."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "signme-1").write_bytes(b"signme-1\n")
    (tmp_path / "model" / "signme-2").write_bytes(b"signme-2")
    leaf, *others = (
        x509.load_der_x509_certificate(each)
        for each in read_envelope((VECTORS / "valid" / "certificate.bundle.json").read_bytes()).certificates
    )
    (tmp_path / "ca.pem").write_bytes(others[-1].public_bytes(Encoding.PEM))
    public = leaf.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "k.pub.pem").write_bytes(public)
    return tmp_path / "model", tmp_path / "ca.pem", tmp_path / "k.pub.pem"


@pytest.mark.parametrize("vector", sorted(path.relative_to(VECTORS).as_posix() for path in VECTORS.rglob("*.json")))
def test_the_specifications_vectors(peer: Peer, vector_model: tuple[Path, Path, Path], vector: str) -> None:
    """Ours by the parts that load_bundle is made of: the vectors' model is no bundle of hmarl's."""
    model, authority, public = vector_model
    (model / SIGNATURE).write_bytes((VECTORS / vector).read_bytes())
    by_certificate = "certificate" in vector
    try:
        files = Trust([authority, public]).check((model / SIGNATURE).read_bytes()).files
        ours = all(files.match(name, (model / name).read_bytes()) for name in ("signme-1", "signme-2"))
        said = "taken" if ours else "refused"
    except (ValueError, BundleError) as error:
        ours, said = False, str(error)
    how = ["certificate", "--certificate_chain", authority] if by_certificate else ["key", "--public_key", public]
    done = peer.theirs("verify", how[0], model, "--signature", model / SIGNATURE, *how[1:])
    theirs = "taken" if done.returncode == 0 else f"refused, {done.returncode}"
    peer.rows.append((f"the specification's `{vector}`", said, theirs))
    assert ours == (vector in ("valid/key.bundle.json", "valid/certificate.bundle.json"))
    if vector == "valid/key.bundle.json" or "invalid" in vector:
        assert (done.returncode == 0) == ours
