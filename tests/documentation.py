"""The pages that people read: their blocks of code, headings, links and commands."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from installed import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "proto" / "conformance" / "README.md",
    *sorted(ROOT.glob("models/*/README.md")),
    *sorted(ROOT.glob("clients/*/README.md")),
    *sorted(ROOT.glob("examples/*/README.md")),
    *sorted((ROOT / "docs").glob("**/*.md")),
]
# Other tests run them.
NOTEBOOKS = sorted(ROOT.glob("examples/*.ipynb"))
NOT_RUN = "Not run by the tests: "
LEFT_RUNNING = "Leave it running"
_FENCE = re.compile(r"^```(\w+)[^\n]*?(?: title=\"([^\"\n]*)\")?[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_WORDS_BEFORE = {"sudo", "do", "then", "&&"}


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        page: the page, relative to the repository.
        line: of its first line.
        language: as the fence says.
        title: as the fence says; empty where it does not.
        code: what is in it.
    """

    page: str
    line: int
    language: str
    title: str
    code: str

    @property
    def where(self) -> str:
        """Page and line."""
        return f"{self.page}:{self.line}"

    @property
    def runs(self) -> bool:
        """Whether it runs here; one that does not says why, for readers and tests alike."""
        return not self.title.startswith(NOT_RUN)


def blocks_of(page: Path) -> list[Block]:
    """A page's fenced blocks, in order."""
    text = page.read_text()
    return [
        Block(str(page.relative_to(ROOT)), text.count("\n", 0, match.start()) + 2, match[1], match[2] or "", match[3])
        for match in _FENCE.finditer(text)
    ]


def text_of(page: Path) -> str:
    """A page as Markdown; of a notebook the text, and the code in fences."""
    if page.suffix != ".ipynb":
        return page.read_text()
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(page.read_text())["cells"]]
    return "\n\n".join(source if kind == "markdown" else f"```\n{source}\n```" for kind, source in cells)


def commands_of(page: Path) -> Iterator[tuple[int, list[str]]]:
    """Every command of hmarl in a page's code, fenced or indented: its line, and its words as a shell takes them."""
    lines = text_of(page).splitlines()
    fenced = False
    for number, line in enumerate(lines, 1):
        if line.startswith("```"):
            fenced = not fenced
        if not (fenced or line.startswith("    ")) or "hmarl-" not in line or "/etc/" in line:
            continue
        whole, following = line.strip(), number
        while whole.endswith("\\"):
            whole, following = whole[:-1] + " " + lines[following].strip(), following + 1
        for command in _commands(re.split(r" #| [12]?>", whole)[0]):
            words = command
            while words and (words[0] in _WORDS_BEFORE or re.match(r"^[A-Z_]+=", words[0])):
                words = words[1:]
            if words and re.match(r"^hmarl-[a-z-]+$", words[0]):
                yield number, words


def _commands(line: str) -> Iterator[list[str]]:
    """The commands between a shell's operators; none where a quote is not closed."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    try:
        for word in lexer:
            if set(word) <= set(";&|"):
                yield words
                words = []
            else:
                words.append(word)
    except ValueError:
        return
    yield words


def headings_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as a repository's viewer makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    found: dict[str, int] = {}
    anchors = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        count = found.get(anchor, 0)
        found[anchor] = count + 1
        anchors.add(f"{anchor}-{count}" if count else anchor)
    return anchors


def links_of(page: Path) -> Iterator[tuple[int, str]]:
    """The links of a page outside of code, with their lines."""
    fenced = False
    for number, line in enumerate(text_of(page).splitlines(), 1):
        if line.startswith("```"):
            fenced = not fenced
        if not fenced and not line.startswith("    "):
            plain = re.sub(r"`[^`]*`", "", line)
            for target in re.findall(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)", plain):
                yield number, target
