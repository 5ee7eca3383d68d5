"""Bundles: what leaves the trainer and enters the runtime. Loads, verifies and writes them.

A bundle is a directory, or the same files in one zip; ``hmarl.runtime.manifest`` describes its content. Nothing in it
is ever executed or unpickled, and nothing is used whose hash has not been checked on the very bytes that are used.

This module imports neither ONNX Runtime nor gRPC.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmarl.runtime import hashing
from hmarl.runtime._files import remove_temporaries, replace_directory, replace_file, replacing, zip_bytes
from hmarl.runtime._manifest_checks import check_printable
from hmarl.runtime._source import (
    MANIFEST_LIMIT_BYTES,
    REPAIR,
    HeldSource,
    Source,
    check_name,
    check_sizes,
    open_source,
)
from hmarl.runtime.errors import (
    BundleError,
    DrainingError,
    HmarlError,
    ObservationError,
    SessionError,
    SessionLimitError,
    SignatureError,
    StepOrderError,
    UnknownSessionError,
    UsageError,
    did_you_mean,
    one_line,
    unknown_name,
)
from hmarl.runtime.manifest import (
    SCHEMA_VERSION,
    ActionSpaceModel,
    AgentModel,
    BoxSpace,
    DiscreteSpace,
    EnvironmentModel,
    Manifest,
    MultiDiscreteSpace,
    NoiseModel,
    ParityModel,
    StateModel,
    StudentsModel,
    TensorModel,
    from_json,
    from_plain,
    listed_files,
    to_json,
    to_plain,
)

if TYPE_CHECKING:
    from hmarl.runtime.signing.keys import Signer, Trust

    TrustFiles = str | Path | Sequence[str | Path]

__all__ = [
    "MANIFEST",
    "MANIFEST_HASH",
    "SCHEMA_VERSION",
    "SIGNATURE",
    "ActionSpaceModel",
    "AgentModel",
    "BoxSpace",
    "Bundle",
    "BundleError",
    "DiscreteSpace",
    "DrainingError",
    "EnvironmentModel",
    "HmarlError",
    "Manifest",
    "MultiDiscreteSpace",
    "NoiseModel",
    "ObservationError",
    "ParityModel",
    "SessionError",
    "SessionLimitError",
    "SignatureError",
    "StateModel",
    "StepOrderError",
    "StudentsModel",
    "TensorModel",
    "UnknownSessionError",
    "UsageError",
    "check_printable",
    "did_you_mean",
    "from_json",
    "load_bundle",
    "place_bundle",
    "remove_temporaries",
    "replace_file",
    "replacing",
    "to_json",
    "to_plain",
    "unknown_name",
    "write_bundle",
]

MANIFEST = "manifest.json"
MANIFEST_HASH = "manifest.sha256"
SIGNATURE = "model.sig"  # see ``hmarl.runtime.signing``; what no manifest lists
# Of ten thousand files; a signature is read whole and parsed, which takes many times as much memory.
SIGNATURE_LIMIT_BYTES = 2**22
_OWN = (MANIFEST, MANIFEST_HASH, SIGNATURE)
_HASH_LIMIT_BYTES = 1000


class Bundle:
    """A verified bundle.

    Attributes:
        path: the directory or zip.
        manifest: the parsed manifest.json.
        sha256: hex SHA-256 of manifest.json, which lists the hash of every other file: it names the whole content.
        signed_by: whose signature was checked, e.g. ``key FINGERPRINT``; None where none was asked for.
    """

    def __init__(self, path: Path, manifest: Manifest, sha256: str, signed_by: str | None = None) -> None:
        self.path = path
        self.manifest = manifest
        self.sha256 = sha256
        self.signed_by = signed_by

    @property
    def agent_ids(self) -> tuple[str, ...]:
        """Ids of the agents, in the manifest's order."""
        return tuple(agent.id for agent in self.manifest.agents)

    @property
    def digests(self) -> dict[str, str]:
        """Hex SHA-256 of all files, but for a signature."""
        own = {MANIFEST: self.sha256, MANIFEST_HASH: hashing.sha256(_hash_line(self.sha256)).hex()}
        return {**self.manifest.files, **own}

    def agent(self, agent_id: str, like: str | None = None) -> AgentModel:
        """The manifest's entry of one agent.

        Args:
            agent_id: which one.
            like: for an agent that was not trained, the interchangeable one by whose graph it acts; it gets that one's
                entry under its own id.

        Raises:
            UsageError: no such agent (the message lists those there are), or ``like`` is not interchangeable, or
                ``agent_id`` was trained itself.
        """
        if like is not None:
            return self._another(agent_id, self.agent(like))
        for agent in self.manifest.agents:
            if agent.id == agent_id:
                return agent
        other = next((agent.id for agent in self.manifest.agents if agent.interchangeable), None)
        hint = f"; one that was not trained may act like an interchangeable one, e.g. '{other}'" if other else ""
        raise UsageError(unknown_name("agent", agent_id, self.agent_ids) + hint)

    def _another(self, agent_id: str, model: AgentModel) -> AgentModel:
        """The entry of an agent that was not trained and acts by another one's graph."""
        if not agent_id:
            raise UsageError("agent: got an empty name")
        try:
            check_printable("agent", agent_id)
        except ValueError as error:
            raise UsageError(str(error)) from error
        if agent_id in self.agent_ids:
            raise UsageError(
                f"agent '{agent_id}' like '{model.id}': '{agent_id}' was trained itself; leave out whom it is like"
            )
        if not model.interchangeable:
            raise UsageError(
                f"agent '{agent_id}' like '{model.id}': '{model.id}' is not interchangeable, its policy is for itself "
                "alone; agents trained with algorithm.share_parameters=true and algorithm.agent_identity=false are"
            )
        return model.named(agent_id)

    def read(self, file: str) -> bytes:
        """The content of a listed file; the hash is checked on the bytes that are returned.

        Raises:
            BundleError: the file is not listed, is gone, or has changed since the bundle was loaded.
        """
        if file not in self.manifest.files:
            raise BundleError(f"bundle {self.path}: file '{file}' is not listed in {MANIFEST}")
        with open_source(self.path) as source:
            return read_checked(source, self.path, file, self.manifest.files[file])

    def own_files(self) -> dict[str, bytes]:
        """The files that no manifest lists: the manifest itself, its hash, and the signature where there is one.

        Raises:
            BundleError: the bundle was replaced since it was loaded.
        """
        with open_source(self.path) as source:
            _, sha256 = _read_manifest(source, self.path)
            if sha256 != self.sha256:
                raise BundleError(f"bundle {self.path}: it was replaced since it was loaded; load it again")
            names = [name for name in source.names() if name in _OWN]
            return {name: source.read(name) for name in names}


def read_checked(source: Source, path: Path, name: str, expected: str) -> bytes:
    """The content of a file of a bundle, whose hash is as expected.

    Raises:
        BundleError: it is not, or the file is not there.
    """
    try:
        content = source.read(name)
    except KeyError:
        raise BundleError(f"bundle {path}: file '{name}' is missing; {REPAIR}") from None
    got = hashing.sha256(content).hex()
    if got != expected:
        raise BundleError(
            f"bundle {path}: file '{name}' has SHA-256 {got}, expected {expected}: it was changed; {REPAIR}"
        )
    return content


def _hash_line(sha256: str) -> bytes:
    return f"{sha256}  {MANIFEST}\n".encode()


def _bundle_of_run(path: Path) -> str | None:
    """What to do with a run directory that was given as a bundle; None for any other."""
    exported = path / "bundle"
    if (exported / MANIFEST).is_file():
        return f"this is no bundle, there is one in it: take {exported}"
    if (path / "config.json").is_file() and (path / "checkpoints").is_dir():
        return f"this is a run directory: export it with 'hmarl-export {path}', then take {exported}"
    return None


def _read_manifest(source: Source, path: Path) -> tuple[Manifest, str]:
    """Read manifest.json, checked against manifest.sha256 byte for byte."""
    try:
        content = source.read(MANIFEST, MANIFEST_LIMIT_BYTES)
        recorded = source.read(MANIFEST_HASH, _HASH_LIMIT_BYTES)
    except KeyError as error:
        advice = _bundle_of_run(path) or f"is this a bundle? If so, {REPAIR}"
        raise BundleError(f"bundle {path}: file '{error.args[0]}' is missing; {advice}") from None
    sha256 = hashing.sha256(content).hex()
    if recorded != _hash_line(sha256):
        shown = ascii(recorded[:100].decode(errors="replace").strip())
        raise BundleError(
            f"bundle {path}: file '{MANIFEST}' has SHA-256 {sha256}, but '{MANIFEST_HASH}' holds {shown}; {REPAIR}"
        )
    return _parse_manifest(path, content), sha256


def _parse_manifest(path: Path, content: bytes | Mapping[str, Any]) -> Manifest:
    try:
        manifest = from_json(Manifest, content) if isinstance(content, bytes) else from_plain(Manifest, content)
    except ValueError as error:
        advice = (
            "; another version of hmarl exported it: export its run again" if "schema_version" in str(error) else ""
        )
        raise BundleError(
            f"bundle {path}: {MANIFEST} does not fit schema version {SCHEMA_VERSION}: {one_line(error)}{advice}"
        ) from error
    for name in manifest.files:
        check_name(path, name)
        if name in _OWN:
            raise BundleError(f"bundle {path}: files: '{name}' must not be listed")
    return manifest


def load_bundle(path: Path | str, trust: TrustFiles | Trust | None = None) -> Bundle:
    """Open a bundle and verify all of it: the manifest's hash and schema, every file's hash, nothing missing or added.

    Names, kinds and sizes are checked before anything is read; see ``hmarl.runtime._source``. With ``trust`` the
    bundle's signature is checked first, and nothing is parsed that was not signed; see ``hmarl.runtime.signing``.

    Args:
        path: a bundle directory or zip.
        trust: PEM files of the public keys or certificate authorities of which one must have signed the bundle; None
            takes unsigned bundles as well.

    Raises:
        BundleError: anything is wrong; the message names the file, what was got and what was expected.
        SignatureError: the bundle is unsigned, is not what was signed, or was signed by another key.
        UsageError: ``trust`` names a file that is missing or holds no key.
    """
    path = Path(path)
    trusted = None if trust is None else read_trust(trust)
    with open_source(path) as source:
        return _checked(path, source, trusted)


def _checked(path: Path, source: Source, trusted: Trust | None) -> Bundle:
    """The bundle at ``path`` whose files are ``source``'s, once all of them have been checked; see ``load_bundle``."""
    signed_by = None
    if trusted is not None:
        from hmarl.runtime.signing.checked import CheckedSource  # noqa: PLC0415 - only where it is asked for

        source = checked = CheckedSource(source, path, trusted)
        signed_by = checked.signed_by
    manifest, sha256 = _read_manifest(source, path)
    for name in source.names():
        if name not in manifest.files and name not in _OWN:
            raise BundleError(
                f"bundle {path}: file '{name}' is not listed in {MANIFEST}; remove it if it is not needed, "
                f"otherwise {REPAIR}"
            )
    for name, expected in manifest.files.items():
        read_checked(source, path, name, expected)
    return Bundle(path, manifest, sha256, signed_by)


def check_files(path: Path | str, files: Mapping[str, bytes], trust: TrustFiles | Trust | None = None) -> Bundle:
    """The bundle that these files would be at ``path``, checked as ``load_bundle`` does; nothing is written.

    Raises:
        BundleError: anything is wrong.
        SignatureError: see ``load_bundle``.
    """
    trusted = None if trust is None else read_trust(trust)
    return _checked(Path(path), HeldSource(Path(path), files), trusted)


def place_bundle(path: Path | str, files: Mapping[str, bytes], trust: TrustFiles | Trust | None = None) -> Bundle:
    """Put a bundle that came from elsewhere in its place, whole or not at all, and only once all of it is checked.

    Args:
        path: as of ``write_bundle``.
        files: all its files, as they came: nothing of them is changed.
        trust: as of ``load_bundle``.

    Raises:
        BundleError: anything is wrong; nothing was written.
        SignatureError: see ``load_bundle``.
        UsageError: something that is not a bundle is in the way.
    """
    path = Path(path)
    trusted = None if trust is None else read_trust(trust)
    check_files(path, files, trusted)
    _put(path, files)
    return load_bundle(path, trusted)


def verify_signature(bundle: Bundle, trust: TrustFiles | Trust) -> Bundle:
    """A bundle that was loaded, once it has been read again and its signature checked; see ``load_bundle``.

    Raises:
        SignatureError: the bundle is unsigned, is not what was signed, or was signed by another key, or it was replaced
            since it was loaded.
    """
    found = load_bundle(bundle.path, trust)
    if found.sha256 != bundle.sha256:
        raise SignatureError(f"bundle {bundle.path}: it was replaced since it was loaded; load it again")
    return found


def read_trust(trust: TrustFiles | Trust) -> Trust:
    """Whose signatures are taken, see ``load_bundle``.

    Raises:
        UsageError: a file is missing or holds no key.
    """
    from hmarl.runtime.signing.keys import Trust  # noqa: PLC0415 - only where it is asked for

    if isinstance(trust, Trust):
        return trust
    return Trust([trust] if isinstance(trust, str | Path) else trust)


def open_bundle(path: Path, sha256: str) -> Bundle:
    """A bundle that another process has verified: each file is checked when it is read, and no other is looked at.

    Raises:
        BundleError: it is not that bundle any more.
    """
    with open_source(path) as source:
        manifest, found = _read_manifest(source, path)
    if found != sha256:
        raise BundleError(f"bundle {path}: it was replaced while it was being opened; start again")
    return Bundle(path, manifest, sha256)


def write_bundle(
    path: Path | str,
    manifest: Manifest | Mapping[str, Any],
    files: Mapping[str, bytes],
    signer: Signer | None = None,
) -> Bundle:
    """Write a bundle whole or not at all; an old bundle at ``path`` is replaced only once the new one is on the disk.

    Args:
        path: the directory to make, or the zip when it ends with ``.zip``.
            A symbolic link stays; what it points to is replaced.
        manifest: the manifest's fields; ``files`` is filled in here.
        files: content of every file, by its relative POSIX name.
        signer: signs it; None leaves it unsigned.

    Returns:
        The written bundle, loaded and verified again.

    Raises:
        BundleError: the fields do not fit the schema, a name is not a plain relative path, or a file is so large that
            it would not be read again.
        UsageError: something that is not a bundle is in the way.
    """
    path = Path(path)
    fields = to_plain(manifest) if isinstance(manifest, Manifest) else dict(manifest)
    fields["files"] = {name: hashing.sha256(files[name]).hex() for name in sorted(files)}
    document = json.loads(to_json(_parse_manifest(path, fields)))  # NaN and infinity become null
    content = (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
    _parse_manifest(path, content)  # a number that must not be null is found here, before anything is replaced
    everything = {**files, MANIFEST: content, MANIFEST_HASH: _hash_line(hashing.sha256(content).hex())}
    if signer is not None:
        digests = {name: hashing.sha256(each).hex() for name, each in everything.items()}
        everything[SIGNATURE] = signer.sign(path.resolve().name, digests, SIGNATURE)
    sizes = {name: len(content) for name, content in everything.items()}
    check_sizes(path, sizes, {MANIFEST: MANIFEST_LIMIT_BYTES, SIGNATURE: SIGNATURE_LIMIT_BYTES})
    _put(path, everything)
    return load_bundle(path)


def _put(path: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of a bundle, whole or not at all."""
    check_target(path)
    try:
        if path.suffix == ".zip":
            replace_file(path.resolve(), zip_bytes(files))
        else:
            replace_directory(path.resolve(), files)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise HmarlError(f"bundle {path}: cannot write: {error}") from error


def check_target(path: Path) -> None:
    """Refuse to replace anything but a bundle: no other files are ever deleted.

    Raises:
        UsageError: something that is not a bundle is in the way.
    """
    if not path.exists():
        return
    advice = "choose another path or remove it"
    if path.is_dir() == (path.suffix == ".zip"):
        raise UsageError(f"{path} exists and is not a {'zip file' if path.is_dir() else 'bundle'}; {advice}")
    try:
        with open_source(path) as source:
            names = source.names()
            listed = listed_files(source.read(MANIFEST, MANIFEST_LIMIT_BYTES)) if names else set()
    except (BundleError, KeyError, ValueError) as error:
        raise UsageError(f"{path} exists and is not a bundle; {advice}") from error
    strangers = [name for name in names if name not in listed and name not in _OWN]
    if strangers:
        raise UsageError(
            f"{path} exists and is not a bundle alone: '{strangers[0]}' is no part of it and would be deleted; "
            "move that away or choose another path"
        )
