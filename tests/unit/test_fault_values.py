"""The values of faults at their bounds, and the very texts that they are written as."""

from __future__ import annotations

import math

import pytest

from hmarl.sdk import Hold, NoOp, UsageError, Zero
from hmarl.sdk.faults import AgentFaults, FaultModel, Outage, parse_faults

NEVER = Outage()


def read(text: str) -> AgentFaults:
    return parse_faults(text).everywhere


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("loss=0", AgentFaults()),
        ("loss=1", AgentFaults(loss=1.0)),
        ("noise=1e30", AgentFaults(noise=1e30)),
        ("delay=100", AgentFaults(delay=(100, 100))),
        ("delay=0..100", AgentFaults(delay=(0, 100))),
        ("out=0", AgentFaults(out=Outage(0, math.inf))),
        ("out=4..4", AgentFaults(out=Outage(4, 4))),
        ("out=1:3", AgentFaults(out=Outage(probability=1.0, steps=3))),
        ("out=0:3", AgentFaults(out=NEVER)),
        ("out=0.5:0", AgentFaults(out=NEVER)),
        ("restart=3..5", AgentFaults(restart=Outage(3, 5))),
        ("restart=0.1:5", AgentFaults(restart=Outage(probability=0.1, steps=5))),
        ("fallback=noop:[1,0.5]", AgentFaults(fallback=NoOp((1, 0.5)))),
        ("delay=1 .. 3", AgentFaults(delay=(1, 3))),
        ("fallback=noop: [1, 0]", AgentFaults(fallback=NoOp((1, 0)))),
        ("fallback=hold:2:zero", AgentFaults(fallback=Hold(expires_after_steps=2, then=Zero()))),
    ],
)
def test_a_value_is_read(text: str, expected: AgentFaults) -> None:
    assert read(text) == expected


def test_whole_numbers_of_an_action_are_integers_and_others_are_not() -> None:
    fallback = read("fallback=noop:[1,0.5,2.0]").fallback
    assert isinstance(fallback, NoOp)
    assert [type(number) for number in fallback.action] == [int, float, int]


@pytest.mark.parametrize(
    "text",
    [
        "noise=1.1e30",
        "out=0.1:2:3",
        "loss=-0.01",
        "delay=0..101",
        "freeze=1.5:2",
        "delay=1=2",
        "fallback=noop:[12",
        "fallback=noop:12]",
        "fallback=holt:3",
    ],
)
def test_a_value_beyond_its_bounds_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"faults: {text.partition('=')[0]}: got '"):
        read(text)


def test_a_refusal_ends_with_what_was_expected_of_whom() -> None:
    with pytest.raises(UsageError, match=r"^faults: loss: got '2', expected a probability from 0 to 1$"):
        parse_faults("loss=2")
    with pytest.raises(UsageError, match=r"^faults: a:loss: got -1, expected a probability from 0 to 1$"):
        parse_faults(None, {"a:loss": -1})


@pytest.mark.parametrize(
    "text",
    [
        "delay=2",
        "delay=1..3",
        "loss=0.25",
        "loss=1",
        "noise=3",
        "freeze=7",
        "freeze=7..9",
        "freeze=0.5:4",
        "restart=5..5",
        "fallback=zero",
        "fallback=noop:4",
        "fallback=noop:[1, 0.5]",
        "fallback=hold:2",
        "fallback=hold:2:noop:3",
        "fallback=hold:2:hold:3",
    ],
)
def test_a_value_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_faults(text)) == text


def test_what_has_no_text_is_told_by_its_name() -> None:
    assert str(FaultModel(AgentFaults(fallback=Hold(expires_after_s=1.0, then=Zero())))) == "fallback=Hold"


def test_something_goes_wrong_with_agents_if_it_does_with_one_of_them() -> None:
    model = parse_faults("b:loss=0.5")
    assert not model.any_of([])
    assert not model.any_of(["a", "c"])
    assert model.any_of(["a", "b"])
    assert parse_faults("loss=0.5;b:loss=0").any_of(["a"])
    assert not parse_faults("loss=0.5;b:loss=0").any_of(["b"])


@pytest.mark.parametrize(
    ("text", "alike"),
    [
        ("none", True),
        ("delay=2", True),
        ("action_delay=1..3,action_loss=0.5", True),
        ("delay=1..2", False),
        ("loss=0.1", False),
        ("noise=0.1", False),
        ("freeze=3", False),
        ("out=3", False),
        ("restart=3", False),
    ],
)
def test_what_agents_see_alike_they_still_see_alike_where_nothing_is_drawn_or_out(text: str, alike: bool) -> None:
    assert read(text).same_for_all is alike
