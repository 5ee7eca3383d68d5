"""A bundle of a zoo is fetched whole into memory, verified, and only then put in its place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from hmarl.runtime.bundle import SIGNATURE, Bundle, check_files, load_bundle, place_bundle
from hmarl.runtime.signing.checked import check_signature
from hmarl.runtime.signing.keys import Trust
from hmarl.sdk.errors import BundleError, HmarlError
from hmarl.sdk.zoo.index import LIMIT_BYTES, Entry
from hmarl.sdk.zoo.places import Place


def fetch_files(
    place: Place, name: str, trust: Trust, limit: int = LIMIT_BYTES, entry: Entry | None = None
) -> dict[str, bytes]:
    """All files of a bundle that a trusted signer signed; nothing is written.

    What is asked for is what the signature lists, and the signature is checked before anything else is looked at.

    Args:
        place: where it is.
        name: what it is called there.
        trust: whose signature it must have.
        limit: bytes that all of its files may have.
        entry: what the index says of it; None where there is no index.

    Raises:
        BundleError: it is not there, or is not what the index says.
        SignatureError: it is unsigned, signed by another key, or changed.
        HmarlError: the place cannot be read, or there is more than ``limit``.
    """
    shown = f"{place.shown}/{name}"
    if entry is not None and entry.size_bytes > limit:
        raise HmarlError(
            f"{shown}: got a bundle of {entry.size_bytes:,} bytes, expected at most {limit:,}; --limit-mb allows more"
        )
    signature = _read(place, name, SIGNATURE, limit)
    signed = check_signature(shown, signature, trust)
    assert signature is not None
    files, left = {SIGNATURE: signature}, limit - len(signature)
    for file in sorted(signed.files.pieces):
        content = _read(place, name, file, left)
        if content is None:
            raise BundleError(f"bundle {shown}: file '{file}' is missing, and was signed by {signed.by}")
        files[file] = content
        left -= len(content)
    bundle = check_files(shown, files, trust)
    if entry is not None:
        _check_entry(shown, bundle, files, entry)
    return files


def _read(place: Place, name: str, file: str, limit: int) -> bytes | None:
    """A file of a bundle; None where it is not there."""
    try:
        return place.read(name, file, limit)
    except FileNotFoundError:
        return None


def _check_entry(shown: str, bundle: Bundle, files: Mapping[str, bytes], entry: Entry) -> None:
    """Refuse another bundle than the index has, though the same signer signed it: an older one, say."""
    size_bytes = sum(map(len, files.values()))
    for field, got, expected in (
        ("SHA-256", bundle.sha256, entry.sha256),
        ("size in bytes", f"{size_bytes:,}", f"{entry.size_bytes:,}"),
    ):
        if got != expected:
            raise BundleError(
                f"bundle {shown}: {field}: got {got}, expected {expected} of the index: it is signed, and another one "
                "than this index is of; take an index and bundles that belong together"
            )


def fetch(
    place: Place, name: str, out: Path, trust: Trust, limit: int = LIMIT_BYTES, entry: Entry | None = None
) -> Bundle:
    """Put a bundle of a zoo at ``out``, whole or not at all; see ``fetch_files``.

    Raises:
        UsageError: something that is no bundle is in the way.
    """
    return place_bundle(out, fetch_files(place, name, trust, limit, entry), trust)


def cache_of(entry: Entry) -> Path:
    """Where ``hmarl-zoo serve`` keeps a bundle."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "hmarl" / "zoo" / f"{entry.name}-{entry.sha256[:16]}"


def verified(path: Path, entry: Entry, trust: Trust) -> Bundle | None:
    """The bundle at ``path`` if it is the one of the index, and signed; None if it is not, or is not there."""
    try:
        bundle = load_bundle(path, trust)
    except BundleError:
        return None
    return bundle if bundle.sha256 == entry.sha256 else None


def files_of(bundle: Bundle, limit: int = LIMIT_BYTES) -> dict[str, bytes]:
    """All files of a signed bundle on this machine, for whoever hands it on.

    Raises:
        BundleError: it is not what was loaded any more.
        HmarlError: there is more than ``limit``.
    """
    files = {name: bundle.read(name) for name in bundle.manifest.files} | bundle.own_files()
    size_bytes = sum(map(len, files.values()))
    if size_bytes > limit:
        raise HmarlError(
            f"bundle {bundle.path}: got {size_bytes:,} bytes, expected at most {limit:,}; --limit-mb allows more"
        )
    return files
