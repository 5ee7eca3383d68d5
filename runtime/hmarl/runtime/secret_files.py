"""Files that hold what lets one in: bearer tokens, private keys, and the names of those who are let in."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from hmarl.runtime import hashing
from hmarl.runtime.errors import UsageError

SHORTEST_TOKEN = 16
UNNAMED = "token"  # whom a token without a name is of
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")  # what RFC 6750 lets a bearer token consist of
_PUBLIC = re.compile(rb"-----BEGIN (PUBLIC KEY|CERTIFICATE)-----")
_LARGEST_BYTES = 2**20


def read_file(option: str, path: Path) -> bytes:
    """The content of a file that an option names.

    Raises:
        UsageError: it cannot be read, or is absurdly large.
    """
    return _read(option, path)[0]


def _read(option: str, path: Path) -> tuple[bytes, os.stat_result]:
    """Content and state of one and the same file, whatever gets its name meanwhile."""
    try:
        with path.open("rb") as stream:
            found = os.fstat(stream.fileno())
            content = stream.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{option}: cannot read '{path}': {error.strerror}") from error
    if len(content) > _LARGEST_BYTES:
        raise UsageError(f"{option}: got more than {_LARGEST_BYTES} bytes in '{path}', expected a small text file")
    return content, found


def read_secret(option: str, path: Path) -> bytes:
    """The content of a file that ``check_secret`` finds private.

    Raises:
        UsageError: it cannot be read, or others may read or write it as well.
    """
    content, found = _read(option, path)
    check_secret(option, path, found, content)
    return content


def check_secret(option: str, path: Path, found: os.stat_result, content: bytes) -> None:
    """Refuse a secret that others may read or write, its group among them, as ssh does.

    The group may read the file of another user than the process's own: so an administrator, or Kubernetes, hands a
    service its key. What is no regular file has no content that lies about. A public key or a certificate, given by
    mistake, is no secret: whoever needs a private key says so.

    Args:
        option: that names the file.
        path: it.
        found: its state.
        content: likewise.

    Raises:
        UsageError: others may, with the ``chmod`` that changes it.
    """
    own = found.st_uid == os.geteuid()
    open_to = stat.S_IRWXO | (stat.S_IRWXG if own else stat.S_IWGRP)
    public = _PUBLIC.search(content) and b"PRIVATE KEY" not in content
    if stat.S_ISREG(found.st_mode) and found.st_mode & open_to and not public:
        who, change = ("its owner alone", "go-rwx") if own else ("its owner and group alone", "g-w,o-rwx")
        raise UsageError(
            f"{option}: got '{path}' with mode {stat.S_IMODE(found.st_mode):04o}, expected a file that {who} may read: "
            f"chmod {change} {_quoted(str(path))}"
        )


@dataclass(frozen=True)
class Tokens:
    """Bearer tokens by whose they are, kept as digests."""

    digests: tuple[tuple[bytes, str], ...]

    def name_of(self, token: str) -> str | None:
        """Whose token it is; None when it is none of them. Takes equally long whichever it is."""
        given, found = _digest(token), None
        for digest, name in self.digests:
            if hashing.equal(digest, given):
                found = name
        return found


def read_tokens(option: str, path: Path) -> Tokens:
    """The tokens of a file: one a line, ``TOKEN`` or ``NAME TOKEN``; ``#`` begins a comment.

    Raises:
        UsageError: there is none, or a line is no token.
    """
    return Tokens(tuple((_digest(token), name) for name, token in _token_lines(option, path)))


def first_token(option: str, path: Path) -> str:
    """The token that a client shows: the first of a file.

    Raises:
        UsageError: see ``read_tokens``.
    """
    return _token_lines(option, path)[0][1]


def read_names(option: str, path: Path) -> frozenset[str]:
    """The names of a file, one a line; ``#`` begins a comment.

    Raises:
        UsageError: it cannot be read, or others may write it.
    """
    content, found = _read(option, path)
    if found.st_mode & stat.S_IWOTH:
        raise UsageError(
            f"{option}: others may write '{path}', and so let themselves in: chmod o-w {_quoted(str(path))}"
        )
    return frozenset(_lines(option, path, content))


def _token_lines(option: str, path: Path) -> list[tuple[str, str]]:
    found = []
    for number, line in enumerate(_lines(option, path, read_secret(option, path)), 1):
        *name, token = line.split()
        if len(name) > 1 or len(token) < SHORTEST_TOKEN or _TOKEN.fullmatch(token) is None:
            raise UsageError(
                f"{option}: '{path}': entry {number}: expected TOKEN or NAME TOKEN, with a token of at least "
                f"{SHORTEST_TOKEN} letters, digits and -._~+/= (what is there is not repeated here)"
            )
        found.append((name[0] if name else UNNAMED, token))
    if not found:
        raise UsageError(f"{option}: got no token in '{path}', expected one a line")
    return found


def _lines(option: str, path: Path, content: bytes) -> list[str]:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{option}: '{path}' is no text file") from None
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def _digest(token: str) -> bytes:
    return hashing.sha256(token.encode())


def _quoted(path: str) -> str:
    """As a word of a shell's command."""
    import shlex  # noqa: PLC0415 - for errors alone

    return shlex.quote(path)
