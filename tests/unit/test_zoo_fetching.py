"""A bundle of a zoo is put in place whole, and only once it is signed, of the size and the very one of the index."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hmarl.runtime.bundle import load_bundle
from hmarl.runtime.errors import BundleError, HmarlError, SignatureError, UsageError
from hmarl.runtime.signing.checked import sign_bundle
from hmarl.runtime.signing.keys import Signer, Trust, new_key
from hmarl.sdk.zoo.fetching import fetch, fetch_files
from hmarl.sdk.zoo.places import FolderPlace, WebPlace, open_place
from toy_bundle import write_toy_bundle
from zoos import Zoo, make_zoo, on_the_web


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    zoo = make_zoo(tmp_path)
    zoo.describe(zoo.add("toy"))
    return zoo


def test_it_is_fetched_from_a_folder_and_from_the_web_as_it_is(zoo: Zoo, tmp_path: Path) -> None:
    entry, trust = zoo.entry(load_bundle(zoo.folder / "toy")), Trust([zoo.public])
    with on_the_web(zoo.folder) as address:
        for number, place in enumerate((FolderPlace(zoo.folder), WebPlace(address + "/"))):
            out = tmp_path / f"out{number}"
            fetched = fetch(place, "toy", out, trust, entry=entry)
            assert fetched.sha256 == entry.sha256
            assert fetched.signed_by is not None
            for path in (path for path in (zoo.folder / "toy").rglob("*") if path.is_file()):
                assert (out / path.relative_to(zoo.folder / "toy")).read_bytes() == path.read_bytes()
        zipped = fetch(WebPlace(address), "toy", tmp_path / "out.zip", trust, entry=entry)
    assert zipped.sha256 == entry.sha256


def change(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.seek(-1, 2)
        last = stream.read(1)
        stream.seek(-1, 2)
        stream.write(bytes([last[0] ^ 1]))


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (lambda toy: change(toy / "agents" / "agent_0.onnx"), SignatureError, "is not what key"),
        (lambda toy: change(toy / "manifest.json"), SignatureError, "'manifest.json' is not what key"),
        (lambda toy: (toy / "model.sig").unlink(), SignatureError, "it is unsigned"),
        (lambda toy: (toy / "README.md").unlink(), BundleError, "file 'README.md' is missing, and was signed by key"),
        (shutil.rmtree, SignatureError, "it is unsigned"),
    ],
    ids=["graph", "manifest", "signature", "missing file", "no bundle"],
)
def test_nothing_is_written_of_one_that_is_not_what_was_signed(
    zoo: Zoo, tmp_path: Path, spoil: Callable[[Path], object], error: type[HmarlError], said: str
) -> None:
    entry = zoo.entry(load_bundle(zoo.folder / "toy"))
    spoil(zoo.folder / "toy")
    out = tmp_path / "out" / "toy"
    with pytest.raises(error, match=said):
        fetch(FolderPlace(zoo.folder), "toy", out, Trust([zoo.public]), entry=entry)
    assert not (tmp_path / "out").exists()


def test_one_that_another_key_signed_is_refused(zoo: Zoo, tmp_path: Path) -> None:
    other = new_key(tmp_path / "other.pem")[0]
    with pytest.raises(SignatureError, match="got a signature by key"):
        fetch(FolderPlace(zoo.folder), "toy", tmp_path / "out", Trust([other]))
    assert not (tmp_path / "out").exists()


def test_another_bundle_than_the_index_has_is_refused_though_it_is_signed(zoo: Zoo, tmp_path: Path) -> None:
    entry = zoo.entry(load_bundle(zoo.folder / "toy"))
    shutil.rmtree(zoo.folder / "toy")
    zoo.add("toy", observation_size=7)
    with pytest.raises(BundleError, match=r"SHA-256: got \w+, expected \w+ of the index: it is signed"):
        fetch(FolderPlace(zoo.folder), "toy", tmp_path / "out", Trust([zoo.public]), entry=entry)


def test_more_bytes_than_allowed_are_not_read(zoo: Zoo, tmp_path: Path) -> None:
    entry, trust = zoo.entry(load_bundle(zoo.folder / "toy")), Trust([zoo.public])
    place = FolderPlace(zoo.folder)
    with pytest.raises(HmarlError, match="--limit-mb allows more"):
        fetch_files(place, "toy", trust, entry.size_bytes - 1, entry)
    with pytest.raises(HmarlError, match=r"got more than [\d,]+ bytes"):
        fetch_files(place, "toy", trust, entry.size_bytes - 1)
    assert fetch_files(place, "toy", trust, entry.size_bytes)
    read: list[tuple[str, int]] = []

    class Watched(FolderPlace):
        def read(self, bundle: str, file: str, limit: int) -> bytes:
            content = super().read(bundle, file, limit)
            read.append((file, len(content)))
            return content

    with pytest.raises(HmarlError):
        fetch_files(Watched(zoo.folder), "toy", trust, 4000)
    assert sum(size for _, size in read) <= 4000


def test_what_is_in_the_way_stays_unless_it_is_a_bundle(zoo: Zoo, tmp_path: Path) -> None:
    place, trust = FolderPlace(zoo.folder), Trust([zoo.public])
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="exists and is not a bundle"):
        fetch(place, "toy", mine, trust)
    assert (mine / "thesis.tex").read_text() == "years of work"
    old = write_toy_bundle(tmp_path / "old", observation_size=9)
    assert fetch(place, "toy", old.path, trust).sha256 != old.sha256


def test_only_files_that_were_signed_are_taken(zoo: Zoo, tmp_path: Path) -> None:
    """A place may hold more, such as the Hub's .gitattributes."""
    (zoo.folder / "toy" / "more.txt").write_text("not signed")
    fetch(FolderPlace(zoo.folder), "toy", tmp_path / "out", Trust([zoo.public]))
    assert not (tmp_path / "out" / "more.txt").exists()


def test_places_that_cannot_be_read_are_named(zoo: Zoo, tmp_path: Path) -> None:
    trust = Trust([zoo.public])
    with on_the_web(zoo.folder) as address:
        pass
    with pytest.raises(HmarlError, match=f"{address}/toy/model.sig: cannot be fetched"):
        fetch(WebPlace(address), "toy", tmp_path / "out", trust)
    with pytest.raises(UsageError, match=r"--from: got nowhere, which is no folder here"):
        open_place("nowhere", "--from")
    with pytest.raises(UsageError, match="--from: got file:///etc, expected a folder, an http or https address"):
        open_place("file:///etc", "--from")
    with pytest.raises(UsageError, match=r"--from: got 'hf:a/b', expected hf:OWNER"):
        open_place("hf:a/b", "--from")


def test_a_signed_bundle_with_a_bad_name_for_a_file_is_refused(zoo: Zoo, tmp_path: Path) -> None:
    """What a signer signed is no path out of the folder: names are judged before they are asked for."""
    toy = zoo.folder / "toy"
    signer = Signer(zoo.private)
    digests = {**load_bundle(toy).digests, "../../outside": "0" * 64}
    (toy / "model.sig").write_bytes(signer.sign("toy", digests, "model.sig"))
    (tmp_path / "outside").write_text("not yours")
    with pytest.raises(BundleError, match="is not a plain relative path"):
        fetch(FolderPlace(zoo.folder), "toy", tmp_path / "out", Trust([zoo.public]))
    sign_bundle(toy, signer)
    assert fetch(FolderPlace(zoo.folder), "toy", tmp_path / "out", Trust([zoo.public]))
