"""Build the documentation site: the pages of docs/, and what they link to elsewhere in the repository.

    python scripts/build_site.py build     # strict: a warning, a dead link, a page that the navigation lacks are errors
    python scripts/build_site.py serve     # at http://localhost:8000, anew whenever a page changes

The pages are written for two readers: one of the repository sees plain Markdown, and links to files. For
the site they are copied to ``build/docs/pages`` and changed there where the two differ:

- a link to a file outside of docs/ leads to a page that shows this file; a notebook with what came out of it;
- a line ``[Happo.update](../trainer/…/happo.py "code")`` becomes the code of that function, class or method;
- a line ``![…](….svg)`` becomes the picture itself, so that it has the colours of the page, light or dark;
- lists are indented as Python-Markdown wants them, which is more than CommonMark asks for.
"""

from __future__ import annotations

import ast
import html
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from notebook_page import notebook_page

ROOT = Path(__file__).resolve().parents[1]
DOCS, WORK = Path("docs"), Path("build/docs")
NAVIGATION = "navigation.md"
# What lies beside docs/ and has a page of its own on the site; what else is linked to is shown below ``repository/``.
MOVED = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LANGUAGES = {".py": "python", ".proto": "protobuf", ".yml": "yaml", ".yaml": "yaml", ".service": "ini", ".toml": "toml"}
PICTURES = {".png", ".svg", ".gif"}

LINK = re.compile(
    r"(?P<code>`+).*?(?P=code)|\]\((?P<target>[^)\s]+)(?P<title> \"[^\"]*\")?\)"
)  # or code, which is none
CODE = re.compile(r"^\[`?(?P<name>[\w.]+)`?\]\((?P<target>[^)\s]+\.py) \"code\"\)$")
PICTURE = re.compile(r"^!\[(?P<text>[^]]*)\]\((?P<target>[^)\s]+\.svg)\)$")
ITEM = re.compile(r"^(?P<indent> *)(?P<marker>[-*]|\d+\.)(?P<space> +)(?=\S)")
METADATA = re.compile(r"\A---\n.*?^---\n+", re.DOTALL | re.MULTILINE)
FENCE = re.compile(r"^ *(```+|~~~+)")


class SiteError(Exception):
    """A page cannot be built; the message names it."""


def outside_fences(lines: list[str]) -> Iterator[tuple[int, str]]:
    """The lines that no fence encloses, with their places."""
    closing: str | None = None
    for place, line in enumerate(lines):
        mark = FENCE.match(line)
        if mark is None:
            if closing is None:
                yield place, line
        elif closing is None:
            closing = mark[1]
        elif mark[1].startswith(closing):
            closing = None


def indented_for_python_markdown(text: str) -> str:
    """Lists of CommonMark as Python-Markdown reads them: four columns a level, and a blank line before a list."""
    written: list[str] = []
    offsets: list[int] = []  # columns at which the contents of the open items begin, the innermost last
    for line in text.splitlines():
        width = len(line) - len(line.lstrip(" "))
        follows_item = bool(offsets)
        if line.strip():
            # Lines without indentation still belong to an item as long as no blank line precedes them.
            lazy = bool(offsets and written and written[-1].strip() and not ITEM.match(line))
            while offsets and width < offsets[-1] and not lazy:
                offsets.pop()
        item = ITEM.match(line)
        if item is not None and width <= (offsets[-1] if offsets else 0) + 3:
            if not follows_item and written and written[-1].strip() and item["marker"] in ("-", "*", "1."):
                written.append("")
            written.append(" " * 4 * len(offsets) + line.lstrip(" "))
            offsets.append(item.end())
        elif offsets and width >= offsets[-1]:
            written.append(" " * (4 * len(offsets) + width - offsets[-1]) + line.lstrip(" "))
        else:
            written.append(line)
    return "\n".join(written) + "\n"


def code_of(path: Path, name: str) -> tuple[str, int, int]:
    """The source of a function, class or method, and its first and last line; decorators included.

    Raises:
        SiteError: the file has no such name.
    """
    text = path.read_text()
    nodes: list[ast.stmt] = ast.parse(text).body
    found: ast.stmt | None = None
    for part in name.split("."):
        definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        found = next((node for node in nodes if isinstance(node, definitions) and node.name == part), None)
        if found is None:
            raise SiteError(f"{path}: got {name!r}, expected a function, class or method of this file")
        nodes = found.body if isinstance(found, ast.ClassDef) else []
    assert isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    first = min([found.lineno, *(each.lineno for each in found.decorator_list)])
    assert found.end_lineno is not None
    lines = text.splitlines()[first - 1 : found.end_lineno]
    return "\n".join(line[found.col_offset :] for line in lines), first, found.end_lineno


@dataclass
class Staging:
    """The pages of the site as they are written, and the files that they ask for meanwhile.

    Args:
        root: the repository.
        pages: the folder that is written.
    """

    root: Path
    pages: Path
    waiting: list[Path] = field(default_factory=list)
    done: set[Path] = field(default_factory=set)

    def run(self) -> None:
        """Write all pages of docs/, those of MOVED, and whatever these link to."""
        for path in sorted((self.root / DOCS).rglob("*")):
            if path.is_file() and path.suffix != ".json":
                self.take(path.relative_to(self.root))
        for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
            self.take(Path(name))
        while self.waiting:
            self.write(self.waiting.pop())

    def take(self, path: Path) -> None:
        """Have a file of the repository written, once."""
        if path not in self.done:
            self.done.add(path)
            self.waiting.append(path)

    def place(self, path: Path) -> Path:
        """Where on the site a file of the repository is shown, relative to the pages."""
        if (self.root / path).is_dir():
            return Path("repository") / path / "index.md"
        if path.parts[0] == DOCS.name:
            return path.relative_to(DOCS)
        if path.name in MOVED and len(path.parts) == 1:
            return Path(MOVED[path.name])
        shown = Path("repository") / path
        plain = path.suffix in {".md", *PICTURES}
        return shown if plain else shown.with_name(shown.name + ".md")

    def write(self, path: Path) -> None:
        """Write one page, picture or other file."""
        if path == Path("README.md"):
            return
        source, target = self.root / path, self.pages / self.place(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            names = sorted(each.name for each in source.iterdir())
            content = "\n".join(
                [f"# {path.name}/", "", f"{len(names)} files in `{path}`:", "", "```text", *names, "```"]
            )
        elif path.suffix == ".md":
            content = self.page(path, source.read_text())
        elif path.suffix == ".ipynb":
            content = self.page(path, self.notebook(path))
        elif path.suffix in PICTURES or path.parts[0] == DOCS.name:
            shutil.copyfile(source, target)
            return
        else:
            language = LANGUAGES.get(path.suffix, "docker" if path.name == "Dockerfile" else "text")
            content = f"# {path.name}\n\n`{path}`\n\n````{language}\n{source.read_text()}````\n"
        target.write_text(content)

    def notebook(self, path: Path) -> str:
        """A notebook as a page of the repository.

        Raises:
            SiteError: it has not been run to its end.
        """
        try:
            return notebook_page(json.loads((self.root / path).read_text()))
        except ValueError as error:
            raise SiteError(f"{path}: {error}; run it, and keep its outputs") from error

    def page(self, path: Path, text: str) -> str:
        """A page as the site's generator wants it; what a model's card tells the Hub at its beginning is left out."""
        lines = METADATA.sub("", text).splitlines()
        for place, line in outside_fences(lines):
            if (code := CODE.match(line)) is not None:
                lines[place] = self.code(path, code["target"], code["name"])
            elif (picture := PICTURE.match(line)) is not None:
                lines[place] = self.picture(path, picture["target"], picture["text"])
            elif not line.startswith("    "):
                lines[place] = LINK.sub(lambda link: self.link(path, link), line)
        return indented_for_python_markdown("\n".join(lines))

    def resolved(self, page: Path, target: str) -> Path:
        """The file that a page's link means, relative to the repository.

        Raises:
            SiteError: there is none, or it lies outside of the repository.
        """
        path = Path(os.path.normpath(self.root / page.parent / unquote(target)))
        if not path.exists() or not path.is_relative_to(self.root):
            raise SiteError(f"{page}: got a link to {target!r}, expected a file of the repository")
        return path.relative_to(self.root)

    def link(self, page: Path, link: re.Match[str]) -> str:
        """A link as it is on the site; code as it is."""
        if link["code"]:
            return link[0]
        target, _, anchor = link["target"].partition("#")
        if not target or urlsplit(target).scheme:
            return link[0]
        path = self.resolved(page, target)
        if (self.root / path / "README.md").is_file():  # a folder, as a repository's viewer shows it
            path /= "README.md"
        self.take(path)
        there = os.path.relpath(self.place(path), self.place(page).parent)
        return f"]({there}{'#' + anchor if anchor else ''}{link['title'] or ''})"

    def code(self, page: Path, target: str, name: str) -> str:
        """The code that a line asks for, and where it is."""
        path = self.resolved(page, target)
        self.take(path)
        code, first, last = code_of(self.root / path, name)
        there = os.path.relpath(self.place(path), self.place(page).parent)
        caption = f"[`{path}`]({there}), lines {first} to {last}"
        return f'```python linenums="{first}"\n{code}\n```\n\n{caption}\n{{ .caption }}'

    def picture(self, page: Path, target: str, text: str) -> str:
        """A drawing as a part of the page."""
        drawing = (self.root / self.resolved(page, target)).read_text()
        drawing = re.sub(r"^.*?(?=<svg)", "", drawing, flags=re.DOTALL)
        described = drawing.replace("<svg", f'<svg role="img" aria-label="{html.escape(text)}"', 1)
        return '<figure class="drawing">' + " ".join(described.split("\n")) + "</figure>"


class Page(HTMLParser):
    """What a built page offers and asks for.

    Args:
        text: the page.

    Attributes:
        anchors: the ids on it.
        links: what it links to or shows.
        navigation: those of the links that are the site's navigation.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.navigation: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take down ids and links."""
        given = {name: value for name, value in attrs if value is not None}
        self.anchors.update(given[name] for name in ("id", "name") if name in given)
        for name in ("href", "src"):
            if name in given and not (tag == "link" and given.get("rel") in ("canonical", "preconnect")):
                self.links.add(given[name])
                if "md-nav__link" in given.get("class", ""):
                    self.navigation.add(given[name])


def problems_of(site: Path) -> list[str]:
    """What is wrong with the built pages: links that lead nowhere, pages that the navigation lacks."""
    pages = {path: Page(path.read_text()) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}
    found, reached = [], set()
    for path, page in pages.items():
        for link in sorted(page.links):
            target, _, anchor = unquote(link).partition("#")
            if urlsplit(link).scheme or link.startswith("//"):
                continue
            there = Path(os.path.normpath(path.parent / target)) if target else path
            there = there / "index.html" if there.is_dir() else there
            if not there.is_file():
                found.append(f"{path.relative_to(site)}: the link {link} leads nowhere")
            elif anchor and there in pages and anchor not in pages[there].anchors and not anchor.startswith("__"):
                found.append(f"{path.relative_to(site)}: {link} has no such heading")
            if link in page.navigation:
                reached.add(there)
    shown = {path for path in pages if path.relative_to(site).parts[0] != "repository"}
    found += [f"{path.relative_to(site)}: not in docs/{NAVIGATION}" for path in sorted(shown - reached)]
    return found


def stage() -> None:
    """Write the pages anew, and leave those alone that have not changed, so that they are not built again."""
    fresh = ROOT / WORK / "fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    Staging(ROOT, fresh).run()
    kept = ROOT / WORK / "pages"
    wanted = {path.relative_to(fresh) for path in fresh.rglob("*") if path.is_file()}
    for path in [path for path in kept.rglob("*") if path.is_file() and path.relative_to(kept) not in wanted]:
        path.unlink()
    for path in wanted:
        if not (kept / path).is_file() or (kept / path).read_bytes() != (fresh / path).read_bytes():
            (kept / path).parent.mkdir(parents=True, exist_ok=True)
            (fresh / path).replace(kept / path)
    shutil.rmtree(fresh)


def zensical(*words: str) -> list[str]:
    """The generator's command."""
    return [sys.executable, "-m", "zensical", *words, "--config-file", str(ROOT / "mkdocs.yml")]


def build() -> None:
    """Build the site, and check it.

    Raises:
        SiteError: something is wrong with a page.
    """
    stage()
    if subprocess.run(zensical("build", "--clean", "--strict"), check=False).returncode:
        raise SiteError("the pages above, see there")
    problems = problems_of(ROOT / WORK / "site")
    if problems:
        raise SiteError("\n".join(problems))
    print(f"The site is in {WORK / 'site'}: {len(list((ROOT / WORK / 'site').rglob('*.html')))} pages.")


def serve() -> None:
    """Serve the site, and take over what changes, until Ctrl-C."""
    stage()
    server = subprocess.Popen(zensical("serve"))
    try:
        while server.poll() is None:
            time.sleep(1.0)
            try:
                stage()
            except (SiteError, SyntaxError) as error:
                print(error, file=sys.stderr)
    except KeyboardInterrupt:
        server.wait()


def main() -> int:
    """Do what the command line says."""
    actions: dict[str, Callable[[], None]] = {"build": build, "serve": serve}
    if len(sys.argv) != 2 or sys.argv[1] not in actions:
        print(f"build_site.py: got {sys.argv[1:]}, expected one of {', '.join(actions)}", file=sys.stderr)
        return 2
    try:
        actions[sys.argv[1]]()
    except SiteError as error:
        print(f"build_site.py: {error}", file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
