"""Hashes and names that cannot be guessed: the same with OpenSSL and without, which an agent never loads."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys

import pytest

from hmarl.runtime import hashing

SIZES = (0, 1, 55, 64, 2**16 - 1, 2**16, 2**16 + 1, 3 * 2**16 + 5, hashing.LARGE_BYTES - 1, hashing.LARGE_BYTES)
WAYS = pytest.mark.parametrize("inner", [True, False])


def withheld(inner: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter that has nothing of its own, unless ``inner``."""
    if not inner:
        monkeypatch.setattr(hashing, "_SHA256", None)
        monkeypatch.setattr(hashing, "_EQUAL", None)


@WAYS
def test_the_hash_is_sha256(inner: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    withheld(inner, monkeypatch)
    assert hashing.sha256(b"abc").hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    for size in SIZES:
        content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        assert hashing.sha256(content) == hashlib.sha256(content).digest(), size


@WAYS
def test_secrets_are_compared_as_a_whole(inner: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    withheld(inner, monkeypatch)
    assert hashing.equal(b"secret", b"secret") is True
    for other in (b"secreT", b"Secret", b"secret ", b"secre", b""):
        assert hashing.equal(b"secret", other) is False


def test_names_are_random_and_of_the_letters_that_addresses_may_have() -> None:
    urlsafe, digits = ({make(16) for _ in range(200)} for make in (hashing.token_urlsafe, hashing.token_hex))
    assert len(urlsafe) == len(digits) == 200
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{22}", each) for each in urlsafe)
    assert all(re.fullmatch(r"[0-9a-f]{32}", each) for each in digits)
    assert {character for each in urlsafe for character in each} >= set("-_azAZ09")


def test_the_interpreters_own_needs_no_openssl_until_there_is_much_to_hash() -> None:
    program = """
import sys
from hmarl.runtime import hashing
hashing.sha256(bytes(hashing.LARGE_BYTES - 1)), hashing.equal(b"1", b"2"), hashing.token_urlsafe(16)
before = sorted({"_hashlib", "hashlib", "hmac", "random", "secrets"} & set(sys.modules))
hashing.sha256(bytes(hashing.LARGE_BYTES))
print(before, "_hashlib" in sys.modules)
"""
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=120)
    assert told.stdout.strip() == "[] True"
