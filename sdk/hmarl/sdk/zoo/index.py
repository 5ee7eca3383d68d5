"""The index of a zoo: which bundles it has, and the digest and size that each must have."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import msgspec

from hmarl.runtime.errors import one_line
from hmarl.runtime.manifest import check_printable
from hmarl.runtime.plain_json import read_json
from hmarl.sdk.errors import HmarlError, UsageError, unknown_name

SCHEMA_VERSION = 1
# What a bundle of a zoo may have in all; those that are larger are for people who know why (``--limit-mb``).
LIMIT_BYTES = 2_000_000
INDEX_LIMIT_BYTES = 2**20
_HERE = Path(__file__).parent
SHIPPED_INDEX = _HERE / "index.json"
SHIPPED_KEY = _HERE / "zoo.pub.pem"

_LINE_LIMIT = 300  # characters
_Count = Annotated[int, msgspec.Meta(ge=1, le=2**53)]


class Entry(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One bundle of a zoo.

    Attributes:
        name: by which it is asked for, and what its folder is called.
        task: that it was trained for.
        algorithm: that it was trained with.
        agents: how many.
        return_mean: of the deployed policies, as its card has it; None where it was not evaluated.
        size_bytes: of all its files.
        sha256: of its manifest, which names its whole content.
        about: what it is there to show.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9][a-z0-9._-]{0,99}\Z")]
    task: str
    algorithm: str
    agents: _Count
    return_mean: float | None
    size_bytes: _Count
    sha256: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    about: str

    def __post_init__(self) -> None:
        for field in ("task", "algorithm", "about"):
            check_printable(field, getattr(self, field), _LINE_LIMIT)
        if self.return_mean is not None and not math.isfinite(self.return_mean):
            raise ValueError(f"return_mean: got {self.return_mean}, expected a finite number or null")


class Index(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a zoo has.

    Attributes:
        schema_version: of this document.
        models: the bundles, by name.
    """

    schema_version: int
    models: list[Entry]

    def entry(self, name: str) -> Entry:
        """The bundle that is called so.

        Raises:
            UsageError: there is none; the message names those there are.
        """
        for entry in self.models:
            if entry.name == name:
                return entry
        raise UsageError(unknown_name("model", name, [entry.name for entry in self.models], "hmarl-zoo list"))


def read_index(content: bytes, named: str) -> Index:
    """An index, checked.

    Args:
        content: the JSON document.
        named: where it is from, for messages.

    Raises:
        HmarlError: it is none, or of another version, or names a bundle twice.
    """
    try:
        index = msgspec.convert(read_json(content), Index)
    except (ValueError, msgspec.ValidationError) as error:
        raise HmarlError(
            f"index {named}: got {one_line(error)}, expected a zoo's index as docs/zoo.md describes it"
        ) from error
    if index.schema_version != SCHEMA_VERSION:
        raise HmarlError(
            f"index {named}: schema_version: got {index.schema_version}, expected {SCHEMA_VERSION}; install the "
            "version of hmarl that the zoo is for"
        )
    names = [entry.name for entry in index.models]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise HmarlError(f"index {named}: models: got '{twice[0]}' more than once, expected it once")
    return index


def write_index(path: Path, index: Index) -> None:
    """Write an index; equal content gives equal bytes."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(index), indent=1) + b"\n")


def shipped_models() -> Path | None:
    """The folder ``models/`` of the checkout that this is run from; None for what is installed from a wheel."""
    sources = _HERE.parents[2]
    root = sources.parent
    if sources.name == "sdk" and (root / "pyproject.toml").is_file() and (root / "models").is_dir():
        return root / "models"
    return None
