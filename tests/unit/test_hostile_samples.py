"""Parity samples whose header is not what follows: hmarl-verify names the file, and allocates nothing for it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmarl.runtime.errors import BundleError
from hmarl.runtime.verify import _read_npy
from raw_bundle import GRAPH, plain_graph, refusal, write_raw

OBSERVATION = "parity/a.observation.npy"
ACTION = "parity/a.expected.action.npy"


def npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def claiming(header: str, version: bytes = b"\x01\x00") -> bytes:
    """A .npy file with this header and two rows of numbers."""
    text = (header + " " * 16 + "\n").encode()
    length = len(text).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + length + text + bytes(48)


HEADER = "{{'descr': '{}', 'fortran_order': False, 'shape': {}}}"


@pytest.mark.parametrize(
    "content",
    [
        claiming(HEADER.format("<f4", "(1000000000000, 6)")),
        claiming(HEADER.format("<f4", "(-1, 6)")),
        claiming(HEADER.format("<f4", "(2.5, 6)")),
        claiming(HEADER.format("|O", "(2, 3)")),
        claiming("(" * 5000),
        claiming("{'descr': '<f4'}"),
        claiming(HEADER.format("<f4", "(2, 6)"), version=b"\x09\x00"),
        b"PK\x03\x04" + bytes(100),
        b"\x80\x04K\x01.",
        b"",
        npy(np.zeros((2, 6), np.float32))[:-1],
        npy(np.zeros((2, 6), np.float32)) + b"\0",
    ],
)
def test_a_file_that_is_not_what_its_header_says_is_refused(content: bytes) -> None:
    with pytest.raises(BundleError, match=rf"{OBSERVATION}: not a plain \.npy file"):
        _read_npy(OBSERVATION, content)


def test_hmarl_verify_names_it(tmp_path: Path) -> None:
    content = claiming(HEADER.format("<f4", "(1000000000000, 6)"))
    files = {GRAPH: plain_graph(), OBSERVATION: content, ACTION: npy(np.zeros(2, np.int64))}
    assert f"{OBSERVATION}: not a plain .npy file" in refusal(write_raw(tmp_path / "b", files))


@pytest.mark.parametrize("array", [np.arange(12.0).reshape(2, 6), np.asfortranarray(np.arange(12).reshape(2, 6))])
def test_what_numpy_writes_is_read(array: np.ndarray[Any, Any]) -> None:
    got = _read_npy(OBSERVATION, npy(array))
    assert got.dtype == array.dtype
    np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize(
    "content", [npy(np.zeros((2, 6), ">f4")), npy(np.zeros((2, 7), np.float32)), npy(np.zeros((), np.float32))]
)
def test_arrays_of_another_kind_are_refused(tmp_path: Path, content: bytes) -> None:
    files = {GRAPH: plain_graph(), OBSERVATION: content, ACTION: npy(np.zeros(2, np.int64))}
    assert f"{OBSERVATION}: got " in refusal(write_raw(tmp_path / "b", files))


@pytest.mark.parametrize("rows", [0, 3])
def test_samples_of_no_or_of_unequal_rows_are_refused(tmp_path: Path, rows: int) -> None:
    files = {
        GRAPH: plain_graph(),
        OBSERVATION: npy(np.zeros((rows, 6), np.float32)),
        ACTION: npy(np.zeros(0, np.int64)),
    }
    assert "expected equal numbers above 0" in refusal(write_raw(tmp_path / "b", files))
