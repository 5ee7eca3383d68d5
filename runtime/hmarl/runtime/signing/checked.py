"""Bundles whose signature is checked on the very bytes that are used, and bundles that get one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hmarl.runtime._files import remove_temporaries, replace_file, zip_bytes
from hmarl.runtime._source import FILE_LIMIT_BYTES, Source, check_file_size, check_name, open_source, quoted
from hmarl.runtime.bundle import SIGNATURE, SIGNATURE_LIMIT_BYTES, Bundle, load_bundle, read_checked
from hmarl.runtime.errors import BundleError, HmarlError, SignatureError

if TYPE_CHECKING:
    from hmarl.runtime.signing.keys import Signed, Signer, Trust

_REPAIR = "get the bundle again from its maker, and its signature with it"


class CheckedSource(Source):
    """The files of a bundle, none of which is handed out unless it is what a trusted signer signed.

    Closing it is up to whoever opened what lies below it.

    Args:
        source: the bundle's files.
        path: the bundle.
        trust: whose signature it must have.

    Raises:
        SignatureError: it is unsigned, or signed by another key, or a file is missing or was added.
    """

    def __init__(self, source: Source, path: Path, trust: Trust) -> None:
        self._source = source
        self._path = path
        try:
            content = source.read(SIGNATURE, SIGNATURE_LIMIT_BYTES)
        except KeyError:
            content = None
        except BundleError as error:
            raise SignatureError(str(error)) from error
        self._signed = check_signature(path, content, trust)
        names = set(source.names()) - {SIGNATURE}
        for name, problem in (
            *((name, "is missing, and was signed") for name in sorted(self._signed.files.pieces.keys() - names)),
            *((name, "was not signed") for name in sorted(names - self._signed.files.pieces.keys())),
        ):
            raise SignatureError(f"bundle {path}: file {quoted(name)} {problem} by {self.signed_by}; {_REPAIR}")

    @property
    def signed_by(self) -> str:
        """Whose signature it is."""
        return self._signed.by

    def close(self) -> None:
        """Nothing: see above."""

    def names(self) -> list[str]:
        """See ``Source``."""
        return self._source.names()

    def read(self, name: str, limit: int = FILE_LIMIT_BYTES) -> bytes:
        """See ``Source``.

        Raises:
            SignatureError: the content is not what was signed.
        """
        content = self._source.read(name, limit)
        if not self._signed.files.match(name, content):
            raise SignatureError(
                f"bundle {self._path}: file {quoted(name)} is not what {self.signed_by} signed: it was changed since; "
                f"{_REPAIR}"
            )
        return content


def check_signature(path: Path | str, content: bytes | None, trust: Trust) -> Signed:
    """What was signed of a bundle, once its signature has been checked.

    Args:
        path: the bundle.
        content: of the signature file; None where there is none.
        trust: whose signature it must be.

    Raises:
        SignatureError: there is none, or it is by another key, or was changed.
        BundleError: a file that was signed has no plain name.
    """
    if content is None:
        raise SignatureError(
            f"bundle {path}: it is unsigned, there is no '{SIGNATURE}' in it; expected a signature by "
            f"{trust.expected}, as hmarl-sign makes it"
        )
    try:
        signed = trust.check(content)
    except ValueError as error:
        raise SignatureError(f"bundle {path}: {SIGNATURE}: {error}; {_REPAIR}") from error
    for name in signed.files.pieces:
        check_name(Path(path), name)
    return signed


def sign_bundle(path: Path, signer: Signer) -> Bundle:
    """Put a signature into a bundle, in the place of one that is there; nothing else of it changes.

    Args:
        path: the directory; or the zip, which is written anew.
        signer: whose signature.

    Raises:
        BundleError: the bundle is not in order, or has more files than a signature may have.
        HmarlError: nothing can be written there.
    """
    if path.is_dir():
        remove_temporaries(path, SIGNATURE)
    try:
        bundle = load_bundle(path)
    except BundleError as error:
        raise BundleError(f"nothing was signed: {error}") from error
    content = signer.sign(path.resolve().name, bundle.digests, SIGNATURE)
    check_file_size(path, SIGNATURE, len(content), SIGNATURE_LIMIT_BYTES)
    try:
        if path.is_dir():
            replace_file(path / SIGNATURE, content)
        else:
            with open_source(path) as source:
                files = {name: read_checked(source, path, name, sha256) for name, sha256 in bundle.digests.items()}
            replace_file(path.resolve(), zip_bytes({**files, SIGNATURE: content}))
    except OSError as error:
        raise HmarlError(f"bundle {path}: cannot write: {error.strerror or error}") from error
    return bundle
