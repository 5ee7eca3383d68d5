"""The zoo that ships: what the index and the page say of it is so; indexes of others are read or refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hmarl.runtime.bundle import load_bundle
from hmarl.runtime.errors import HmarlError, UsageError
from hmarl.runtime.signing.keys import Trust
from hmarl.sdk.zoo.fetching import fetch_files
from hmarl.sdk.zoo.index import LIMIT_BYTES, SHIPPED_INDEX, SHIPPED_KEY, read_index, shipped_models, write_index
from hmarl.sdk.zoo.places import FolderPlace
from installed import ROOT

INDEX = read_index(SHIPPED_INDEX.read_bytes(), "shipped")


def test_every_bundle_of_the_repository_is_in_the_index_and_no_other() -> None:
    assert shipped_models() == ROOT / "models"
    assert {entry.name for entry in INDEX.models} == {
        path.parent.name for path in (ROOT / "models").glob("*/manifest.json")
    }


@pytest.mark.parametrize("name", [entry.name for entry in INDEX.models])
def test_a_bundle_is_signed_small_and_says_what_made_it(name: str) -> None:
    entry = INDEX.entry(name)
    files = fetch_files(FolderPlace(ROOT / "models"), name, Trust([SHIPPED_KEY]), entry=entry)
    assert entry.size_bytes == sum(map(len, files.values())) <= LIMIT_BYTES
    manifest = load_bundle(ROOT / "models" / name).manifest
    assert (entry.task, entry.algorithm, entry.agents) == (
        manifest.environment.name,
        manifest.algorithm,
        len(manifest.agents),
    )
    card = files["README.md"].decode()
    assert re.search(r"^hmarl-train \S+ --env .*--steps \d+ .*--seed \d+", card, re.MULTILINE)
    assert card.count("## The price of deployment\n") == 1
    assert f"value: {entry.return_mean:.2f}\n" in card


def test_the_page_lists_what_the_index_has() -> None:
    page = (ROOT / "docs" / "zoo.md").read_text()
    rows = re.findall(
        r"^\| \[([\w.-]+)\]\(\.\./models/\1/README\.md\) \| `([^`]+)` \| (\S+) \| (\d+) \| ([-\d.]+) \|", page, re.M
    )
    assert rows == [
        (entry.name, entry.task, entry.algorithm, str(entry.agents), f"{entry.return_mean:.2f}")
        for entry in INDEX.models
    ]


def test_no_private_key_is_in_the_repository() -> None:
    found = subprocess.run(
        ["git", "grep", "-l", "-E", "^-----BEGIN( EC| ENCRYPTED)? PRIVATE KEY"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode in (0, 1, 128), found.stderr  # 128: no repository
    assert not [name for name in found.stdout.split() if "zoo" in name or name.startswith("models/")]


def test_an_index_is_written_and_read(tmp_path: Path) -> None:
    write_index(tmp_path / "index.json", INDEX)
    assert (tmp_path / "index.json").read_bytes() == SHIPPED_INDEX.read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found.update(schema_version=2), "schema_version: got 2, expected 1"),
        (lambda found: found["models"].append(found["models"][0]), "more than once"),
        (lambda found: found["models"][0].update(name="../up"), r"\$\.models\[0\]\.name"),
        (lambda found: found["models"][0].update(sha256="x"), r"\$\.models\[0\]\.sha256"),
        (lambda found: found["models"][0].update(stars=5), "unknown field `stars`"),
        (lambda found: found["models"][0].update({"a\x1b[2J": 5}), r"unknown field `a\\x1b\[2J`"),
        (lambda found: found["models"][0].update(name="up\n"), r"\$\.models\[0\]\.name"),
        (lambda found: found["models"][0].update(sha256="0" * 64 + "\n"), r"\$\.models\[0\]\.sha256"),
        (lambda found: found["models"][0].update(sha256="A" * 64), r"\$\.models\[0\]\.sha256"),
        (lambda found: found["models"][0].update(about="\u202etxt.exe"), r"about: got '\\u202etxt.exe'"),
        (lambda found: found["models"][0].update(task="a\n"), r"task: got 'a\\n', expected 1 to 300 printable"),
        (lambda found: found["models"][0].update(algorithm=""), "algorithm: got '', expected 1 to 300 printable"),
        (lambda found: found["models"][0].update(return_mean=float("nan")), "return_mean: got nan"),
        (lambda found: found["models"][0].update(size_bytes=10**400), r"models\[0\]\.size_bytes|out of range"),
        (lambda found: found["models"][0].update(agents=10**30), r"models\[0\]\.agents|out of range"),
        (lambda found: found.pop("models"), "missing required field `models`"),
    ],
)
def test_an_index_that_is_none_is_refused(change: object, said: str) -> None:
    found = json.loads(SHIPPED_INDEX.read_text())
    change(found)  # type: ignore[operator]
    with pytest.raises(HmarlError, match=said):
        read_index(json.dumps(found).encode(), "x")
    with pytest.raises(HmarlError, match="not JSON"):
        read_index(b"{", "x")


def test_a_name_that_is_not_there_is_told_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'simple-spread-hcpo'"):
        INDEX.entry("simple-spred-hcpo")


def test_the_index_does_not_need_the_packages_that_fetching_needs() -> None:
    needless = {"cryptography", "huggingface_hub", "onnxruntime", "grpc"}
    code = f"import sys, hmarl.sdk.commands.zoo; assert not {needless} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
