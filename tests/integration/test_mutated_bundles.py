"""Bundles with random damage whose hashes are right all the same: hmarl-verify ends with 0 or 3 and one line, soon."""

from __future__ import annotations

import contextlib
import io
import random
import zipfile
from pathlib import Path

import pytest

from hmarl.runtime._onnx import checked_graph
from hmarl.runtime.bundle import BundleError
from hmarl.runtime.commands import verify
from raw_bundle import GRAPH, hash_line, manifest_bytes, plain_graph, raw_graph, write_raw


def mutated(content: bytes, generator: random.Random) -> bytes:
    """Bits flipped, bytes replaced, cut out, put in or repeated, varints padded: one to sixteen times."""
    changed = bytearray(content)
    for _ in range(generator.choice([1, 1, 2, 4, 16])):
        at, length = generator.randrange(len(changed)), generator.choice([1, 2, 8, 64])
        match generator.randrange(7):
            case 0:
                changed[at] ^= 1 << generator.randrange(8)
            case 1:
                changed[at] = generator.choice([0, 1, 0x7F, 0x80, 0xFF])
            case 2:
                del changed[at : at + length]
            case 3:
                changed[at:at] = generator.randbytes(length)
            case 4:
                other = generator.randrange(len(changed))
                changed[at : at + length] = changed[other : other + length]
            case 5:
                changed[at : at + 1] = bytes([changed[at] | 0x80, *[0x80] * generator.randrange(4), 0])
            case 6:
                changed[at : at + 1] = b"\xff" * 9 + b"\x01"
        changed = changed or bytearray(b"\0")
    return bytes(changed[: generator.randrange(len(changed))] if generator.random() < 0.1 else changed) or b"\0"


def ending(path: Path) -> int:
    """The exit code of hmarl-verify, run in this process; the trial of a graph has one of its own."""
    refusal: BundleError | None = None
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            verify.verify.main([str(path)], standalone_mode=False)
        except BundleError as error:
            refusal = error
    assert refusal is None or str(refusal).isprintable()
    return 0 if refusal is None else refusal.exit_code


@pytest.mark.timeout(120)
def test_mutated_manifests(tmp_path: Path) -> None:
    generator, files = random.Random(1), {GRAPH: b"junk"}
    good = manifest_bytes(files)
    codes = {
        ending(write_raw(tmp_path / str(index), files, mutated(good, generator))) for index in range(150)
    }  # "junk" is never served, whatever the manifest says
    assert codes == {3}


@pytest.mark.timeout(120)
def test_mutated_zips(tmp_path: Path) -> None:
    generator, files = random.Random(2), {GRAPH: b"junk"}
    manifest, buffer = manifest_bytes(files), io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**files, "manifest.json": manifest, "manifest.sha256": hash_line(manifest)}.items():
            archive.writestr(name, content)
    for _ in range(100):
        (tmp_path / "b.zip").write_bytes(mutated(buffer.getvalue(), generator))
        assert ending(tmp_path / "b.zip") == 3


@pytest.mark.timeout(240)
def test_mutated_graphs(tmp_path: Path) -> None:
    generator, good = random.Random(3), plain_graph()
    passed = 0
    for index in range(1000):
        graph = mutated(good, generator)
        try:
            checked_graph("g", graph)
        except BundleError:
            continue
        passed += 1
        if passed % 40 == 0:
            ending(raw_graph(tmp_path / str(index), graph))
    assert passed > 100
