"""Bundles: what leaves the trainer and enters the runtime. Loads, verifies and writes them.

A bundle is a directory, or the same files in one zip; ``hmarl.runtime.manifest`` describes its content. Nothing in it
is ever executed or unpickled, and nothing is used whose hash has not been checked on the very bytes that are used.

This module imports neither ONNX Runtime nor gRPC.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from hmarl.runtime._files import remove_temporaries, replace_directory, replace_file, zip_bytes
from hmarl.runtime.errors import (
    BundleError,
    DrainingError,
    HmarlError,
    ObservationError,
    SessionError,
    SessionLimitError,
    StepOrderError,
    UnknownSessionError,
    UsageError,
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
    to_json,
    to_plain,
)

__all__ = [
    "MANIFEST",
    "MANIFEST_HASH",
    "SCHEMA_VERSION",
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
    "StateModel",
    "StepOrderError",
    "StudentsModel",
    "TensorModel",
    "UnknownSessionError",
    "UsageError",
    "from_json",
    "load_bundle",
    "remove_temporaries",
    "replace_file",
    "to_json",
    "to_plain",
    "unknown_name",
    "write_bundle",
]

MANIFEST = "manifest.json"
MANIFEST_HASH = "manifest.sha256"
_REPAIR = "copy or export the bundle again"
# Policies take megabytes; a zip that claims more would only fill the memory.
_ZIP_LIMIT_BYTES = 2**30


class Bundle:
    """A verified bundle.

    Attributes:
        path: the directory or zip.
        manifest: the parsed manifest.json.
        sha256: hex SHA-256 of manifest.json, which lists the hash of every other file: it names the whole content.
    """

    def __init__(self, path: Path, manifest: Manifest, sha256: str) -> None:
        self.path = path
        self.manifest = manifest
        self.sha256 = sha256

    @property
    def agent_ids(self) -> tuple[str, ...]:
        """Ids of the agents, in the manifest's order."""
        return tuple(agent.id for agent in self.manifest.agents)

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
        with _open_source(self.path) as source:
            return _read_checked(source, self.path, file, self.manifest.files[file])


class _Source:
    """The files of a bundle, by name; the same interface for a directory and a zip."""

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, *_: object) -> None:
        """Close what is open."""

    def names(self) -> list[str]:
        """Relative POSIX names of all files."""
        raise NotImplementedError

    def read(self, name: str) -> bytes:
        """Content of a file; KeyError when it is not there."""
        raise NotImplementedError


class _DirectorySource(_Source):
    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        found = []
        for entry in sorted(self._path.rglob("*")):
            name = entry.relative_to(self._path).as_posix()
            if entry.is_symlink():
                raise BundleError(f"bundle {self._path}: '{name}' is a symbolic link; a bundle holds plain files only")
            if not entry.is_dir():
                found.append(name)
        return found

    def read(self, name: str) -> bytes:
        try:
            return (self._path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise KeyError(name) from error
        except OSError as error:
            raise BundleError(f"bundle {self._path}: cannot read '{name}': {error.strerror}") from error


class _ZipSource(_Source):
    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise BundleError(
                f"bundle {path}: got a file that is not a readable zip ({error}), expected a bundle directory or zip; "
                f"{_REPAIR}"
            ) from error
        self._check_size()

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def names(self) -> list[str]:
        found = [entry.filename for entry in self._zip.infolist() if not entry.is_dir()]
        for name in found:
            _check_name(self._path, name)
            if found.count(name) > 1:
                raise BundleError(f"bundle {self._path}: '{name}' is in the zip more than once; {_REPAIR}")
        return found

    def _check_size(self) -> None:
        unpacked = sum(entry.file_size for entry in self._zip.infolist())
        if unpacked > _ZIP_LIMIT_BYTES:
            raise BundleError(
                f"bundle {self._path}: the zip unpacks to {unpacked:,} bytes, expected at most {_ZIP_LIMIT_BYTES:,}; "
                "unpack it into a directory if you trust it"
            )

    def read(self, name: str) -> bytes:
        try:
            return self._zip.read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
            raise BundleError(f"bundle {self._path}: cannot read '{name}': {error}; {_REPAIR}") from error


def _open_source(path: Path) -> _Source:
    if path.is_dir():
        return _DirectorySource(path)
    if path.is_file():
        return _ZipSource(path)
    raise BundleError(f"bundle {path}: no such directory or zip file")


def _check_name(path: Path, name: str) -> None:
    """Refuse names that could lead out of the bundle or mean different files on different systems."""
    parts = PurePosixPath(name).parts
    if not name or name.startswith("/") or "\\" in name or ":" in name or ".." in parts or "/".join(parts) != name:
        raise BundleError(f"bundle {path}: file name '{name}' is not a plain relative path inside the bundle")


def _read_checked(source: _Source, path: Path, name: str, expected: str) -> bytes:
    try:
        content = source.read(name)
    except KeyError:
        raise BundleError(f"bundle {path}: file '{name}' is missing; {_REPAIR}") from None
    got = hashlib.sha256(content).hexdigest()
    if got != expected:
        raise BundleError(f"bundle {path}: file '{name}' has SHA-256 {got}, expected {expected}; {_REPAIR}")
    return content


def _hash_line(sha256: str) -> bytes:
    return f"{sha256}  {MANIFEST}\n".encode()


def _read_manifest(source: _Source, path: Path) -> tuple[Manifest, str]:
    """Read manifest.json, checked against manifest.sha256 byte for byte."""
    try:
        content, recorded = source.read(MANIFEST), source.read(MANIFEST_HASH)
    except KeyError as error:
        raise BundleError(
            f"bundle {path}: file '{error.args[0]}' is missing; is this a bundle? If so, {_REPAIR}"
        ) from None
    sha256 = hashlib.sha256(content).hexdigest()
    if recorded != _hash_line(sha256):
        shown = recorded[:100].decode(errors="replace").strip()
        raise BundleError(
            f"bundle {path}: file '{MANIFEST}' has SHA-256 {sha256}, but '{MANIFEST_HASH}' holds '{shown}'; {_REPAIR}"
        )
    return _parse_manifest(path, content), sha256


def _parse_manifest(path: Path, content: bytes | Mapping[str, Any]) -> Manifest:
    try:
        manifest = from_json(Manifest, content) if isinstance(content, bytes) else from_plain(Manifest, content)
    except ValueError as error:
        raise BundleError(f"bundle {path}: {MANIFEST} does not fit schema version {SCHEMA_VERSION}: {error}") from error
    for name in manifest.files:
        _check_name(path, name)
        if name in (MANIFEST, MANIFEST_HASH):
            raise BundleError(f"bundle {path}: files: '{name}' must not list itself")
    return manifest


def load_bundle(path: Path | str) -> Bundle:
    """Open a bundle and verify all of it: the manifest's hash and schema, every file's hash, nothing missing or added.

    Args:
        path: a bundle directory or zip.

    Raises:
        BundleError: anything is wrong; the message names the file, what was got and what was expected.
    """
    path = Path(path)
    with _open_source(path) as source:
        manifest, sha256 = _read_manifest(source, path)
        for name, expected in manifest.files.items():
            _read_checked(source, path, name, expected)
        for name in source.names():
            if name not in manifest.files and name not in (MANIFEST, MANIFEST_HASH):
                raise BundleError(
                    f"bundle {path}: file '{name}' is not listed in {MANIFEST}; remove it if nobody needs it, "
                    f"otherwise {_REPAIR}"
                )
    return Bundle(path, manifest, sha256)


def write_bundle(path: Path | str, manifest: Manifest | Mapping[str, Any], files: Mapping[str, bytes]) -> Bundle:
    """Write a bundle whole or not at all; an old bundle at ``path`` is replaced only once the new one is on the disk.

    Args:
        path: the directory to make, or the zip when it ends with ``.zip``.
        manifest: the manifest's fields; ``files`` is filled in here.
        files: content of every file, by its relative POSIX name.

    Returns:
        The written bundle, loaded and verified again.

    Raises:
        BundleError: the fields do not fit the schema, or a name is not a plain relative path.
        UsageError: something that is not a bundle is in the way.
    """
    path = Path(path)
    fields = to_plain(manifest) if isinstance(manifest, Manifest) else dict(manifest)
    fields["files"] = {name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)}
    document = json.loads(to_json(_parse_manifest(path, fields)))  # NaN and infinity become null
    content = (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
    _parse_manifest(path, content)  # a number that must not be null is found here, before anything is replaced
    everything = {**files, MANIFEST: content, MANIFEST_HASH: _hash_line(hashlib.sha256(content).hexdigest())}
    check_target(path)
    try:
        if path.suffix == ".zip":
            replace_file(path, zip_bytes(everything))
        else:
            replace_directory(path, everything)
    except OSError as error:
        raise HmarlError(f"bundle {path}: cannot write: {error}") from error
    return load_bundle(path)


def check_target(path: Path) -> None:
    """Refuse to replace anything but a bundle: nobody's other files are ever deleted.

    Raises:
        UsageError: something that is not a bundle is in the way.
    """
    if path.suffix == ".zip":
        if path.exists() and not zipfile.is_zipfile(path):
            raise UsageError(f"{path} exists and is not a zip file; choose another path or remove it")
    elif path.exists() and not (path.is_dir() and (not any(path.iterdir()) or (path / MANIFEST_HASH).is_file())):
        raise UsageError(f"{path} exists and is not a bundle; choose another path or remove it")
