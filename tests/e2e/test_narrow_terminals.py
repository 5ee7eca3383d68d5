"""Tables in terminals that are too narrow for them: columns stand below one another, and no word is broken."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from command_lines import run_in_terminal
from hmarl.sdk.commands._console import print_table


@pytest.mark.parametrize("columns", [60, 80])
def test_the_zoo_is_listed_in_whole_words(columns: int) -> None:
    code, lines = run_in_terminal(columns, "hmarl-zoo", "list")
    assert code == 0, lines
    assert [line for line in lines if len(line.rstrip()) > columns] == []
    words = {word for line in lines for word in line.split()}
    for word in ("simple-spread-hcpo", "mamujoco/HalfCheetah-2x3", "navigation-interchangeable-happo", "3809.91"):
        assert word in words, lines


def test_columns_that_fit_stay_a_table() -> None:
    file = io.StringIO()
    print_table(Console(file=file, width=20), "two", ("a", "b"), [("x" * 5, "1"), ("y", "2" * 8)])
    assert "│ xxxxx │        1 │" in file.getvalue()


def test_columns_that_do_not_fit_stand_below() -> None:
    file = io.StringIO()
    print_table(Console(file=file, width=19), "three", ("a", "b", "c"), [("x" * 5, "1", "6"), ("y", "2" * 8, "333")])
    assert file.getvalue().splitlines() == [
        "three",
        "a             b",
        "      c",
        "xxxxx         1",
        "      6",
        "y      22222222",
        "    333",
    ]
