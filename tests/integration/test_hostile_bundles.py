"""Bundles whose files are not what they seem are refused with exit code 3, soon and with little memory."""

from __future__ import annotations

import json
import os
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hmarl.runtime.bundle import BundleError, load_bundle
from raw_bundle import GRAPH, hash_line, manifest_bytes, plain_graph, refusal, refusal_of_process, write_raw

README = "README.md"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A good bundle, to be damaged."""
    return write_raw(tmp_path / "b", {GRAPH: plain_graph(), README: b"# A toy\n"})


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(path.parent)  # the whole path may be too long for a socket's name
        try:
            listener.bind(path.name)
        finally:
            os.chdir(here)


def make_sparse(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(200 * 2**30)


SPECIAL: dict[str, tuple[Callable[[Path], None], str]] = {
    "fifo": (os.mkfifo, "is a FIFO"),
    "socket": (make_socket, "is a socket"),
    "endless device": (lambda path: path.symlink_to("/dev/zero"), "is a symbolic link"),
    "link to itself": (lambda path: path.symlink_to(path.name), "is a symbolic link"),
    "sparse": (make_sparse, "has 214,748,364,800 bytes, expected at most"),
    "directory": (Path.mkdir, "is a directory"),
}


def test_the_bundle_is_good_before_it_is_damaged(bundle: Path) -> None:
    assert load_bundle(bundle).agent_ids == ("a",)


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256", README, GRAPH])
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_plain_file_is_refused_before_it_is_read(bundle: Path, name: str, kind: str) -> None:
    make, message = SPECIAL[kind]
    (bundle / name).unlink()
    make(bundle / name)
    with pytest.raises(BundleError) as caught:
        load_bundle(bundle)
    assert name in str(caught.value)
    # A directory among the files is one that is missing.
    assert message in str(caught.value) or (kind == "directory" and "is missing" in str(caught.value))


@pytest.mark.parametrize("kind", ["fifo", "endless device", "sparse"])
def test_hmarl_verify_names_it_with_exit_code_3(bundle: Path, kind: str) -> None:
    make, message = SPECIAL[kind]
    (bundle / "manifest.json").unlink()
    make(bundle / "manifest.json")
    assert message in refusal_of_process(bundle)


def test_a_bundle_that_is_a_fifo_or_a_device_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "b")
    assert "got a FIFO, expected a bundle directory or zip" in refusal(tmp_path / "b")
    assert "got a device" in refusal(Path("/dev/zero"))


def test_a_linked_folder_is_refused_and_a_linked_bundle_is_not(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(bundle)
    assert load_bundle(tmp_path / "current").agent_ids == ("a",)
    (bundle / "agents").rename(tmp_path / "elsewhere")
    (bundle / "agents").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="'agents' is a symbolic link"):
        load_bundle(bundle)


def test_a_folder_that_becomes_a_link_later_is_not_followed(bundle: Path, tmp_path: Path) -> None:
    loaded = load_bundle(bundle)
    (bundle / "agents").rename(tmp_path / "elsewhere")
    (bundle / "agents").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"cannot open 'agents/a\.onnx'"):
        loaded.read(GRAPH)


def test_too_many_files_are_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hmarl.runtime._source.FILES_LIMIT", 100)
    (bundle / "more").mkdir()
    for index in range(100):
        (bundle / "more" / str(index)).touch()
    assert "got more than 100 files" in refusal(bundle)


def test_a_deep_tree_is_refused(bundle: Path) -> None:
    deep = bundle.joinpath(*["d"] * 40)
    deep.mkdir(parents=True)
    assert "lies deeper than 16 directories" in refusal(bundle)


def test_names_that_a_terminal_would_obey_are_refused(bundle: Path) -> None:
    (bundle / "\x1b[2Jgone").touch()
    assert r"'\x1b[2Jgone' is not a plain relative path" in refusal(bundle)


# zips


def zipped(path: Path, more: Callable[[zipfile.ZipFile], None] = lambda archive: None) -> Path:
    """A good bundle as a zip, to which ``more`` adds something."""
    files = {GRAPH: plain_graph()}
    manifest = manifest_bytes(files)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**files, "manifest.json": manifest, "manifest.sha256": hash_line(manifest)}.items():
            archive.writestr(name, content)
        more(archive)
    return path


def patched(path: Path, offset_in_entry: int, value: bytes) -> Path:
    """The zip with bytes of the graph's entry in its list of files replaced."""
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02") + offset_in_entry
    content[start : start + len(value)] = value
    path.write_bytes(content)
    return path


def test_a_good_zip_is_good(tmp_path: Path) -> None:
    assert load_bundle(zipped(tmp_path / "b.zip")).agent_ids == ("a",)


@pytest.mark.parametrize("stated", [40_000, 3])
def test_a_zip_of_many_entries_is_refused_by_their_number(tmp_path: Path, stated: int) -> None:
    content = zipped(tmp_path / "b.zip").read_bytes()[:-22]
    start = content.index(b"PK\x01\x02")
    names = (f"x{index}".encode() for index in range(40_000))
    content += b"".join(
        struct.pack("<4s6H3L5H2L", b"PK\x01\x02", *[0] * 9, len(name), *[0] * 6) + name for name in names
    )
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, stated, stated, len(content) - start, start, 0)
    (tmp_path / "b.zip").write_bytes(content + end)
    assert "got more than 10,000 files" in refusal_of_process(tmp_path / "b.zip")


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (8, b"\1\0", "is encrypted"),
        (10, struct.pack("<H", zipfile.ZIP_LZMA), "is compressed by method 14, expected stored or deflated"),
        (10, struct.pack("<H", zipfile.ZIP_BZIP2), "is compressed by method 12"),
        (10, struct.pack("<H", 99), "is compressed by method 99"),
        (6, struct.pack("<H", 99), "not a readable zip"),
        (24, struct.pack("<I", 2**30), "bytes or more, expected at most 1,073,741,824"),
        (24, struct.pack("<I", 2**29), "has 536,870,912 bytes, expected at most"),
        (24, struct.pack("<I", 2**27), "to 134,217,728 bytes, which no policy does"),
        (24, struct.pack("<I", 10), "cannot read 'agents/a.onnx'"),
        (38, struct.pack("<I", 0o120777 << 16), "is a symbolic link"),
        (42, struct.pack("<I", 2**31), "cannot read 'agents/a.onnx'"),
    ],
)
def test_a_zip_entry_of_another_kind_is_refused(tmp_path: Path, offset: int, value: bytes, message: str) -> None:
    assert message in refusal(patched(zipped(tmp_path / "b.zip"), offset, value))


def test_a_zip_with_damaged_lzma_data_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "b.zip", lambda archive: archive.writestr("z", bytes(1000), zipfile.ZIP_LZMA))
    content = bytearray(path.read_bytes())
    start = content.rindex(b"PK\x03\x04")
    content[start + 40 : start + 50] = b"\xff" * 10
    path.write_bytes(content)
    assert "'z' is compressed by method 14" in refusal(path)


def test_a_name_that_is_twice_in_a_zip_is_refused(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = zipped(tmp_path / "b.zip", lambda archive: archive.writestr(GRAPH, b"another"))
    assert "is in the zip more than once" in refusal(path)


def test_a_zip64_is_refused(tmp_path: Path) -> None:
    content = zipped(tmp_path / "b.zip").read_bytes()
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 1)
    (tmp_path / "b.zip").write_bytes(content[:-22] + locator + content[-22:])
    assert "of the zip64 kind" in refusal(tmp_path / "b.zip")


def test_a_sparse_zip_is_refused_by_its_size(tmp_path: Path) -> None:
    make_sparse(tmp_path / "b.zip")
    assert "or more, expected at most 1,073,741,824" in refusal(tmp_path / "b.zip")


@pytest.mark.parametrize("cut", [1, 10, 21, 23, 60, 200])
def test_a_zip_that_is_cut_off_is_refused(tmp_path: Path, cut: int) -> None:
    content = zipped(tmp_path / "b.zip").read_bytes()
    (tmp_path / "b.zip").write_bytes(content[:-cut])
    with pytest.raises(BundleError, match="not a readable zip"):
        load_bundle(tmp_path / "b.zip")


def test_a_zip_with_a_comment_is_read(tmp_path: Path) -> None:
    def comment(archive: zipfile.ZipFile) -> None:
        archive.comment = b"made by hand"

    assert load_bundle(zipped(tmp_path / "b.zip", comment)).agent_ids == ("a",)


# manifests


def document(**fields: object) -> bytes:
    return manifest_bytes({GRAPH: b""}, **fields)


@pytest.mark.parametrize(
    "manifest",
    [
        b"[" * 1_000_000,
        document(training=0).replace(b'"training": 0', b'"training": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        document(opset=0).replace(b'"opset": 0', b'"opset": ' + b"9" * 100_000),
        document(opset=0).replace(b'"opset": 0', b'"opset": 1e999999'),
        document(training={"a": 0}).replace(b'{"a": 0}', b'{"a": 1e999999}'),
        document(training={"a": float("nan")}),
        document(name="x").replace(b'"x"', b'"\xff\xfe"'),
        document(name="x").replace(b'"x"', rb'"\ud800"'),
        document(agents={}),
        b"",
        b"null",
        b"\0" * 1000,
    ],
    ids=[
        "deep list",
        "deep dict",
        "long",
        "huge",
        "huge in any",
        "NaN",
        "bytes",
        "surrogate",
        "kind",
        "empty",
        "null",
        "zeros",
    ],
)
def test_manifests_that_are_no_such_json_are_refused(tmp_path: Path, manifest: bytes) -> None:
    write_raw(tmp_path / "b", {GRAPH: b""}, manifest)
    assert "manifest.json" in refusal(tmp_path / "b")


def test_a_manifest_of_many_files_or_bytes_is_refused(tmp_path: Path) -> None:
    write_raw(tmp_path / "b", {GRAPH: b""}, document(files=dict.fromkeys(map(str, range(20_000)), "0" * 64)))
    assert "files: got 20,000, expected at most 10,000" in refusal(tmp_path / "b")
    write_raw(tmp_path / "c", {GRAPH: b""}, document(name="x" * 2**23))
    assert "'manifest.json' has 8,38" in refusal(tmp_path / "c")


def test_a_model_card_may_be_large_but_not_endless(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    files = {GRAPH: plain_graph(), README: bytes(10_000_000)}
    assert load_bundle(write_raw(tmp_path / "b", files)).agent_ids == ("a",)
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["files"][README]
