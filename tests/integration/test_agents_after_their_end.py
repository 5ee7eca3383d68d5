"""Agents that end before the others: off the list, still on it, and back again."""

import numpy as np
import pytest

from hmarl.sdk.environments import make
from hmarl.sdk.environments.conformance import check_environment
from hmarl.sdk.errors import EnvironmentFault

LINGERING, RETURNING = "pettingzoo/odd_toys:Lingering", "pettingzoo/odd_toys:Returning"


def play(name, steps, **arguments):
    environment = make(name, 1, workers=0, **arguments)
    environment.reset(np.array([3]))
    results = [environment.step((np.zeros((1, 2), np.int64),)) for _ in range(steps)]
    environment.close()
    return results


@pytest.mark.parametrize("length", [6, 7])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_an_agent_that_stays_in_the_list_after_its_end_is_gone_until_the_reset(length, both, strict):
    results = play(LINGERING, 2 * length, length=length, both=both, strict=strict)
    ended = [bool(result.terminated[0] | result.truncated[0]) for result in results]
    assert ended == [step % length == 0 for step in range(1, 2 * length + 1)]
    active = [result.observation.active[0].tolist() for result in results[: length - 1]]
    assert active == [[True, True]] + [[True, False]] * (length - 2)
    # Its last reward counts, what it is paid later does not.
    rewards = [result.rewards[0].tolist() for result in results[:length]]
    assert rewards == [[1, 1], [2, 2]] + [[float(step), 0] for step in range(3, length + 1)]
    assert results[length - 1].terminated[0]
    assert results[length - 1].observation.active.all()


def test_an_environment_that_wants_actions_for_the_dead_is_told_why_it_gets_none():
    with pytest.raises(
        EnvironmentFault, match=r"KeyError: 'b' \(.*odd_toys.py:\d+\); no action was sent for 'b': ended"
    ):
        play(LINGERING, 4, greedy=True)


@pytest.mark.parametrize("at_once", [False, True])
def test_an_agent_that_was_off_the_list_for_a_while_comes_back(at_once):
    results = play(RETURNING, 6, at_once=at_once)
    active = [result.observation.active[0].tolist() for result in results[:5]]
    assert active == [[True, True], [True, False], [True, False], [True, True], [True, True]]
    assert [result.rewards[0, 1] for result in results] == [1, 1, 0, 0, 1, 1]
    assert [bool(result.terminated[0]) for result in results] == [False] * 5 + [True]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_check_of_active_agents_names_who_stays_in_the_list_and_is_paid(workers):
    results = check_environment(lambda batch: make(LINGERING, batch, workers=workers), batch_size=2, steps=12)
    (failed,) = [result for result in results if not result.passed]
    assert failed.name == "active agents"
    # Two copies, two episodes of six steps, of which b is dead at steps 3 to 6.
    assert "agent 'b' stays in env.agents after its end; take it off the list" in failed.detail
    assert "(16 times, first at step 3 of an episode)" in failed.detail
    assert "agent 'b' is paid after its end, which is dropped (16 times, first 3 at step 3" in failed.detail


def test_agents_who_leave_as_they_should_or_return_pass_all_checks():
    for name in ("pettingzoo/odd_toys:Pair", RETURNING):
        results = check_environment(lambda batch, name=name: make(name, batch, workers=0), batch_size=2, steps=14)
        assert [result for result in results if not result.passed] == []
