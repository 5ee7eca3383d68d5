"""How faults are written and read, and what stands in for an action, for many agents at once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from diary import Diary
from hmarl.runtime.manifest import BoxSpace, DiscreteSpace, MultiDiscreteSpace
from hmarl.sdk import Call, Fail, Hold, NoOp, Situation, UsageError, Zero, make_environment
from hmarl.sdk.environments.faulty import with_faults
from hmarl.sdk.faults import AgentFaults, FaultModel, Outage, parse_faults
from hmarl.sdk.faults.stand_in import Situations, stand_ins
from hmarl.sdk.spaces import mask_branches

ALL = (
    "delay=1..3,loss=0.2,noise=0.25,freeze=0.05:4,action_delay=2,action_loss=0.1,out=5..9,restart=3..3,"
    "fallback=hold:2:noop:[1,0]"
)


def test_each_fault_is_read() -> None:
    assert parse_faults(ALL).everywhere == AgentFaults(
        delay=(1, 3),
        loss=0.2,
        noise=0.25,
        freeze=Outage(probability=0.05, steps=4),
        action_delay=(2, 2),
        action_loss=0.1,
        out=Outage(5, 9),
        restart=Outage(3, 3),
        fallback=Hold(expires_after_steps=2, then=NoOp((1, 0))),
    )
    assert parse_faults("out=7").everywhere.out == Outage(7, math.inf)
    assert parse_faults("restart=7").everywhere.restart == Outage(7, 7)
    assert parse_faults("fallback=noop:4").everywhere.fallback == NoOp(4)
    assert parse_faults("fallback=hold:3").everywhere.fallback == Hold(expires_after_steps=3, then=Zero())


@pytest.mark.parametrize(
    "text", [ALL, "none", "delay=2;a:loss=0.5,out=3", "a:delay=1", "freeze=0.1:3;b:freeze=9", "a:delay=0;delay=2"]
)
def test_what_is_written_is_read_again(text: str) -> None:
    model = parse_faults(text)
    assert parse_faults(str(model)) == model
    assert str(parse_faults(str(model))) == str(model)


def test_an_agents_own_faults_go_over_those_for_all() -> None:
    model = parse_faults("a:delay=3,loss=0.5;delay=1,noise=2")
    assert model.of("a") == AgentFaults(delay=(3, 3), loss=0.5, noise=2.0)
    assert model.of("b") == AgentFaults(delay=(1, 1), noise=2.0)
    assert str(model) == "delay=1,noise=2;a:delay=3,loss=0.5"


def test_texts_lists_and_mappings_say_the_same() -> None:
    expected = parse_faults("delay=2,loss=0.1;a:out=3")
    assert parse_faults(["delay=2", "loss=0.1", "a:out=3"]) == expected
    assert parse_faults({"delay": 2, "loss": 0.1, "a:out": 3}) == expected
    assert parse_faults("delay=7;loss=0.1", {"delay": 2, "a:out": "3"}) == expected
    assert parse_faults(["noise=3", "none", "delay=2,loss=0.1", "a:out=3"]) == expected
    assert parse_faults({"left:arm:delay": 2}).agents == {"left:arm": AgentFaults(delay=(2, 2))}
    assert parse_faults(None) == parse_faults("") == parse_faults("none") == FaultModel()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("dely=2", "faults: unknown fault 'dely'; did you mean 'delay'"),
        ("a:dely=2", "faults: unknown fault 'dely'"),
        ("delay", "faults: got 'delay' in 'delay', expected NAME=VALUE, e.g. delay=2"),
        ("delay=-1", r"faults: delay: got '-1', expected steps from 0 to 100, e.g. 2, or 1\.\.3"),
        ("a:delay=3..1", r"faults: a:delay: got '3..1', expected steps from 0 to 100"),
        ("delay=101", "got '101'"),
        ("loss=1.5", "faults: loss: got '1.5', expected a probability from 0 to 1"),
        ("loss=nan", "got 'nan'"),
        ("noise=-1", "expected a standard deviation of at least 0"),
        ("noise=inf", "got 'inf'"),
        ("freeze=0.5", r"faults: freeze: got '0.5', expected steps, e.g. 50, 50..80, or PROBABILITY:STEPS"),
        ("out=9..3", "got '9..3'"),
        ("fallback=fail", "expected zero, noop:ACTION, hold:STEPS or hold:STEPS:noop:ACTION"),
        ("fallback=hold", "got 'hold'"),
        ("fallback=hold:0", "Hold.expires_after_steps: got 0, expected a positive number"),
        ("delay=1,a:loss=0.5", "got 'a:' inside of 'delay=1,a:loss=0.5', expected it before the first fault"),
        ({"delay": True}, "faults: delay: got True"),
        ({"delay": [1]}, "got .1., expected steps"),
        (3, "faults: got 3, expected a text such as 'delay=2,loss=0.1', or 'none'"),
    ],
)
def test_what_is_wrong_is_named(given: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said) as refusal:
        parse_faults(given)
    assert "\n" not in str(refusal.value)


def test_faults_are_held_against_the_agents_that_there_are() -> None:
    with pytest.raises(UsageError, match=r"faults: unknown agent 'c' \(known: a, arm, b\)"):
        with_faults(Diary(), parse_faults("c:delay=1"))
    with pytest.raises(
        UsageError, match=r"faults: fallback of 'a': NoOp.action: got 9, expected an action of Discrete"
    ):
        with_faults(Diary(), parse_faults("loss=0.1,fallback=noop:9"))
    for fallback, said in (
        (Fail(), "expected one that always acts"),
        (Hold(expires_after_steps=3), "expected one that always acts"),
        (Hold(expires_after_s=3.0, then=Zero()), "expected expires_after_steps"),
    ):
        with pytest.raises(UsageError, match=said):
            with_faults(Diary(), FaultModel(AgentFaults(loss=0.1, fallback=fallback)))
    with pytest.raises(UsageError, match="faults: loss: got 2"):
        make_environment("coordsum/2x10-20", **{"faults.loss": 2})


# --- what stands in --------------------------------------------------------------------------------------------------

SPACES = (DiscreteSpace(n=4), MultiDiscreteSpace(n=[3, 2]), BoxSpace(low=[-1.0, 2.0], high=[1.0, 9.0]))
FALLBACKS = {
    "zero": lambda action: Zero(),
    "noop": NoOp,
    "hold": lambda action: Hold(expires_after_steps=3, then=Zero()),
    "hold and noop": lambda action: Hold(expires_after_steps=2, then=Hold(expires_after_steps=4, then=NoOp(action))),
    "call": lambda action: Hold(expires_after_steps=2, then=Call(lambda situation: Zero().decide(situation))),
}


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
@pytest.mark.parametrize("name", FALLBACKS)
def test_many_are_decided_like_one(space: Any, name: str) -> None:
    generator, rows = np.random.default_rng(0), 200
    fallback = FALLBACKS[name](
        2 if isinstance(space, DiscreteSpace) else (1.0, 3.0) if isinstance(space, BoxSpace) else (2, 1)
    )
    masks = None
    if isinstance(space, BoxSpace):
        last: Any = generator.uniform(space.low, space.high, (rows, 2)).astype(np.float32)
    else:
        sizes = [branch.stop - branch.start for branch in mask_branches(space)]
        last = np.stack([generator.integers(size, size=rows) for size in sizes], axis=1)
        last = last[:, 0] if isinstance(space, DiscreteSpace) else last
        masks = np.concatenate([generator.random((rows, size)) < 0.5 for size in sizes], axis=1)
        for branch in mask_branches(space):
            masks[np.arange(rows), generator.integers(branch.start, branch.stop, rows)] = True
    age = generator.choice([1.0, 2.0, 3.0, 4.0, 5.0, np.inf], rows)
    for given in (masks, None):
        seen = Situations(space, np.arange(rows), given, last, age)
        decided = stand_ins(fallback, seen)
        for row in range(rows):
            situation = Situation(
                step=row,
                action_space=space,
                action_mask=None if given is None else given[row],
                last_action=None if np.isinf(age[row]) else last[row],
                age_s=0.0,
                age_steps=age[row],
            )
            np.testing.assert_array_equal(decided[row], fallback.decide(situation))


def test_a_rule_of_ones_own_is_told_all_that_it_may_look_at() -> None:
    told: list[Situation] = []

    def rule(situation: Situation) -> int:
        told.append(situation)
        return 1

    masks = np.array([[True, True, False], [False, True, True]])
    seen = Situations(DiscreteSpace(n=3), np.array([4, 9]), masks, np.array([2, 0]), np.array([3.0, np.inf]))
    assert stand_ins(Call(rule), seen).tolist() == [1, 1]
    assert [(each.step, each.age_steps, each.age_s, each.reason) for each in told] == [
        (4, 3.0, math.inf, "no fresh action has arrived"),
        (9, math.inf, math.inf, "no fresh action has arrived"),
    ]
    assert [each.last_action for each in told] == [2, None]
    assert [each.action_mask.tolist() for each in told if each.action_mask is not None] == masks.tolist()
