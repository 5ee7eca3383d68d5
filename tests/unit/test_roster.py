"""Who is served: trained agents, some of them, and further ones like an interchangeable agent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hmarl.runtime.bundle import Bundle, UsageError
from hmarl.runtime.roster import counted_roster, named_roster, split_names
from hmarl.runtime.session import Policy, noise_for
from toy_bundle import write_toy_bundle

LEGAL = np.ones(5, np.bool_)
KINDS = ("red_08", "red_09", "blue_1", "lone")


@pytest.fixture(scope="module")
def kinds_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Red and blue agents are interchangeable among themselves, the lone one is not."""
    path = tmp_path_factory.mktemp("kinds") / "bundle"
    return write_toy_bundle(path, agents=KINDS, interchangeable=("red", "blue"))


def test_an_agent_that_was_not_trained_gets_anothers_entry_under_its_own_id(interchangeable_bundle: Bundle) -> None:
    model = interchangeable_bundle.agent("robot", like="agent_1")
    assert model.named("agent_1") == interchangeable_bundle.agent("agent_1")
    assert (model.id, model.file, model.interchangeable) == ("robot", "agents/agent.onnx", True)


@pytest.mark.parametrize(
    ("name", "like", "message"),
    [
        ("robot", None, "unknown agent 'robot' .*may act like an interchangeable one, e.g. 'red_08'"),
        ("robot", "green", "unknown agent 'green'"),
        ("robot", "lone", "'lone' is not interchangeable"),
        ("red_08", "red_09", "'red_08' was trained itself"),
        ("lone", "red_09", "'lone' was trained itself"),
        ("", "red_09", "empty name"),
    ],
)
def test_whom_no_agent_can_stand_in_for_is_refused(
    kinds_bundle: Bundle, name: str, like: str | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Policy(kinds_bundle, name, like=like)


def test_further_agents_act_alike_and_draw_numbers_of_their_own(interchangeable_bundle: Bundle) -> None:
    names = ("agent_0", "robot", "ship")
    policies = [Policy(interchangeable_bundle, name, like=None if name == "agent_0" else "agent_0") for name in names]
    seen = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)

    def play(policy: Policy, sample: bool) -> list[int]:
        session = policy.session()
        session.reset(5, sample=sample)
        return [int(session.act(row, LEGAL).action) for row in seen]

    played = [play(policy, False) for policy in policies]
    assert played[0] == played[1] == played[2]
    drawn = [tuple(play(policy, True)) for policy in policies]
    assert len(set(drawn)) == 3
    for policy, name in zip(policies, names, strict=True):
        noise = next(each for each in policy.agent.noises if each.stream == "private")
        expected = noise_for(noise, name, np.array([5]), 0)
        np.testing.assert_array_equal(noise_for(noise, policy.agent.id, np.array([5]), 0), expected)


def test_names_are_trained_ones_or_like_one(kinds_bundle: Bundle, interchangeable_bundle: Bundle) -> None:
    assert named_roster(interchangeable_bundle, ["agent_1", "bob"]) == {"agent_1": None, "bob": "agent_0"}
    roster = named_roster(kinds_bundle, ["lone", "bob=blue_1", "eve=red_09"])
    assert roster == {"lone": None, "bob": "blue_1", "eve": "red_09"}
    for names, message in (
        (["bob"], r"'bob' was not trained, and another may act like any of red_08, blue_1: .*--agents bob=red_08"),
        (["lone", "lone"], "'lone' twice"),
        (["bob=blue_1", "bob=red_08"], "'bob' twice"),
        (["lone=blue_1"], "'lone' was trained itself"),
        (["bob=lone"], "'lone' is not interchangeable"),
        (["bob="], "unknown agent ''"),
    ):
        with pytest.raises(UsageError, match=message):
            named_roster(kinds_bundle, names)


def test_a_count_takes_the_first_or_goes_on_numbering(
    toy_bundle: Bundle, kinds_bundle: Bundle, interchangeable_bundle: Bundle, tmp_path: Path
) -> None:
    assert counted_roster(toy_bundle, 1) == {"agent_0": None}
    assert counted_roster(kinds_bundle, 2) == {"red_08": None, "red_09": None}
    further = {"agent_2": "agent_0", "agent_3": "agent_0"}
    assert counted_roster(interchangeable_bundle, 4) == {"agent_0": None, "agent_1": None, **further}
    padded = write_toy_bundle(tmp_path / "padded", agents=("red_08", "red_09", "red_11x"), interchangeable=("red",))
    assert list(counted_roster(padded, 4)) == ["red_08", "red_09", "red_11x", "red_10"]
    named = write_toy_bundle(tmp_path / "named", agents=("ann", "anna"), interchangeable=("ann",))
    for bundle, message in (
        (toy_bundle, "got 3, but 2 agents were trained, and no agent of bundle .* is interchangeable"),
        (kinds_bundle, "got 5, but 4 agents were trained, and another may act like any of red_08, blue_1"),
        (named, "got 3, but the names of ann, anna do not end in numbers"),
    ):
        with pytest.raises(UsageError, match=message):
            counted_roster(bundle, len(bundle.agent_ids) + 1)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("agent_0, carl ,eve=agent_2", ["agent_0", "carl", "eve=agent_2"]),
        ('"a,b=c",x', ["a,b=c", "x"]),
        ('"a ""big"" one, or two",b', ['a "big" one, or two', "b"]),
        ('"eve=a,b"', ["eve=a,b"]),
        ("", [""]),
        ("a,,b", ["a", "", "b"]),
    ],
)
def test_a_list_of_names_may_hold_names_with_commas(text: str, names: list[str]) -> None:
    assert split_names(text) == names


def test_a_quote_that_is_not_closed_is_an_error() -> None:
    with pytest.raises(UsageError, match=r'agents: got "a,b: .*names that contain a comma as "NAME"'):
        split_names('"a,b')


def test_names_with_equals_signs_are_parted_where_an_agent_is_meant(tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "bundle", agents=("red_x", "red_b"), interchangeable=("red",))
    assert named_roster(bundle, ["red_x", "a=b=red_x", "c=red_b"]) == {"red_x": None, "a=b": "red_x", "c": "red_b"}
    with pytest.raises(UsageError, match="unknown agent 'b=c'"):
        named_roster(bundle, ["a=b=c"])
