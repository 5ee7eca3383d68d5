"""SHA-256, and names that cannot be guessed, without OpenSSL.

Python's ``hashlib``, ``hmac`` and ``secrets`` load it when they are imported: 3.7 MB in each agent of a team, for a few
hashes at its start. The interpreter has a SHA-256 of its own, where Python's ``random`` takes its hashes from for the
same reason. OpenSSL is taken where there is none, and for what is large, which it hashes several times as fast.
"""

from __future__ import annotations

import os
from base64 import urlsafe_b64encode
from importlib import import_module
from typing import Any

LARGE_BYTES = 2**20  # from here on OpenSSL is done sooner, the time to load it included
_PART_BYTES = 2**16  # between parts other threads have their turns, for which the interpreter's own does not stop


def _inner(attribute: str, *modules: str) -> Any:
    """What the interpreter has of its own, whose modules change their names; None where it has none."""
    for name in modules:
        try:
            return getattr(import_module(name), attribute)
        except (ImportError, AttributeError):
            continue
    return None


_SHA256 = _inner("sha256", "_sha2", "_sha256")  # of Python 3.12 and later, and before
_EQUAL = _inner("_compare_digest", "_operator")  # which ``hmac`` takes too where there is no OpenSSL


def sha256(content: bytes) -> bytes:
    """The SHA-256 of a content: 32 bytes."""
    if _SHA256 is None or len(content) >= LARGE_BYTES:
        import hashlib  # noqa: PLC0415 - see above

        return hashlib.sha256(content).digest()
    hashed, view = _SHA256(), memoryview(content)
    for start in range(0, len(view), _PART_BYTES):
        hashed.update(view[start : start + _PART_BYTES])
    digest: bytes = hashed.digest()
    return digest


def equal(one: bytes, other: bytes) -> bool:
    """Whether two secrets are the same, found out in a time that does not depend on where they differ."""
    if _EQUAL is None:
        import hmac  # noqa: PLC0415 - see above

        return hmac.compare_digest(one, other)
    return bool(_EQUAL(one, other))


def token_urlsafe(size: int) -> str:
    """So many random bytes of the operating system, in letters that addresses may have; as of ``secrets``."""
    return urlsafe_b64encode(os.urandom(size)).rstrip(b"=").decode("ascii")


def token_hex(size: int) -> str:
    """The same in hexadecimal digits."""
    return os.urandom(size).hex()
