"""Bundles: every kind of damage is found and named; writing is all or nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hmarl.runtime import _files
from hmarl.runtime.bundle import Bundle, BundleError, HmarlError, UsageError, load_bundle, write_bundle
from toy_bundle import toy_agent, toy_manifest, write_toy_bundle

FILES = ["manifest.json", "manifest.sha256", "README.md", "agents/agent_0.onnx", "agents/agent_1.onnx"]


@pytest.fixture
def copy(toy_bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_bundle.path, tmp_path / "copy"))


def small_manifest() -> dict[str, object]:
    return toy_manifest([toy_agent("a", observation_size=2, action="discrete", sizes=(2,), plain=True)])


def write_small(path: Path, text: bytes = b"graph") -> Bundle:
    return write_bundle(path, small_manifest(), {"agents/a.onnx": text})


def test_the_files_listed_here_are_all_files(toy_bundle: Bundle) -> None:
    found = {path.relative_to(toy_bundle.path).as_posix() for path in toy_bundle.path.rglob("*") if path.is_file()}
    assert found == set(FILES)


def test_a_good_bundle_loads_from_a_directory_and_a_zip(tmp_path: Path) -> None:
    directory, archive = write_toy_bundle(tmp_path / "b"), write_toy_bundle(tmp_path / "b.zip")
    assert zipfile.is_zipfile(archive.path)
    assert directory.sha256 == archive.sha256 == load_bundle(tmp_path / "b.zip").sha256
    assert archive.read("README.md") == directory.read("README.md") == b"# A toy\n"
    assert directory.agent_ids == ("agent_0", "agent_1")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_one_flipped_bit_in_any_file_is_found(copy: Path, name: str, where: str) -> None:
    content = bytearray((copy / name).read_bytes())
    index = {"first": 0, "middle": len(content) // 2, "last": -1}[where]
    content[index] ^= 0x20  # also turns a lower-case hex digit into an upper-case one
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=r"SHA-256 [0-9a-f]{64}") as caught:
        load_bundle(copy)
    assert f"'{name}'" in str(caught.value)
    assert "again" in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_in_a_zip_member_is_found(toy_bundle: Bundle, tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for each in FILES:
            content = bytearray((toy_bundle.path / each).read_bytes())
            content[3] ^= 1 if each == name else 0
            archive.writestr(each, bytes(content))
    with pytest.raises(BundleError, match=name):
        load_bundle(tmp_path / "b.zip")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"'{name}' is missing"):
        load_bundle(copy)


@pytest.mark.parametrize("name", [".DS_Store", "agents/extra.onnx", "plots/.hidden"])
def test_an_unlisted_file_is_named(copy: Path, name: str) -> None:
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_bytes(b"x")
    with pytest.raises(BundleError, match=f"'{name}' is not listed"):
        load_bundle(copy)


def test_a_symbolic_link_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "README.md").rename(tmp_path / "elsewhere")
    (copy / "README.md").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"'README\.md' is a symbolic link"):
        load_bundle(copy)


@pytest.mark.parametrize("name", ["../up", "/abs", "a/../../up", "a\\b", "c:x", "a//b", "./a", ""])
def test_names_that_leave_the_bundle_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="not a plain relative path"):
        write_bundle(tmp_path / "b", small_manifest(), {"agents/a.onnx": b"", name: b""})
    agent = {**small_manifest()["agents"][0], "action_space": {"type": "discrete", "n": 0}}
    with pytest.raises(BundleError, match=r"agents\.0\.action_space\.n: Expected `int` >= 1"):
        write_bundle(tmp_path / "b", {**small_manifest(), "agents": [agent]}, {"agents/a.onnx": b""})
    with pytest.raises(BundleError, match="unknown field `colour`"):
        write_bundle(tmp_path / "b", {**small_manifest(), "colour": "red"}, {"agents/a.onnx": b""})
    assert list(tmp_path.iterdir()) == []


def test_a_zip_with_a_member_outside_is_refused(toy_bundle: Bundle, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for name in FILES:
            archive.writestr(name, (toy_bundle.path / name).read_bytes())
        archive.writestr("../up", b"x")
    with pytest.raises(BundleError, match=r"'\.\./up' is not a plain relative path"):
        load_bundle(tmp_path / "b.zip")


def test_what_is_no_bundle_says_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such directory or zip"):
        load_bundle(tmp_path / "nothing")
    with pytest.raises(BundleError, match=r"'manifest\.json' is missing; is this a bundle"):
        load_bundle(tmp_path)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(BundleError, match="not a readable zip"):
        load_bundle(tmp_path / "text")


def test_an_unknown_agent_is_answered_with_the_known_ones(toy_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"'agnt_0'; did you mean 'agent_0'\? \(known: agent_0, agent_1\)"):
        toy_bundle.agent("agnt_0")


def test_read_checks_the_bytes_it_returns(copy: Path) -> None:
    bundle = load_bundle(copy)
    (copy / "README.md").write_bytes(b"# changed\n")
    with pytest.raises(BundleError, match=r"'README\.md' has SHA-256"):
        bundle.read("README.md")
    with pytest.raises(BundleError, match="not listed"):
        bundle.read("../secrets")


def test_a_manifest_of_another_schema_is_refused_with_the_field(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="this hmarl reads version 1"):
        write_bundle(tmp_path / "b", {**small_manifest(), "schema_version": 2}, {"agents/a.onnx": b""})
    fields = small_manifest()
    del fields["opset"]
    with pytest.raises(BundleError, match="missing required field `opset`"):
        write_bundle(tmp_path / "b", fields, {"agents/a.onnx": b""})
    with pytest.raises(BundleError, match="parity_tolerance: Expected `float`, got `null`"):
        write_bundle(
            tmp_path / "b", {**small_manifest(), "parity_tolerance": {"cpu": float("nan")}}, {"agents/a.onnx": b""}
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["b", "b.zip"])
def test_writing_replaces_a_bundle_and_leaves_nothing_behind(tmp_path: Path, name: str) -> None:
    write_small(tmp_path / name, b"old")
    written = write_small(tmp_path / name, b"new")
    assert written.read("agents/a.onnx") == b"new"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_equal_content_gives_equal_zips(tmp_path: Path) -> None:
    assert write_small(tmp_path / "1.zip").path.read_bytes() == write_small(tmp_path / "2.zip").path.read_bytes()


@pytest.mark.parametrize("name", ["b", "b.zip"])
@pytest.mark.parametrize("broken", ["sync_file", "sync_directory"])
def test_the_old_bundle_stays_when_writing_fails(
    tmp_path: Path, name: str, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_small(tmp_path / name, b"old")

    def fail(path: Path, *_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_files, broken, fail)
    with pytest.raises(Exception, match="No space left"):
        write_small(tmp_path / name, b"new")
    monkeypatch.undo()
    # A zip is renamed before its directory is synced; either way one whole bundle is there.
    assert load_bundle(tmp_path / name).read("agents/a.onnx") in ((b"old", b"new") if name == "b.zip" else (b"old",))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_other_peoples_files_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("x")
    (tmp_path / "b.zip").write_text("not a zip")
    for name in ("home", "b.zip"):
        with pytest.raises(UsageError, match="exists and is not a"):
            write_small(tmp_path / name)
    assert (tmp_path / "home" / "thesis.tex").read_text() == "x"


def test_the_bundle_module_stays_light() -> None:
    code = (
        "import sys, hmarl.runtime.bundle; print([m for m in ('onnxruntime', 'grpc', 'gymnasium') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_hash_file_is_what_sha256sum_reads(toy_bundle: Bundle) -> None:
    line = (toy_bundle.path / "manifest.sha256").read_text()
    assert line == f"{toy_bundle.sha256}  manifest.json\n"
    assert json.loads((toy_bundle.path / "manifest.json").read_text())["name"] == "toy"
    assert os.stat(toy_bundle.path / "manifest.json").st_mode & 0o111 == 0


def test_a_zip_that_unpacks_to_more_than_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_bundle(tmp_path / "b.zip", small_manifest(), {"agents/a.onnx": bytes(100_000)})
    assert bundle.path.stat().st_size < 50_000
    monkeypatch.setattr("hmarl.runtime._source.TOTAL_LIMIT_BYTES", 50_000)
    with pytest.raises(BundleError, match=r"unpack to 10\d,\d{3} bytes or more, expected at most 50,000"):
        load_bundle(bundle.path)


# Targets that a bundle must not be written over.


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    for name, link in (("b", "current"), ("b.zip", "current.zip")):
        write_small(tmp_path / name, b"old")
        (tmp_path / link).symlink_to(name)
        assert write_small(tmp_path / link, b"new").read("agents/a.onnx") == b"new"
        assert (tmp_path / link).is_symlink()
        assert load_bundle(tmp_path / name).read("agents/a.onnx") == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "b.zip", "current", "current.zip"]


@pytest.mark.parametrize("name", ["b", "b.zip"])
def test_what_is_no_file_is_not_written_over(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UsageError, match="exists and is not a"):
        write_small(tmp_path / name)
    (tmp_path / f"loop-{name}").symlink_to(f"loop-{name}")
    with pytest.raises(HmarlError, match="cannot write"):
        write_small(tmp_path / f"loop-{name}")


def test_what_lies_in_a_bundle_without_being_part_of_it_is_not_deleted(tmp_path: Path) -> None:
    write_small(tmp_path / "b", b"old")
    (tmp_path / "b" / "notes").mkdir()
    (tmp_path / "b" / "notes" / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match=r"'notes/thesis\.tex' is no part of it and would be deleted"):
        write_small(tmp_path / "b", b"new")
    assert (tmp_path / "b" / "notes" / "thesis.tex").read_text() == "x"
    (tmp_path / "b" / "notes" / "thesis.tex").unlink()
    assert write_small(tmp_path / "b", b"new").read("agents/a.onnx") == b"new"


def test_a_damaged_bundle_may_be_replaced_and_another_zip_may_not(tmp_path: Path) -> None:
    write_small(tmp_path / "b", b"old")
    (tmp_path / "b" / "agents" / "a.onnx").write_bytes(b"damaged")
    assert write_small(tmp_path / "b", b"new").read("agents/a.onnx") == b"new"
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("1.jpg", b"x")
    with pytest.raises(UsageError, match="exists and is not a bundle"):
        write_small(tmp_path / "photos.zip")


@pytest.mark.parametrize("name", ["b", "b.zip"])
def test_what_could_not_be_read_again_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_small(tmp_path / name, b"old")
    monkeypatch.setattr("hmarl.runtime._source.FILE_LIMIT_BYTES", 50_000)
    with pytest.raises(BundleError, match=r"'agents/a\.onnx' has 60,000 bytes, expected at most 50,000"):
        write_small(tmp_path / name, bytes(60_000))
    assert load_bundle(tmp_path / name).read("agents/a.onnx") == b"old"
