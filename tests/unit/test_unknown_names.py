"""A name that is not known: the closest known ones, and where the others are, on one short line."""

from __future__ import annotations

import pytest

from hmarl.sdk.errors import UsageError, did_you_mean, unknown_name
from hmarl.trainer.runs.config import make_config

MANY = [f"setting_{number:02}" for number in range(40)]


@pytest.mark.parametrize(
    ("got", "known", "said"),
    [
        ("clipp", ["clip", "gamma"], "; did you mean 'clip'?"),
        ("zzz", ["clip", "gamma"], ""),
        ("agent", ["agent_0", "agent_1", "scout"], "; did you mean 'agent_1' or 'agent_0'?"),
        # What all names begin with makes none of them closer.
        ("algorithm.foo", ["algorithm.gamma", "algorithm.mode"], ""),
        ("algorithm.gama", ["algorithm.gamma", "algorithm.mode"], "; did you mean 'algorithm.gamma'?"),
    ],
)
def test_the_closest_names_are_suggested(got: str, known: list[str], said: str) -> None:
    assert did_you_mean(got, known) == said


def test_few_names_are_all_listed() -> None:
    told = unknown_name("fruit", "aple", ["pear", "apple"])
    assert told == "unknown fruit 'aple'; did you mean 'apple'? (known: apple, pear)"


def test_names_are_not_told_twice() -> None:
    agents = [f"agent_{number}" for number in range(3)]
    assert unknown_name("agent", "agent_7", agents) == "unknown agent 'agent_7' (known: agent_0, agent_1, agent_2)"
    only = unknown_name("argument", "lenght", ["length"])  # a slip of the pen is worth a word
    assert only == "unknown argument 'lenght'; did you mean 'length'? (known: length)"


def test_of_many_names_it_is_said_how_to_list_them() -> None:
    assert unknown_name("setting", "zzz", MANY, "hmarl-things") == "unknown setting 'zzz' (hmarl-things lists all)"
    told = unknown_name("setting", "zzz", MANY)
    assert told.endswith("setting_19 and 20 more)")


def test_an_unknown_setting_takes_one_short_line_that_names_the_algorithm() -> None:
    with pytest.raises(UsageError) as refused:
        make_config("happo", "mpe/simple_spread", {"foo": 1}, {}, {})
    assert str(refused.value) == "unknown setting 'algorithm.foo' (hmarl-algorithms happo lists all)"


def test_what_has_no_effect_is_not_suggested() -> None:
    with pytest.raises(UsageError, match=r"unknown setting 'algorithm.recurent' \(") as refused:
        make_config("mat", "mpe/simple_spread", {"recurent": True}, {}, {})
    assert "recurrent" not in str(refused.value)
