"""A release: the wheel, the source distribution, the SBOM and the digests of all, in dist/; then the wheel is tried.

    python scripts/release.py                            # what `make release` does
    python scripts/release.py --python /usr/bin/python3.13   # also tried by this interpreter; repeatable
    python scripts/release.py --sbom                     # the SBOM alone

It builds what is committed. The builder and its time stamps are pinned, so that equal commits give equal files.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from cyclonedx import spdx
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from licences import UNSTATED, licence_of

from hmarl.runtime import __version__, command_line
from hmarl.runtime.command_line import PATH, flag, option
from hmarl.sdk.errors import HmarlError, UsageError
from hmarl.sdk.files import write_text

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
CONSTRAINTS = ROOT / "constraints.txt"
SBOM = DIST / f"hmarl-{__version__}.cdx.json"
_TEAM = "simple-spread-hcpo"


def _run(*words: object, **variables: str) -> None:
    subprocess.run([str(word) for word in words], check=True, cwd=ROOT, env={**os.environ, **variables})


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], check=True, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def check_ready() -> None:
    """Refuse to release what is not committed, or not in the changelog.

    Raises:
        UsageError: says what is to be done first.
    """
    if changed := _git("status", "--porcelain"):
        raise UsageError(
            f"release: got changes that are not committed ({changed.splitlines()[0].strip()}), expected none"
        )
    if f"## [{__version__}]" not in (ROOT / "CHANGELOG.md").read_text():
        raise UsageError(f"CHANGELOG.md: got no section of {__version__}, expected '## [{__version__}] - DATE'")


def build() -> None:
    """Wheel and source distribution."""
    stamp = _git("log", "-1", "--format=%ct")
    words = (sys.executable, "-m", "build", "--outdir", DIST)
    _run(*words, PIP_CONSTRAINT=str(CONSTRAINTS), SOURCE_DATE_EPOCH=stamp)


def write_sbom(path: Path) -> None:
    """The software bill of materials: CycloneDX's own tool reads the pinned constraints; licences are added to it.

    Raises:
        HmarlError: the result does not fit CycloneDX's schema.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tool = (sys.executable, "-m", "cyclonedx_py", "requirements", CONSTRAINTS, "--pyproject", ROOT / "pyproject.toml")
    _run(*tool, "--spec-version", "1.6", "--output-format", "JSON", "--output-reproducible", "--output-file", path)
    document = completed(json.loads(path.read_text()))
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    if (problem := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)) is not None:
        raise HmarlError(f"{path}: got a document that does not fit CycloneDX 1.6: {problem}")
    write_text(path, text)


def completed(document: dict[str, Any]) -> dict[str, Any]:
    """A bill with hmarl's own version, and the licences that the metadata of installed packages state."""
    own = document["metadata"].setdefault(
        "component", {"type": "library", "name": "hmarl", "bom-ref": "root-component"}
    )
    own |= {"version": __version__, "purl": f"pkg:pypi/hmarl@{__version__}"}
    needed = sorted(component["bom-ref"] for component in document["components"])
    others = [each for each in document.get("dependencies", ()) if each["ref"] != own["bom-ref"]]
    document["dependencies"] = [{"ref": own["bom-ref"], "dependsOn": needed}, *others]
    for component in document["components"]:
        try:
            licence = licence_of(component["name"])
        except metadata.PackageNotFoundError:
            continue
        if licence != UNSTATED:
            component["licenses"] = [_licence(licence)]
    return document


def _licence(text: str) -> dict[str, Any]:
    if spdx.is_supported_id(text):
        return {"license": {"id": text}}
    return {"expression": text} if spdx.is_expression(text) else {"license": {"name": text}}


def write_digests() -> None:
    """SHA256SUMS of all that is released."""
    files = sorted(path for path in DIST.iterdir() if __version__ in path.name)
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    write_text(DIST / "SHA256SUMS", "".join(lines))


def try_wheel(python: str) -> None:
    """Install the wheel into a fresh environment, and let a team of the zoo play over gRPC.

    Raises:
        CalledProcessError: pip or one of the commands failed.
        HmarlError: nothing was served.
    """
    (wheel,) = DIST.glob(f"hmarl-{__version__}-*.whl")
    with tempfile.TemporaryDirectory(prefix="hmarl-release-") as place:
        venv, endpoints = Path(place) / "venv", Path(place) / "endpoints.json"
        _run(python, "-m", "venv", venv)
        _run(venv / "bin" / "pip", "install", "--quiet", "-c", CONSTRAINTS, f"{wheel}[secure]")
        words = [venv / "bin" / "hmarl-zoo", "serve", _TEAM, "--from", ROOT / "models", "--out", endpoints]
        kept = {**os.environ, "XDG_CACHE_HOME": place}
        with subprocess.Popen([str(word) for word in words], cwd=place, env=kept, stdout=subprocess.DEVNULL) as fleet:
            try:
                deadline = time.monotonic() + 120.0
                while not endpoints.exists():
                    if fleet.poll() is not None or time.monotonic() > deadline:
                        raise HmarlError(f"{wheel.name}: got nothing served by {python}, expected {_TEAM} of the zoo")
                    time.sleep(0.1)
                played = ("--endpoints", endpoints, "--env", "mpe/simple_spread", "--episodes", "10")
                _run(venv / "bin" / "hmarl-eval", *played)
            finally:
                fleet.terminate()
    print(f"{wheel.name}: installed, served and played by {python}")


@command_line.command(
    "release.py",
    option("--python", "try the wheel by this interpreter too; repeatable", PATH, many=True, parameter="pythons"),
    flag("--sbom", "write the SBOM alone"),
)
def main(pythons: tuple[Path, ...], sbom: bool) -> None:
    """Build a release into dist/, and try it."""
    if sbom:
        write_sbom(SBOM)
        return
    check_ready()
    build()
    write_sbom(SBOM)
    write_digests()
    for python in (sys.executable, *map(str, pythons)):
        try_wheel(python)


if __name__ == "__main__":
    sys.exit(command_line.run(main))
