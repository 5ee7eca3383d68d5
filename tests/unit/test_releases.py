"""A release says of itself: one version everywhere, a bill of materials by its standard, licences of all extras."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hmarl.runtime import __version__
from installed import ROOT

SCRIPTS = ROOT / "scripts"


def call(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPTS / script), *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_version_is_in_the_changelog_and_in_what_is_deployed() -> None:
    sections = re.findall(r"^## \[([\d.]+)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert sections[0] == __version__
    for file in ("docs/runtime.md", "runtime/deploy/kubernetes.yaml"):
        images = set(re.findall(r"hmarl-agent:([\d.]+)", (ROOT / file).read_text()))
        assert images == {__version__}, file


def test_every_requirement_of_every_extra_has_a_licence() -> None:
    page = (ROOT / "docs" / "licences.md").read_text()
    done = call("licences.py", "--check")
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| (\S+) \| (\S+) \| (\S+) \| ([^|]+) \|", page, re.MULTILINE)
    assert ("vmas", "vmas", "1.5.2", "**GPL-3.0-only**") in rows
    assert not [row for row in rows if row[3].strip("* ") in ("", "not stated")]
    base = re.findall(r"^\| \(none\) \| (\S+) \| \S+ \| ([^|]+) \| ([^|]*) \|$", page, re.MULTILINE)
    assert len(base) == len(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    assert not [row for row in base if "**" in row[1] or row[2].strip()], "the base install has no copyleft in it"


def test_the_bill_of_materials_has_all_that_is_pinned(tmp_path: Path) -> None:
    pytest.importorskip("cyclonedx_py")
    code = f"from pathlib import Path; import release; release.write_sbom(Path({str(tmp_path / 'x.cdx.json')!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS, check=True, timeout=120)
    bill = json.loads((tmp_path / "x.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    own = bill["metadata"]["component"]
    assert (own["name"], own["version"]) == ("hmarl", __version__)
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert {each["name"]: each["version"] for each in bill["components"]} == pinned
    licences = {each["name"]: each.get("licenses") for each in bill["components"]}
    assert licences["vmas"] == [{"license": {"id": "GPL-3.0-only"}}]
    assert licences["numpy"] is not None
