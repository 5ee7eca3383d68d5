"""The in-toto statement of a signature: which files there are, and their digests (OMS 1.0, sections 5 and 6)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from hmarl.runtime.signing.strict_json import read_strictly

_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_HASHES: dict[str, Callable[[bytes], Any]] = {"sha256": hashlib.sha256, "blake2b": hashlib.blake2b}
_SHARD = re.compile(r"(.+)(:[0-9]+:[0-9]+)", re.DOTALL)
# What no client looks at: the files of version control, and the signature itself.
_GIT = (".git", ".gitattributes", ".github", ".gitignore")
_Text = Annotated[str, msgspec.Meta(min_length=1)]
_Hex = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]+\Z")]


class _Subject(msgspec.Struct):
    name: _Text
    digest: dict[str, _Hex]


class _Resource(msgspec.Struct):
    name: _Text
    digest: _Hex
    algorithm: str


class _Serialization(msgspec.Struct, forbid_unknown_fields=True):
    method: Literal["files", "shards"]
    hash_type: str
    allow_symlinks: bool
    # 1000.0 as well, which is JSON's 1000
    shard_size: Annotated[int, msgspec.Meta(gt=0)] | Annotated[float, msgspec.Meta(gt=0)] | None = None
    ignore_paths: list[str] = []


class _Predicate(msgspec.Struct, forbid_unknown_fields=True):
    resources: Annotated[list[_Resource], msgspec.Meta(min_length=1)]
    serialization: _Serialization


class _Statement(
    msgspec.Struct, forbid_unknown_fields=True, rename={"type": "_type", "predicate_type": "predicateType"}
):
    type: str
    subject: Annotated[list[_Subject], msgspec.Meta(min_length=1, max_length=1)]
    predicate_type: str
    predicate: _Predicate


@dataclass(frozen=True)
class SignedFiles:
    """What was signed.

    Attributes:
        hash_name: of the digests.
        shard_bytes: length of the pieces that have a digest each; None for whole files.
        pieces: by file, its pieces as (``:begin:end`` or nothing, hex digest).
    """

    hash_name: str
    shard_bytes: int | None
    pieces: Mapping[str, frozenset[tuple[str, str]]]

    def match(self, name: str, content: bytes) -> bool:
        """Whether this is the content that was signed under a name."""
        return self.pieces.get(name) == self._pieces_of(content)

    def _pieces_of(self, content: bytes) -> frozenset[tuple[str, str]]:
        hashed = _HASHES[self.hash_name]
        if self.shard_bytes is None:
            return frozenset({("", hashed(content).hexdigest())})
        parts = [
            (begin, content[begin : begin + self.shard_bytes]) for begin in range(0, len(content), self.shard_bytes)
        ]
        return frozenset((f":{begin}:{begin + len(part)}", hashed(part).hexdigest()) for begin, part in parts)


def write_statement(model: str, digests: Mapping[str, str], signature: str) -> bytes:
    """The statement to be signed.

    Args:
        model: what the bundle is called.
        digests: hex SHA-256 by file.
        signature: the file that will hold the signature.
    """
    resources = [{"name": name, "algorithm": "sha256", "digest": digests[name]} for name in sorted(digests)]
    root = hashlib.sha256(b"".join(bytes.fromhex(each["digest"]) for each in resources)).hexdigest()
    statement: dict[str, Any] = {
        "_type": _TYPE,
        "subject": [{"name": model, "digest": {"sha256": root}}],
        "predicateType": _PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [*_GIT, signature],
            },
            "resources": resources,
        },
    }
    return json.dumps(statement).encode()


def read_statement(payload: bytes) -> SignedFiles:
    """What a statement says, whose signature has been checked.

    Paths that the signer ignored are not: whoever reads a bundle wants every file of it signed.

    Raises:
        ValueError: it is none of the specification's, or of a kind that is not known here.
    """
    statement = read_strictly(payload, _Statement)
    for field, got, expected in (
        ("_type", statement.type, _TYPE),
        ("predicateType", statement.predicate_type, _PREDICATE_TYPE),
    ):
        if got != expected:
            raise ValueError(f"{field}: got {got[:100]!a}, expected '{expected}'")
    resources, how = statement.predicate.resources, statement.predicate.serialization
    if how.hash_type not in _HASHES:
        raise ValueError(f"hash_type: got {how.hash_type[:100]!a}, expected {' or '.join(_HASHES)}")
    size = how.shard_size
    if (how.method == "shards") != (size is not None) or (isinstance(size, float) and not size.is_integer()):
        raise ValueError(f"shard_size: got {size} with method '{how.method}'")
    shard_bytes = None if size is None else int(size)
    return SignedFiles(how.hash_type, shard_bytes, _pieces(resources, how.hash_type, shard_bytes))


def _pieces(
    resources: list[_Resource], hash_name: str, shard_bytes: int | None
) -> dict[str, frozenset[tuple[str, str]]]:
    """See ``SignedFiles.pieces``.

    Raises:
        ValueError: a digest is of another kind, or a piece has no place or is there twice.
    """
    names = [hash_name]
    if shard_bytes is not None:
        names.append(f"{hash_name}-sharded-{shard_bytes}")  # what the reference implementation calls it
    pieces: dict[str, dict[str, str]] = {}
    for resource in resources:
        if resource.algorithm not in names:
            raise ValueError(f"algorithm: got {resource.algorithm[:100]!a}, expected {' or '.join(names)}")
        file, piece = resource.name, ""
        if shard_bytes is not None:
            match = _SHARD.fullmatch(resource.name)
            if match is None:
                raise ValueError(f"name: got {resource.name[:100]!a}, expected FILE:BEGIN:END")
            file, piece = match[1], match[2]
        if piece in pieces.setdefault(file, {}):
            raise ValueError(f"resources: {resource.name[:100]!a} is there more than once")
        pieces[file][piece] = resource.digest
    return {file: frozenset(parts.items()) for file, parts in pieces.items()}
