"""The pages list the options that the commands have, all of them and no others, with their defaults."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
COMMANDS = {
    "hmarl-agent": "hmarl.runtime.commands.agent",
    "hmarl-fleet": "hmarl.runtime.commands.fleet",
    "hmarl-fleet reload": "hmarl.runtime.commands.fleet",
    "hmarl-verify": "hmarl.runtime.commands.verify",
    "hmarl-sign": "hmarl.runtime.commands.sign",
    "hmarl-eval": "hmarl.sdk.commands.evaluate",
    "hmarl-faults": "hmarl.sdk.commands.faults",
    "hmarl-keys": "hmarl.runtime.commands.keys",
    "hmarl-suite": "hmarl.trainer.commands.suite",
    "hmarl-tune": "hmarl.trainer.commands.tune",
    "hmarl-gap": "hmarl.trainer.commands.gap",
    "hmarl-replay": "hmarl.sdk.commands.replay",
    "hmarl-zoo fetch": "hmarl.sdk.commands.zoo",
}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")


def rows(command: str) -> list[tuple[str, str]]:
    """The first two cells of the rows of a command's table."""
    names = ("runtime", "bundle", "black-box", "gap", "suites", "tuning", "zoo")
    pages = "\n".join((DOCS / f"{name}.md").read_text() for name in names)
    table = re.search(rf"^\| `{command}` \| default \|.*\n\|[-|]+\n((?:\|.*\n)+)", pages, re.MULTILINE)
    assert table is not None, f"no table of {command}"
    return [tuple(map(str.strip, line.split("|")[1:3])) for line in table[1].splitlines()]  # type: ignore[misc]


def said(command: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HMARL_")}
    words = [sys.executable, "-m", COMMANDS[command], *command.split()[1:], "--help"]
    return subprocess.run(
        words, capture_output=True, text=True, check=True, timeout=120, env={**environment, "COLUMNS": "1000"}
    ).stdout


def plain(default: str) -> str:
    """``600.0`` and ``600`` alike."""
    return default.strip("`").removesuffix(".0")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_lists_every_option_and_no_other(command: str) -> None:
    text, table = said(command), rows(command)
    listed = {option for cell, _ in table for option in OPTION.findall(cell)}
    assert listed == set(OPTION.findall(text)) - {"--help", "--version"}
    defaults = {cell.strip("`"): plain(default) for cell, default in table if cell.count("--") == 1 and default}
    for entry in re.split(r"^ +(?=--)", text, flags=re.MULTILINE):
        match = re.search(r"^(--[a-z-]+).*default:? ([^\s;)\]]+)", entry, re.DOTALL)
        if match is not None and match[1] in defaults and match[2] not in {"the", "all", "with", "as"}:
            assert defaults[match[1]] == plain(match[2]), match[1]
