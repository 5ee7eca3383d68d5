"""What becomes of a page on its way to the site, and what a built site is held to."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from installed import ROOT
from scripts_loaded import load_script

CODE = """import os


class Thing:
    @property
    def name(self):
        return os.name


def last():
    pass
"""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.append(str(ROOT / "scripts"))  # as it is when the script runs
    return load_script("build_site")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One with a page, code beside it, and a drawing."""
    for name, text in {
        "docs/page.md": "# Page\n",
        "docs/more/other.md": "# Other\n\n## A part\n",
        "docs/drawing.svg": '<?xml version="1.0"?>\n<svg viewBox="0 0 1 1">\n  <rect/>\n</svg>\n',
        "CONTRIBUTING.md": "# Contributing\n",
        "CHANGELOG.md": "# Changelog\n",
        "code/thing.py": CODE,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def staged(script: ModuleType, repository: Path, text: str, page: str = "docs/more/tried.md") -> str:
    (repository / page).write_text(text)
    pages = repository / "pages"
    script.Staging(repository, pages).run()
    return (pages / Path(page).relative_to("docs")).read_text()


def test_links_inside_stay_and_links_outside_lead_to_a_page_that_shows_the_file(
    script: ModuleType, repository: Path
) -> None:
    text = "See [a](other.md#a-part), [b](../page.md), [c](../../code/thing.py), [d](../../CONTRIBUTING.md#x), [e](https://x.org/y.md).\n"
    assert staged(script, repository, text) == (
        "See [a](other.md#a-part), [b](../page.md), [c](../repository/code/thing.py.md), [d](../contributing.md#x), "
        "[e](https://x.org/y.md).\n"
    )
    shown = (repository / "pages" / "repository" / "code" / "thing.py.md").read_text()
    assert shown.startswith("# thing.py\n")
    assert "````python\nimport os\n" in shown


def test_a_link_to_a_folder_leads_to_its_readme_or_a_list_of_its_files(script: ModuleType, repository: Path) -> None:
    (repository / "example").mkdir()
    (repository / "example" / "README.md").write_text("# Example\n\n[code](../code)\n")
    text = "[a](../../example), [b](../../code)\n"
    assert (
        staged(script, repository, text) == "[a](../repository/example/README.md), [b](../repository/code/index.md)\n"
    )
    shown = repository / "pages" / "repository"
    assert (shown / "example" / "README.md").read_text() == "# Example\n\n[code](../code/index.md)\n"
    assert "thing.py" in (shown / "code" / "index.md").read_text()


def test_what_a_card_tells_the_hub_is_left_out(script: ModuleType, repository: Path) -> None:
    text = "---\ntags:\n- hcpo\nmodel-index:\n- name: hcpo\n  results: []\n---\n\n# Card\n\n---\n\nAfter a rule.\n"
    assert staged(script, repository, text) == "# Card\n\n---\n\nAfter a rule.\n"


def test_code_and_fences_are_left_alone(script: ModuleType, repository: Path) -> None:
    text = (
        "# T\n\n```sh\necho '[a](nowhere.md)'\n```\n\n    [b](nowhere.md)\n\nSay `[c](nowhere.md)`, [`d`](other.md).\n"
    )
    assert staged(script, repository, text) == text


def test_a_link_to_nothing_is_an_error_that_names_page_and_link(script: ModuleType, repository: Path) -> None:
    with pytest.raises(script.SiteError, match=r"docs/more/tried\.md: got a link to 'nowhere\.md', expected a file"):
        staged(script, repository, "[a](nowhere.md)\n")


def test_a_line_that_asks_for_code_becomes_that_code_with_its_lines(script: ModuleType, repository: Path) -> None:
    text = '[`Thing.name`](../../code/thing.py "code")\n'
    assert staged(script, repository, text) == (
        '```python linenums="5"\n@property\ndef name(self):\n    return os.name\n```\n\n'
        "[`code/thing.py`](../repository/code/thing.py.md), lines 5 to 7\n{ .caption }\n"
    )


@pytest.mark.parametrize("name", ["Thing.gone", "gone", "last.inner"])
def test_code_that_is_not_there_is_an_error(script: ModuleType, repository: Path, name: str) -> None:
    with pytest.raises(script.SiteError, match=f"got '{name}', expected a function, class or method of this file"):
        staged(script, repository, f'[{name}](../../code/thing.py "code")\n')


def test_a_drawing_becomes_a_part_of_the_page_with_its_text(script: ModuleType, repository: Path) -> None:
    text = staged(script, repository, '![A "thing"](../drawing.svg)\n')
    assert text.startswith(
        '<figure class="drawing"><svg role="img" aria-label="A &quot;thing&quot;" viewBox="0 0 1 1">'
    )
    assert "\n" not in text.rstrip()


def cell(source: str, *outputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A cell of code that has been run."""
    common = {"cell_type": "code", "execution_count": 1, "metadata": {}}
    return {**common, "source": source.splitlines(keepends=True), "outputs": list(outputs), **more}


def test_a_notebook_becomes_a_page_with_what_came_out_of_it(script: ModuleType, repository: Path) -> None:
    picture = {"output_type": "display_data", "data": {"image/png": "iVBO\nRw0=\n", "text/plain": ["<Figure>"]}}
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# Tried\n", "\n", "[more](../docs/more/other.md)"]},
        cell(
            "%%bash -e\nhmarl-verify b\n",
            {"output_type": "stream", "name": "stderr", "text": ["patience\n"]},
            {"output_type": "stream", "name": "stdout", "text": ["well\n", "do"]},
            {"output_type": "stream", "name": "stdout", "text": "ne\n"},
        ),
        cell("1 + 1", {"output_type": "execute_result", "data": {"text/plain": ["2"]}}),
        cell("plot()", picture, metadata={"alt": "a curve"}),
    ]
    (repository / "code" / "tried.ipynb").write_text(json.dumps({"cells": cells}))
    staged(script, repository, "[a notebook](../../code/tried.ipynb)\n")
    assert (repository / "pages" / "repository" / "code" / "tried.ipynb.md").read_text() == (
        "# Tried\n\n[more](../../more/other.md)\n\n"
        "````sh\nhmarl-verify b\n````\n\n````text\npatience\n````\n\n````text\nwell\ndone\n````\n\n"
        "````python\n1 + 1\n````\n\n````text\n2\n````\n\n"
        "````python\nplot()\n````\n\n![a curve](data:image/png;base64,iVBORw0=)\n"
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (cell("f()", execution_count=None), "a cell that has not been run, expected its outputs: f()"),
        (cell("f()", {"output_type": "error", "ename": "NameError", "evalue": "f"}), "ended with NameError: f"),
    ],
)
def test_a_notebook_that_was_not_run_to_its_end_is_refused(
    script: ModuleType, repository: Path, wrong: dict[str, Any], said: str
) -> None:
    (repository / "code" / "tried.ipynb").write_text(json.dumps({"cells": [wrong]}))
    with pytest.raises(script.SiteError, match=re.escape(said)):
        staged(script, repository, "[a notebook](../../code/tried.ipynb)\n")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("- a\n  more\n- b\n", "- a\n    more\n- b\n"),
        ("- a\n\n  | t |\n  |---|\n", "- a\n\n    | t |\n    |---|\n"),
        ("1. a\n\n       x = y\n\n   rest\n2. b\n", "1. a\n\n        x = y\n\n    rest\n2. b\n"),
        ("- a\n  - b\n    c\n- d\n", "- a\n    - b\n        c\n- d\n"),
        ("text\n- a\n", "text\n\n- a\n"),
        ("- a\nlazy\n- b\n", "- a\nlazy\n- b\n"),
        ("- a\n\ntext\n\n    code\n", "- a\n\ntext\n\n    code\n"),
        ("    - no item but code\n", "    - no item but code\n"),
    ],
)
def test_lists_are_indented_for_the_sites_generator(script: ModuleType, written: str, expected: str) -> None:
    assert script.indented_for_python_markdown(written) == expected


def test_a_built_site_is_held_to_its_links_headings_and_navigation(script: ModuleType, tmp_path: Path) -> None:
    navigation = '<a class="md-nav__link" href="{}">x</a>'
    for name, text in {
        "index.html": navigation.format("one/") + navigation.format(".") + '<a href="one/#there">x</a>',
        "one/index.html": '<h2 id="there">x</h2><a href="#gone">x</a><a href="../two/">x</a><a href="https://x.org">x</a>',
        "lost/index.html": "<p>no way to it</p>",
        "repository/a.py/index.html": "<p>reached by links alone</p>",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert script.problems_of(tmp_path) == [
        "one/index.html: #gone has no such heading",
        "one/index.html: the link ../two/ leads nowhere",
        "lost/index.html: not in docs/navigation.md",
    ]
