"""The licences of what hmarl and its extras install: the table of docs/licences.md, made from installed packages.

    python scripts/licences.py            # writes the table, of what `make install` installs
    python scripts/licences.py --check    # exit code 4 where the page does not fit pyproject.toml

Copyleft is set in bold, and named where a package brings it along.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hmarl.runtime import command_line
from hmarl.runtime.command_line import flag
from hmarl.sdk.errors import HmarlError
from hmarl.sdk.files import write_text

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licences.md"
BEGIN, END = "<!-- made by scripts/licences.py -->", "<!-- until here -->"
BASE = "(none)"
UNSTATED = "not stated"
ABSENT = "not installed by `make install`: see its own page"
# Free text of old metadata, and what it is called in the list of SPDX.
SPDX = {
    "apache 2.0": "Apache-2.0",
    "apache-2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "apache software license 2.0": "Apache-2.0",
    "apache": "Apache-2.0",
    "mit license": "MIT",
    "the mit license": "MIT",
    "mit": "MIT",
    "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "bsd-3": "BSD-3-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd-2-clause": "BSD-2-Clause",
    "lgpl v2.1": "LGPL-2.1-or-later",
    "gplv3": "GPL-3.0-only",
    "gnu general public license v3 (gplv3)": "GPL-3.0-only",
    "gnu general public license v3 or later (gplv3+)": "GPL-3.0-or-later",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
}
COPYLEFT = re.compile(r"\b(A?GPL|LGPL|MPL|EUPL|CDDL|EPL)", re.IGNORECASE)
_NAME_LIMIT = 60


def extras() -> dict[str, list[str]]:
    """The direct requirements of the base install and of every extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {BASE: project["dependencies"], **project["optional-dependencies"]}


def licence_of(package: str) -> str:
    """What the metadata of an installed package says, as SPDX calls it where that is known.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    found = metadata.metadata(package)
    if "License-Expression" in found:
        return found["License-Expression"]
    classified = [
        each.rpartition("::")[2].strip()
        for each in found.get_all("Classifier") or ()
        if each.startswith("License ::") and not each.endswith("OSI Approved")
    ]
    free = found["License"].strip() if "License" in found else ""
    said = [free] if free and "\n" not in free and len(free) <= _NAME_LIMIT else []
    for text in (*said, *classified):
        if text.lower() in SPDX:
            return SPDX[text.lower()]
    return " AND ".join(dict.fromkeys(said or classified)) or _licence_file(package)


def _licence_file(package: str) -> str:
    """What the licence file begins with, of a package whose metadata states nothing."""
    for file in metadata.files(package) or ():
        if file.name.upper().startswith("LICEN") and ".dist-info" in str(file):
            first = file.read_text().strip().partition("\n")[0].strip().lower()
            return SPDX.get(first, UNSTATED)
    return UNSTATED


def brought_along(package: str, seen: set[str] | None = None) -> Iterator[str]:
    """All packages that an installed one needs, itself included, as far as they are installed."""
    seen = set() if seen is None else seen
    name = canonicalize_name(package)
    if name in seen:
        return
    seen.add(name)
    try:
        needs = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return
    yield name
    for each in map(Requirement, needs):
        if each.marker is None or each.marker.evaluate({"extra": ""}):
            yield from brought_along(each.name, seen)


def row(extra: str, requirement: str) -> str:
    """A line of the table."""
    name = Requirement(requirement).name
    try:
        version, licence = metadata.version(name).partition("+")[0], licence_of(name)
    except metadata.PackageNotFoundError:
        return f"| {extra} | {name} | | {ABSENT} | |"
    others = {other: licence_of(other) for other in brought_along(name) if other != canonicalize_name(name)}
    strict = [f"{other} ({said})" for other, said in sorted(others.items()) if COPYLEFT.search(said)]
    marked = f"**{licence}**" if COPYLEFT.search(licence) else licence
    return f"| {extra} | {name} | {version} | {marked} | {', '.join(strict)} |"


def table(wanted: Mapping[str, list[str]]) -> str:
    """A line for each direct requirement; the documentation's builder is an environment of its own, and left out."""
    lines = ["| extra | package | version | licence | copyleft among what it brings along |", "|---|---|---|---|---|"]
    lines += [row(extra, each) for extra, needs in wanted.items() if extra != "docs" for each in needs]
    return "\n".join(lines)


def missing(page: str) -> list[str]:
    """The direct requirements that a page has no line for."""
    return [
        f"{extra}: {name}"
        for extra, needs in extras().items()
        if extra != "docs"
        for name in (Requirement(each).name for each in needs)
        if f"| {extra} | {name} |" not in page
    ]


@command_line.command("licences.py", flag("--check", "compare the page with pyproject.toml alone"))
def main(check: bool) -> None:
    """Write the table of licences, or check that it is complete."""
    page = PAGE.read_text()
    if check:
        if lacking := missing(page):
            raise HmarlError(f"{PAGE}: got no line for {', '.join(lacking)}; run scripts/licences.py")
        return
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    write_text(PAGE, f"{before}{BEGIN}\n\n{table(extras())}\n\n{END}{after}")


if __name__ == "__main__":
    sys.exit(command_line.run(main))
