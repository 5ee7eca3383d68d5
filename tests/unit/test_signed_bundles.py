"""Signed bundles: what was signed is taken, whatever differs from it is refused, and nothing of it is parsed before."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from hmarl.runtime._files import zip_bytes
from hmarl.runtime._source import open_source
from hmarl.runtime.bundle import SIGNATURE, Bundle, BundleError, UsageError, load_bundle, verify_signature, write_bundle
from hmarl.runtime.errors import SignatureError
from hmarl.runtime.signing.checked import CheckedSource, sign_bundle
from hmarl.runtime.signing.keys import Signer, Trust, new_key
from hmarl.runtime.signing.statement import write_statement
from hmarl.sdk import LocalAgent
from raw_bundle import GRAPH, hash_line, manifest_bytes, plain_graph
from signing_keys import envelope_of, write_public
from toy_bundle import toy_agent, toy_graph, toy_manifest

ZIPPED = pytest.mark.parametrize("zipped", [False, True], ids=["directory", "zip"])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A private and a public key."""
    private = tmp_path_factory.mktemp("keys") / "team.pem"
    return private, new_key(private)[0]


@pytest.fixture(scope="module")
def other_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    private = tmp_path_factory.mktemp("keys") / "other.pem"
    return private, new_key(private)[0]


def files_of(path: Path) -> dict[str, bytes]:
    with open_source(path) as source:
        return {name: source.read(name) for name in source.names()}


def put(path: Path, files: dict[str, bytes]) -> None:
    """Write a bundle's files, whatever they are, in the place of those that are there."""
    if path.suffix == ".zip":
        path.write_bytes(zip_bytes(files))
        return
    shutil.rmtree(path, ignore_errors=True)
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)


def plain_files(readme: bytes = b"# A toy\n") -> dict[str, bytes]:
    files = {GRAPH: plain_graph(), "README.md": readme}
    manifest = manifest_bytes(files)
    return {**files, "manifest.json": manifest, "manifest.sha256": hash_line(manifest)}


@pytest.fixture
def signed(tmp_path: Path, pair: tuple[Path, Path]) -> Callable[[bool], Path]:
    """Makes a signed bundle, a directory or a zip."""

    def make(zipped: bool) -> Path:
        path = tmp_path / ("b.zip" if zipped else "b")
        put(path, plain_files())
        sign_bundle(path, Signer(pair[0]))
        return path

    return make


def refused(path: Path, trust: Path) -> str:
    with pytest.raises(SignatureError) as error:
        load_bundle(path, trust)
    assert error.value.exit_code == 3
    line = str(error.value)
    assert line.startswith(f"bundle {path}: ")
    assert line.isprintable()
    assert len(line) < 2000
    return line


@ZIPPED
def test_what_was_signed_is_taken_and_says_by_whom(
    signed: Callable[[bool], Path], pair: tuple[Path, Path], other_pair: tuple[Path, Path], zipped: bool
) -> None:
    path = signed(zipped)
    key = f"key {hashlib.sha256(pair[1].read_bytes()).hexdigest()}"
    assert load_bundle(path, pair[1]).signed_by == key
    assert load_bundle(path, [other_pair[1], pair[1]]).signed_by == key
    assert load_bundle(path).signed_by is None


@ZIPPED
def test_signing_changes_nothing_else(tmp_path: Path, pair: tuple[Path, Path], zipped: bool) -> None:
    path = tmp_path / ("b.zip" if zipped else "b")
    put(path, plain_files())
    before = load_bundle(path)
    for _ in range(2):  # the second signature takes the place of the first
        assert sign_bundle(path, Signer(pair[0])).sha256 == before.sha256
        after = files_of(path)
        del after[SIGNATURE]
        assert after == plain_files()
    assert sorted(tmp_path.iterdir()) == [path]


@ZIPPED
def test_one_byte_of_any_file_is_found(signed: Callable[[bool], Path], pair: tuple[Path, Path], zipped: bool) -> None:
    path = signed(zipped)
    files = files_of(path)
    assert len(files) == 5
    for name, content in files.items():
        for at in (0, len(content) // 2, len(content) - 1):
            changed = bytearray(content)
            changed[at] ^= 1
            put(path, {**files, name: bytes(changed)})
            line = refused(path, pair[1])
            assert name == SIGNATURE or f"file '{name}' is not what key " in line


@ZIPPED
def test_a_change_whose_hashes_were_made_right_is_found(
    signed: Callable[[bool], Path], pair: tuple[Path, Path], zipped: bool
) -> None:
    path = signed(zipped)
    signature = files_of(path)[SIGNATURE]
    put(path, {**plain_files(b"# Another\n"), SIGNATURE: signature})
    assert load_bundle(path).signed_by is None
    assert "is not what key" in refused(path, pair[1])


@ZIPPED
def test_an_unsigned_bundle_is_refused(signed: Callable[[bool], Path], pair: tuple[Path, Path], zipped: bool) -> None:
    path = signed(zipped)
    files = files_of(path)
    del files[SIGNATURE]
    put(path, files)
    key = hashlib.sha256(pair[1].read_bytes()).hexdigest()
    assert f"it is unsigned, there is no 'model.sig' in it; expected a signature by key {key}" in refused(path, pair[1])


@ZIPPED
def test_another_key_is_refused_and_both_are_named(
    signed: Callable[[bool], Path], pair: tuple[Path, Path], other_pair: tuple[Path, Path], zipped: bool
) -> None:
    path = signed(zipped)
    got, expected = (hashlib.sha256(each[1].read_bytes()).hexdigest() for each in (pair, other_pair))
    assert f"got a signature by key {got}, expected one by key {expected}" in refused(path, other_pair[1])


def test_a_signature_that_only_claims_to_be_by_a_trusted_key_is_refused(
    signed: Callable[[bool], Path], pair: tuple[Path, Path]
) -> None:
    path = signed(False)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in plain_files().items()}
    hint = hashlib.sha256(pair[1].read_bytes()).hexdigest()
    forged = envelope_of(ec.generate_private_key(ec.SECP256R1()), write_statement("b", digests, SIGNATURE), hint=hint)
    (path / SIGNATURE).write_bytes(forged)
    assert f"the signature is not by key {hint}, as it says" in refused(path, pair[1])


@ZIPPED
@pytest.mark.parametrize("name", ["agents/another.onnx", ".git/config", ".gitattributes", "model.sig.bak"])
def test_an_added_file_is_refused(
    signed: Callable[[bool], Path], pair: tuple[Path, Path], zipped: bool, name: str
) -> None:
    path = signed(zipped)
    put(path, {**files_of(path), name: b"x"})
    assert f"file '{name}' was not signed by key " in refused(path, pair[1])


@ZIPPED
@pytest.mark.parametrize("name", [GRAPH, "README.md", "manifest.json", "manifest.sha256"])
def test_a_missing_file_is_refused(
    signed: Callable[[bool], Path], pair: tuple[Path, Path], zipped: bool, name: str
) -> None:
    path = signed(zipped)
    files = files_of(path)
    del files[name]
    put(path, files)
    assert f"file '{name}' is missing, and was signed by key " in refused(path, pair[1])


@ZIPPED
def test_the_signature_of_another_bundle_is_refused(
    signed: Callable[[bool], Path], tmp_path: Path, pair: tuple[Path, Path], zipped: bool
) -> None:
    signature = files_of(signed(zipped))[SIGNATURE]
    other = tmp_path / ("other.zip" if zipped else "other")
    put(other, {**plain_files(b"# Another, by the same maker\n"), SIGNATURE: signature})
    assert "is not what key" in refused(other, pair[1])


def test_nothing_is_parsed_that_was_not_signed(signed: Callable[[bool], Path], pair: tuple[Path, Path]) -> None:
    path = signed(False)
    manifest = b"[" * 100_000
    (path / "manifest.json").write_bytes(manifest)
    (path / "manifest.sha256").write_bytes(hash_line(manifest))
    assert "file 'manifest.json' is not what key" in refused(path, pair[1])


def test_what_is_read_is_what_was_checked(signed: Callable[[bool], Path], pair: tuple[Path, Path]) -> None:
    """Files that are exchanged between the check and their use, with all hashes right, are found when they are read."""
    path = signed(False)
    loaded = load_bundle(path, pair[1])
    put(path, {**plain_files(b"# Another\n"), SIGNATURE: (path / SIGNATURE).read_bytes()})
    with open_source(path) as opened:
        source = CheckedSource(opened, path, Trust([pair[1]]))
        assert source.read(GRAPH) == plain_graph()
        with pytest.raises(SignatureError, match=r"'README\.md' is not what"):
            source.read("README.md")
        (path / GRAPH).write_bytes(b"exchanged")
        with pytest.raises(SignatureError, match="is not what"):
            source.read(GRAPH)
    with pytest.raises(BundleError, match=r"README\.md' has SHA-256"):
        loaded.read("README.md")


def test_a_bundle_that_is_loaded_may_have_its_signature_checked_later(
    signed: Callable[[bool], Path], pair: tuple[Path, Path], other_pair: tuple[Path, Path]
) -> None:
    path = signed(False)
    loaded = load_bundle(path)
    with LocalAgent(loaded, "a", trust=pair[1]) as agent:
        assert agent.spec.id == "a"
    with pytest.raises(SignatureError, match="expected one by key"):
        LocalAgent(loaded, "a", trust=other_pair[1])
    put(path, plain_files(b"# Another\n"))
    sign_bundle(path, Signer(pair[0]))
    with pytest.raises(SignatureError, match="it was replaced since it was loaded"):
        verify_signature(loaded, pair[1])


@pytest.mark.parametrize("name", ["b", "b.zip"])
def test_an_exported_bundle_is_signed_as_it_is_written(tmp_path: Path, pair: tuple[Path, Path], name: str) -> None:
    agent = toy_agent("a", observation_size=6, action="discrete", sizes=(8,), plain=True)
    files = {agent["file"]: toy_graph(plain=True)}

    def write(signer: Signer | None) -> Bundle:
        return write_bundle(tmp_path / name, toy_manifest([agent]), files, signer)

    sha256 = write(Signer(pair[0])).sha256
    assert load_bundle(tmp_path / name, pair[1]).sha256 == sha256
    assert write(None).sha256 == sha256  # in the place of the signed one, and without its signature
    refused(tmp_path / name, pair[1])


def test_the_signature_is_no_file_of_the_manifest(tmp_path: Path) -> None:
    files = {GRAPH: plain_graph(), SIGNATURE: b"{}"}
    manifest = manifest_bytes(files)
    put(tmp_path / "b", {**files, "manifest.json": manifest, "manifest.sha256": hash_line(manifest)})
    with pytest.raises(BundleError, match=r"'model\.sig' must not be listed"):
        load_bundle(tmp_path / "b")


# --- signature files that are not what they seem ---------------------------------------------------------------------


def statement(**fields: Any) -> dict[str, Any]:
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in plain_files().items()}
    return {**json.loads(write_statement("b", digests, SIGNATURE)), **fields}


def predicate(**fields: Any) -> dict[str, Any]:
    return statement(predicate={**statement()["predicate"], **fields})


def resources(*more: dict[str, str]) -> dict[str, Any]:
    return predicate(resources=[*statement()["predicate"]["resources"], *more])


def named(name: str) -> dict[str, Any]:
    return resources({"name": name, "algorithm": "sha256", "digest": "ab" * 32})


def how(**fields: Any) -> dict[str, Any]:
    return predicate(serialization={**statement()["predicate"]["serialization"], **fields})


HOSTILE_STATEMENTS = {
    "leads out": (named("../../etc/passwd"), "'../../etc/passwd' is not a plain relative path"),
    "absolute": (named("/etc/passwd"), "'/etc/passwd' is not a plain relative path"),
    "not canonical": (named("./README.md"), "'./README.md' is not a plain relative path"),
    "control characters": (named("a\x1b[2Jb"), "is not a plain relative path"),
    "NUL": (named("a\0b"), "is not a plain relative path"),
    "surrogate": (named("a\ud800b"), "is not a plain relative path"),
    "a file twice": (resources(statement()["predicate"]["resources"][0]), "is there more than once"),
    "no files": (predicate(resources=[]), "resources"),
    "another predicate": (statement(predicateType="https://example.com/v1"), "predicateType: got"),
    "the predicate of 0.2": (statement(predicateType="https://model_signing/Digests/v0.1"), "predicateType: got"),
    "another type": (statement(_type="https://in-toto.io/Statement/v0.1"), "_type: got"),
    "two subjects": (statement(subject=statement()["subject"] * 2), "subject"),
    "a hash that is not known": (how(hash_type="blake3"), "hash_type: got 'blake3', expected sha256 or blake2b"),
    "a weak hash": (how(hash_type="md5"), "hash_type: got 'md5'"),
    "digests of another hash": (how(hash_type="blake2b"), "algorithm: got 'sha256', expected blake2b"),
    "shards without a size": (how(method="shards"), "shard_size: got None with method 'shards'"),
    "shards of no size": (how(method="shards", shard_size=0), "shard_size"),
    "shards of half a byte": (how(method="shards", shard_size=10.5), "shard_size: got 10.5 with method 'shards'"),
    "shards of endless size": (how(method="shards", shard_size=float("inf")), "shard_size: got inf"),
    "shards of great size": (how(method="shards", shard_size=10**400), "expected FILE:BEGIN:END"),
    "shards without places": (how(method="shards", shard_size=10), "expected FILE:BEGIN:END"),
    "another method": (how(method="tensors"), "method"),
    "unknown field": (statement(more=1), "more"),
}


@pytest.fixture
def own_key(tmp_path: Path) -> tuple[ec.EllipticCurvePrivateKey, Path]:
    """A key that is trusted, and signs whatever it is given."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key, write_public(tmp_path / "own.pub.pem", key)


@pytest.mark.parametrize("case", HOSTILE_STATEMENTS)
def test_a_statement_that_is_not_the_specifications_is_refused_whoever_signed_it(
    tmp_path: Path, own_key: tuple[ec.EllipticCurvePrivateKey, Path], case: str
) -> None:
    said, message = HOSTILE_STATEMENTS[case]
    payload = json.dumps(said).replace("Infinity", "1e999").encode()
    put(tmp_path / "b", {**plain_files(), SIGNATURE: envelope_of(own_key[0], payload)})
    with pytest.raises(BundleError) as error:
        load_bundle(tmp_path / "b", own_key[1])
    assert message in str(error.value)
    assert str(error.value).isprintable()
    assert not isinstance(error.value, UsageError)


def document(content: bytes, **fields: Any) -> bytes:
    return json.dumps({**json.loads(content), **fields}).encode()


def dsse(content: bytes, **fields: Any) -> bytes:
    return document(content, dsseEnvelope={**json.loads(content)["dsseEnvelope"], **fields})


HOSTILE_FILES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda good: b"", "not JSON"),
    "cut": (lambda good: good[: len(good) // 2], "not JSON"),
    "no object": (lambda good: b"[]", "Expected `object`"),
    "100 MB": (lambda good: b'{"a":"' + b"a" * 100_000_000 + b'"}', "bytes, expected at most 4,194,304"),
    "deep": (lambda good: b'{"a":' * 100_000, "lie too deep in each other"),
    "deep lists": (lambda good: b"[" * 1_000_000, "lie too deep in each other"),
    "a key twice": (lambda good: good.replace(b'"mediaType"', b'"mediaType": "x", "mediaType"'), "more than once"),
    "a key twice inside": (lambda good: good.replace(b'"keyid"', b'"sig": "AA==", "keyid"'), "more than once"),
    "NaN": (lambda good: document(good, more=float("nan")), "got NaN, which is no JSON"),
    "a long number": (lambda good: b"1" * 1_000_000, "limit"),
    "not UTF-8": (lambda good: b"\xff\xfe" + good, "not UTF-8"),
    "a mark before it": (lambda good: b"\xef\xbb\xbf" + good, "not JSON"),
    "unknown field": (lambda good: document(good, messageSignature={}), "messageSignature"),
    "another kind": (lambda good: document(good, mediaType="application/json"), "mediaType: got 'application/json'"),
    "no signature": (lambda good: dsse(good, signatures=[]), "signatures"),
    "two signatures": (lambda good: dsse(good, signatures=[{"sig": "AA=="}] * 2), "signatures"),
    "another payload": (lambda good: dsse(good, payloadType="text/html"), "payloadType: got 'text/html'"),
    "payload no Base64": (lambda good: dsse(good, payload="é" * 40), "payload: not Base64"),
    "signature no Base64": (lambda good: dsse(good, signatures=[{"sig": "A"}]), "sig: not Base64"),
    "signature no DER": (lambda good: dsse(good, signatures=[{"sig": "AA=="}]), "it was changed"),
    "payload exchanged": (lambda good: dsse(good, payload=base64.b64encode(b"{}").decode()), "it was changed"),
    "no material": (lambda good: document(good, verificationMaterial={}), "got none or several"),
    "no chain": (
        lambda good: document(good, verificationMaterial={"x509CertificateChain": {"certificates": []}}),
        ">= 1",
    ),
    "certificate of noise": (
        lambda good: document(
            good, verificationMaterial={"x509CertificateChain": {"certificates": [{"rawBytes": "AAAA"}]}}
        ),
        "a certificate that cannot be read",
    ),
}


@pytest.mark.parametrize("case", HOSTILE_FILES)
def test_a_hostile_signature_file_is_refused(
    signed: Callable[[bool], Path], pair: tuple[Path, Path], case: str
) -> None:
    path = signed(False)
    make, message = HOSTILE_FILES[case]
    (path / SIGNATURE).write_bytes(make((path / SIGNATURE).read_bytes()))
    assert message in refused(path, pair[1])


def test_a_signature_that_is_cut_anywhere_is_refused(signed: Callable[[bool], Path], pair: tuple[Path, Path]) -> None:
    path = signed(False)
    whole = (path / SIGNATURE).read_bytes().rstrip()
    for length in range(0, len(whole), 37):
        (path / SIGNATURE).write_bytes(whole[:length])
        refused(path, pair[1])


@pytest.mark.parametrize("kind", ["link", "directory"])
def test_a_signature_that_is_no_plain_file_is_refused(
    signed: Callable[[bool], Path], tmp_path: Path, pair: tuple[Path, Path], kind: str
) -> None:
    path = signed(False)
    (path / SIGNATURE).rename(tmp_path / "elsewhere")
    (path / SIGNATURE).symlink_to(tmp_path / "elsewhere") if kind == "link" else (path / SIGNATURE).mkdir()
    assert f"is a {'symbolic link' if kind == 'link' else kind}" in refused(path, pair[1])


@pytest.mark.parametrize(
    ("hashed", "size"), [("sha256", 100), ("sha256", 10**9), ("sha256", 100.0), ("blake2b", 64), ("blake2b", None)]
)
def test_other_hashes_and_shards_are_checked_too(
    tmp_path: Path, own_key: tuple[ec.EllipticCurvePrivateKey, Path], hashed: str, size: float | None
) -> None:
    listed = []
    for name, content in plain_files().items():
        step = int(size or len(content))
        for begin in range(0, len(content), step):
            part = content[begin : begin + step]
            place = "" if size is None else f":{begin}:{begin + len(part)}"
            digest = hashlib.new(hashed, part).hexdigest()
            listed.append({"name": name + place, "algorithm": hashed, "digest": digest})
    method = {"method": "files"} if size is None else {"method": "shards", "shard_size": size}
    said = predicate(resources=listed, serialization={**method, "hash_type": hashed, "allow_symlinks": False})
    files = {**plain_files(), SIGNATURE: envelope_of(own_key[0], json.dumps(said).encode())}
    put(tmp_path / "b", files)
    assert load_bundle(tmp_path / "b", own_key[1]).signed_by is not None
    for change in (lambda old: old[:-1], lambda old: old + b"x", lambda old: b"x" + old[1:]):
        put(tmp_path / "b", {**files, "README.md": change(files["README.md"])})
        assert "'README.md' is not what key" in refused(tmp_path / "b", own_key[1])


def test_what_the_signer_ignored_is_not_taken(tmp_path: Path, own_key: tuple[ec.EllipticCurvePrivateKey, Path]) -> None:
    said = how(ignore_paths=[SIGNATURE, "agents"])
    said["predicate"]["resources"] = [each for each in said["predicate"]["resources"] if each["name"] != GRAPH]
    put(tmp_path / "b", {**plain_files(), SIGNATURE: envelope_of(own_key[0], json.dumps(said).encode())})
    assert f"file '{GRAPH}' was not signed by key" in refused(tmp_path / "b", own_key[1])


def test_a_zip_member_that_is_there_twice_is_refused(signed: Callable[[bool], Path], pair: tuple[Path, Path]) -> None:
    path = signed(True)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(SIGNATURE, b"{}")
    with pytest.raises(BundleError, match="more than once"):
        load_bundle(path, pair[1])


def test_a_bundle_that_was_changed_is_not_signed_and_keeps_the_signature_that_it_has(
    signed: Callable[[bool], Path], pair: tuple[Path, Path]
) -> None:
    bundle = signed(False)
    before = (bundle / "model.sig").read_bytes()
    with (bundle / "README.md").open("ab") as stream:
        stream.write(b"!")
    with pytest.raises(
        BundleError, match=r"^nothing was signed: bundle .*README\.md' has SHA-256 .*: it was changed; copy"
    ):
        sign_bundle(bundle, Signer(pair[0]))
    assert (bundle / "model.sig").read_bytes() == before
