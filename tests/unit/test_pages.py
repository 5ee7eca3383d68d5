"""What the pages link to is there, and the commands and settings that they name are those that there are."""

from __future__ import annotations

import importlib
import json
import re
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import click
import pytest

import hmarl.sdk
from documentation import NOTEBOOKS, PAGES, blocks_of, commands_of, headings_of, links_of
from hmarl.runtime.command_line import Command
from hmarl.sdk.environments import families
from hmarl.trainer.algorithms import ALGORITHMS
from hmarl.trainer.runs.settings import RunSettings
from installed import ROOT

SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
PLACEHOLDERS = {"mine", "FAMILY"}
ALGORITHM_PAGES = sorted((ROOT / "docs" / "algorithms").glob("*.md"))


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=named)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    wrong = []
    for line, link in links_of(page):
        target, _, anchor = unquote(link).partition("#")
        if urlsplit(link).scheme or (page.name == "navigation.md" and "*" in target):
            continue
        there = (page.parent / target) if target else page
        if not there.exists():
            wrong.append(f"{line}: {link}: no such file")
        elif anchor and anchor not in headings_of(there):
            wrong.append(f"{line}: {link}: no such heading")
    assert wrong == []


def test_the_navigation_has_every_page() -> None:
    """If this fails: a line in docs/navigation.md, where readers should find the page."""
    docs = ROOT / "docs"
    text = (docs / "navigation.md").read_text()
    shown = {(docs / target).resolve() for target in re.findall(r"\]\(([^)]+)\)", text)}
    for pattern in re.findall(r"^ *\* ([^\s[]+)$", text, re.MULTILINE):
        shown.update(docs.glob(pattern))
    assert set(docs.glob("**/*.md")) - shown - {docs / "navigation.md"} == set()


def program(name: str) -> Command:
    """The program behind an entry of the scripts in pyproject.toml."""
    module = importlib.import_module(SCRIPTS[name].partition(":")[0])
    return next(each for each in vars(module).values() if isinstance(each, Command) and each.name == name)


def check(words: list[str]) -> None:
    """Take a command line as its program would, as far as no file is needed for it."""
    command = program(words[0])
    if len(words) > 1 and words[1] in command.words:
        command, words = command.words[words[1]], words[1:]
    context = click.Context(command, info_name=words[0])
    # A variable of the shell: words that are not known, or a number.
    words = [re.sub(r"=\$\w+$", "=10", word) for word in words if not word.startswith("$")]
    parsed, rest, _ = command.make_parser(context).parse_args(words[1:])
    assert rest == [], f"in excess: {rest}"
    given = {key: value for key, value in parsed.items() if isinstance(value, str | list | tuple)}
    name = given.get("algorithm")
    assert name is None or name in ALGORITHMS, name
    family = given.get("env", "").partition("/")[0]
    assert not family or ":" in family or family in {*families(), *PLACEHOLDERS}, family
    for setting in given.get("settings", ()):
        check_setting(setting.partition("=")[0], name)


def check_setting(key: str, algorithm: str | None) -> None:
    kind, _, rest = key.partition(".")
    assert kind in ("algorithm", "run", "env", "distillation"), key
    if kind == "run":
        assert rest in {*RunSettings.model_fields, *RunSettings.retired}, key
    if kind == "algorithm" and algorithm is not None:
        assert rest in ALGORITHMS[algorithm].settings_class.model_fields, key


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=named)
def test_commands_are_those_that_there_are(page: Path) -> None:
    """Names of programs, options, algorithms, families and settings; what the commands do, other tests run."""
    for line, words in commands_of(page):
        try:
            check(words)
        except (click.UsageError, AssertionError, KeyError, StopIteration) as error:
            pytest.fail(f"{named(page)}:{line}: {' '.join(words)}: {error!r}")


def test_commands_are_found_in_the_pages() -> None:
    found = {words[0] for page in PAGES for _, words in commands_of(page)}
    assert found == set(SCRIPTS)


@pytest.mark.parametrize("words", ["hmarl-train happpo", "hmarl-fleet B --nosuch", "hmarl-train happo --set run.x=1"])
def test_a_wrong_command_is_noticed(words: str) -> None:
    with pytest.raises((click.UsageError, AssertionError)):
        check(words.split())


def defaults(name: str) -> dict[str, Any]:
    fields = ALGORITHMS[name].settings_class.model_fields
    return {key: field.default for key, field in fields.items()}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithms_page_states_the_defaults(name: str) -> None:
    text = (ROOT / "docs" / "algorithms" / f"{name}.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", text, re.MULTILINE)
    assert len(rows) >= 3
    assert {key: str(defaults(name)[key]) for key, _ in rows} == dict(rows)


def metrics_in_use() -> set[str]:
    """Words that the trainer's code uses as names, the parts of composed names too."""
    sources = (ROOT / "trainer").rglob("*.py")
    return {word for path in sources for word in re.findall(r"\w+", path.read_text())}


def test_signs_of_failure_name_metrics_that_there_are() -> None:
    known = metrics_in_use()
    for page in ALGORITHM_PAGES:
        for sign in re.findall(r"^\| ([^|]*`[^|]*) \| [^|]+ \|$", page.read_text(), re.MULTILINE):
            for name in re.findall(r"`([a-z_/]+)`", sign):
                parts = {part for part in name.split("/") if part} - {"evaluation", "local", "central"}
                unknown = {part for part in parts if part not in known and not composed(part, known)}
                assert unknown == set(), f"{named(page)}: {sign}"


def composed(name: str, known: set[str]) -> bool:
    """A level's prefix and a metric, or a metric's largest value."""
    prefixed = (name.removeprefix(prefix) for prefix in ("manager_", "sub_manager_") if name.startswith(prefix))
    return any(metric in known for metric in prefixed) or name.removesuffix("_max") in known


def test_the_reference_has_whatever_the_sdk_offers() -> None:
    text = (ROOT / "docs" / "reference" / "sdk.md").read_text()
    missing = []
    for name in hmarl.sdk.__all__:
        value = getattr(hmarl.sdk, name)
        home = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', name)}"
        if f"::: {home}\n" not in text and not re.search(rf"^::: hmarl\.[\w.]+\.{name}$", text, re.MULTILINE):
            missing.append(name)
    assert missing == []


def test_what_does_not_run_says_why() -> None:
    """Blocks in other names of these languages would not run, and not say so."""
    for page in PAGES:
        for block in blocks_of(page):
            assert block.language not in ("py", "bash", "shell", "console", "zsh"), f"{block.where}: python, or sh"
            assert block.runs or len(block.title) > 40, block.where


def test_json_on_the_pages_is_json() -> None:
    for page in PAGES:
        for block in blocks_of(page):
            if block.language == "json":
                json.loads(block.code)
