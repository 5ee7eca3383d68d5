"""What is said reaches every terminal in letters that it has; names that are not known are told with those that are."""

from __future__ import annotations

import pytest

from hmarl.runtime.errors import did_you_mean, unknown_name
from hmarl.runtime.output import PLAIN_LETTERS


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("±0.5 … é", "+-0.5 ... e"),
        ("λ ω", "lambda omega"),
        ("☃", "\\u2603"),
        ("ﬁ", "fi"),
        ("E[r ⋅ Â] · 3", "E[r * A] | 3"),
    ],
)
def test_what_an_encoding_lacks_is_written_in_plain_letters(text: str, plain: str) -> None:
    assert text.encode("ascii", PLAIN_LETTERS) == plain.encode()


def test_what_cannot_be_read_is_no_matter_of_plain_letters() -> None:
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("ascii", PLAIN_LETTERS)


def test_few_names_are_listed_and_of_many_the_first_or_who_lists_them() -> None:
    few, many = [f"task_{number}" for number in range(3)], [f"task_{number:02}" for number in range(25)]
    assert unknown_name("task", "x", few) == "unknown task 'x' (known: task_0, task_1, task_2)"
    assert unknown_name("task", "x", many).endswith("task_19 and 5 more)")
    assert unknown_name("task", "x", many, "hmarl-envs").endswith("(hmarl-envs lists all)")


def test_a_slip_is_corrected_behind_the_prefix_that_all_share_and_without_one() -> None:
    assert did_you_mean("mpe.spred", ["mpe.spread", "mpe.tag"]) == "; did you mean 'mpe.spread'?"
    assert did_you_mean("mpe.spred", ["mpe.spread", "vmas.football"]) == "; did you mean 'mpe.spread'?"
