"""Faults on purpose, by hand: which observation is seen at which step, and what is done with which action."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diary import Diary
from hmarl.sdk import Observation, UsageError, check_environment, make_environment
from hmarl.sdk.environments.faulty import FaultyEnvironment, with_faults
from hmarl.sdk.faults import FaultModel, parse_faults
from hmarl.sdk.faults.draws import Chance, Draws, philox

SEEDS = np.array([7, 8, 9])


class Play:
    """Steps of a diary under faults.

    Attributes:
        seen: [T + 1, B, N] the step that each agent's observation tells of.
        observations: all of them.
        done: [T, B, 2] choices that were made of ``a`` and ``b``; ``arm``: [T, B, 2] its action.
    """

    def __init__(
        self, faults: str, steps: int, choices: Any = 0, *, seeds: Any = (7,), arm: Any = (0.5, 5.0), **diary: Any
    ) -> None:
        inner = Diary(len(seeds), **diary)
        only_choices = ";arm:fallback=zero" if "noop" in faults else ""  # the arm has no action 3
        environment = with_faults(inner, parse_faults(faults + only_choices))
        self.observations = [environment.reset(np.asarray(seeds))]
        self.finals: list[Observation | None] = []
        for step in range(steps):
            chosen = np.broadcast_to(choices[step] if isinstance(choices, list) else choices, (len(seeds), 2))
            result = environment.step((chosen.astype(np.int64), np.full((len(seeds), 1, 2), arm, np.float32)))
            self.observations.append(result.observation)
            self.finals.append(result.final)
        self.seen = np.stack([told(each)[..., 0] for each in self.observations])
        self.done = np.stack([choice for choice, _ in inner.done]) if steps else None
        self.arm = np.stack([arm[:, 0] for _, arm in inner.done]) if steps else None


def told(observation: Observation) -> np.ndarray:
    """[B, N, 3] what all agents see, in their order."""
    return np.concatenate(observation.observations, axis=1)


def legal(steps: int) -> list[int]:
    """Choices that are legal when they are made, and in the steps after it."""
    return [(step + 2) % 4 for step in range(steps)]


# --- observations --------------------------------------------------------------------------------------------------


def test_late_observations_are_those_of_so_many_steps_before() -> None:
    play = Play("delay=2", 6, legal(6))
    assert play.seen[:, 0].T.tolist() == [[0, 0, 0, 1, 2, 3, 4]] * 3
    for seen, observation in zip(play.seen[:, 0, 0], play.observations, strict=True):
        (mask, none) = observation.action_masks
        assert none is None
        assert (~mask[0]).nonzero()[1].tolist() == [seen % 4] * 2, "the mask is not that of the observation"
    assert [each.state[0, 0] for each in play.observations] == list(range(7)), "the state is not the truth"


def test_only_the_agents_that_are_named_are_late() -> None:
    play = Play("b:delay=1;arm:delay=3", 5, legal(5))
    assert play.seen[:, 0].T.tolist() == [[0, 1, 2, 3, 4, 5], [0, 0, 1, 2, 3, 4], [0, 0, 0, 0, 1, 2]]


def test_episodes_begin_with_what_is_there_and_end_with_what_was_seen() -> None:
    play = Play("delay=2", 7, legal(3) * 3, horizon=3)
    steps, episodes = (np.stack([told(each)[0, 0, part] for each in play.observations]) for part in (0, 1))
    assert steps.tolist() == [0, 0, 0, 0, 0, 0, 0, 0]
    assert episodes.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    finals = [None if each is None else told(each)[0, 0].tolist() for each in play.finals]
    assert finals == [None, None, [1, 0, 7], None, None, [1, 1, 7], None]


def test_what_is_under_way_of_the_last_episode_never_arrives() -> None:
    play = Play("delay=3", 5, legal(2) * 3, horizon=2)
    assert all(told(each)[0, 0, 1] == step // 2 for step, each in enumerate(play.observations))


def test_observations_that_are_lost_leave_the_last_one() -> None:
    play = Play("b:loss=1", 4, legal(4))
    assert play.seen[:, 0].T.tolist() == [[0, 1, 2, 3, 4], [0] * 5, [0, 1, 2, 3, 4]]
    play = Play("loss=0.3", 60, legal(60), seeds=range(200))
    fresh = np.diff(play.seen, axis=0) > 0
    assert abs(fresh.mean() - 0.7) < 0.01
    stays = play.seen[1:][~fresh] == play.seen[:-1][~fresh]
    assert stays.all()
    both = (~fresh[:, :, 0] & ~fresh[:, :, 1]).mean()
    assert abs(both - 0.09) < 0.01, "agents do not lose observations independently"


def test_jitter_is_drawn_for_each_observation_and_the_newest_that_has_arrived_is_seen() -> None:
    steps = 40
    play = Play("delay=1..4", steps, legal(steps), seeds=SEEDS)
    draws, late = Draws(["a", "b", "arm"], 3), []
    draws.begin(SEEDS)
    for _ in range(steps + 1):
        late.append(1 + np.floor(draws.uniform(Chance.DELAY) * 4).astype(int))
        draws.advance()
    assert set(np.unique(late)) == {1, 2, 3, 4}
    for step in range(steps + 1):
        arrived = [np.where(sent + late[sent] <= step, sent, 0) for sent in range(step + 1)]
        assert (play.seen[step] == np.max(arrived, axis=0)).all(), f"step {step}"


def test_noise_has_the_deviation_that_was_asked_for_and_stays_with_its_observation() -> None:
    play = Play("a:noise=0.5", 400, legal(400), seeds=range(20), horizon=500)
    steps = np.arange(401)[:, None]
    assert (play.seen[..., 1] == steps).all()
    errors = play.seen[..., 0] - steps
    assert abs(errors.std() - 0.5) < 0.02
    assert abs(errors.mean()) < 0.02
    late = Play("a:noise=0.5,delay=2", 20, legal(20))
    assert (late.seen[2:, 0, 0] == Play("a:noise=0.5", 20, legal(20)).seen[:-2, 0, 0]).all()
    assert late.seen[0, 0, 0] == late.seen[1, 0, 0] == late.seen[2, 0, 0]


def test_frozen_senses_show_what_was_seen_last() -> None:
    assert Play("freeze=3..5", 8, legal(8)).seen[:, 0, 0].tolist() == [0, 1, 2, 2, 2, 2, 6, 7, 8]
    assert Play("freeze=2", 5, legal(5)).seen[:, 0, 2].tolist() == [0, 1, 1, 1, 1, 1]
    play = Play("freeze=0.05:4", 99, legal(99), seeds=range(300))
    frozen = np.diff(play.seen[..., 0], axis=0) == 0
    runs = [len(run) for row in frozen.T for run in "".join("x" if each else " " for each in row).split()]
    assert min(runs[:-1]) >= 1
    assert np.mean(np.array(runs) % 4 == 0) > 0.9, "it does not last four steps"
    assert abs(frozen.mean() - 4 * 0.05 / (1 + 3 * 0.05)) < 0.02


def test_agents_that_leave_and_come_back_see_the_present_at_once() -> None:
    play = Play("delay=2", 8, legal(8), away=(3, 4))
    assert play.seen[:, 0, 1].tolist() == [0, 0, 0, 0, 0, 5, 5, 5, 6]
    gone = play.observations[3]
    assert not gone.observations[0][0, 1].any()
    assert gone.action_masks[0][0, 1].all()
    assert play.done[5, 0, 1] == legal(8)[5]


# --- actions ---------------------------------------------------------------------------------------------------------


def test_late_actions_are_done_later_and_the_fallback_decides_until_then() -> None:
    play = Play("action_delay=1", 6, legal(6))
    # At step 0 nothing has arrived and 0 is illegal: the first legal choice is 1. Then 2, 3, 0 ... of the step before.
    assert play.done[:, 0].T.tolist() == [[1, 2, 3, 0, 1, 2]] * 2
    assert play.arm[:, 0].tolist() == [[0.0, 2.0], *[[0.5, 5.0]] * 5], "zero, the nearest that the Box has"


def test_each_action_is_done_once_and_never_after_a_newer_one() -> None:
    steps, environment = 60, with_faults(diary := Diary(3), parse_faults("action_delay=0..3,action_loss=0.2"))
    environment.reset(SEEDS)
    draws, late, lost, last = Draws(["a", "b", "arm"], 3), [], [], np.full(3, -1)
    draws.begin(SEEDS)
    for step in range(steps):
        environment.step((np.full((3, 2), (step + 2) % 4), np.full((3, 1, 2), (0.5, 3 + step / 20), np.float32)))
        late.append(np.floor(draws.uniform(Chance.ACTION_DELAY)[:, 2] * 4).astype(int))
        lost.append(draws.uniform(Chance.ACTION_LOSS)[:, 2] < 0.2)
        draws.advance()
        sent = [np.where((each + late[each] <= step) & ~lost[each], each, -1) for each in range(step + 1)]
        newest = np.max(sent, axis=0)
        done = diary.done[-1][1][:, 0, 1]
        assert (done[newest > last] == np.float32(3 + newest[newest > last] / 20)).all(), f"step {step}"
        assert (environment._injector.fresh[:, 2] == (newest > last)).all(), f"step {step}"
        last = np.maximum(last, newest)


def test_what_has_become_illegal_by_the_time_it_arrives_is_not_done() -> None:
    # At every step the choice is legal, (t + 3) % 4, but one step later it is (t - 1 + 3) % 4 = (t + 2) % 4: legal;
    # three steps later it is t % 4: illegal. The last fresh action is missing then, so the fallback decides.
    choices = [(step + 3) % 4 for step in range(6)]
    assert Play("action_delay=1,fallback=noop:3", 6, choices).done[1:, 0, 0].tolist() == choices[:-1]
    late = Play("action_delay=3,fallback=noop:3", 6, choices)
    assert late.done[:, 0, 0].tolist() == [3, 3, 3, 0, 3, 3], "step 3 excludes 3: the first legal one"


def test_a_choice_by_a_late_mask_is_replaced_where_it_is_illegal() -> None:
    # The mask of step t - 1 allows t % 4, which is illegal at step t.
    play = Play("delay=1", 5, [1, 1, 2, 3, 0])
    assert play.done[:, 0, 0].tolist() == [1, 0, 1, 1, 1]
    assert play.done[2, 0, 0] != 2
    held = Play("delay=1,fallback=hold:1", 5, [1, 0, 2, 3, 0])
    assert held.done[:, 0, 0].tolist() == [1, 0, 0, 0, 1], "0 of step 1 is held for a step, and then zero stands in"


def test_lost_actions_leave_it_to_the_fallback() -> None:
    assert Play("action_loss=1,fallback=zero", 5, legal(5)).done[:, 0, 0].tolist() == [1, 0, 0, 0, 1]
    assert Play("action_loss=1,fallback=noop:2", 4, legal(4)).done[:, 0, 0].tolist() == [2, 2, 0, 2]
    play = Play("action_loss=0.25,fallback=noop:3", 80, legal(80), seeds=range(200))
    lost = play.done[..., 0] != np.array(legal(80))[:, None]
    telling = (np.arange(80) + 2) % 4 != 3  # where the choice is 3, nothing shows
    telling &= np.arange(80) % 4 != 3
    assert abs(lost[telling].mean() - 0.25) < 0.01


def test_the_last_action_is_held_for_as_long_as_was_asked() -> None:
    steps = 9
    play = Play("arm:out=2,fallback=hold:3", steps, legal(steps), arm=(1.0, 9.0))
    assert play.arm[:, 0, 0].tolist() == [1, 1, 1, 1, 1, 0, 0, 0, 0]
    assert play.done[:, 0].T.tolist() == [legal(steps)] * 2, "others are out too"


def test_an_agent_that_is_out_neither_hears_nor_is_heard() -> None:
    play = Play("a:out=2..4,fallback=noop:1", 7, legal(7))
    assert play.seen[:, 0, 0].tolist() == [0, 1, 1, 1, 1, 5, 6, 7]
    assert play.done[:, 0, 0].tolist() == [2, 3, 1, 1, 1, 3, 0]
    assert play.done[:, 0, 1].tolist() == legal(7)
    assert all(each.restarted is None for each in play.observations)


def test_an_agent_that_restarts_is_told_of_when_it_is_back() -> None:
    play = Play("b:restart=2..3;arm:restart=4", 7, legal(7))
    restarted = np.stack([each.restarted[0] for each in play.observations])
    assert [places.tolist() for places in restarted.nonzero()] == [[4, 5], [1, 2]]
    assert play.seen[:, 0, 1].tolist() == [0, 1, 1, 1, 4, 5, 6, 7]
    often = Play("restart=0.1:2", 99, legal(99), seeds=range(50))
    flags = np.stack([each.restarted for each in often.observations])
    down = np.diff(often.seen, axis=0) == 0
    assert abs(down.mean() - 0.2 / 1.1) < 0.01
    assert (flags[1:] == np.concatenate([down[:1] & False, down[:-1] & ~down[1:]])).mean() > 0.97


def test_what_arrives_while_an_agent_is_out_is_lost_whenever_it_was_sent() -> None:
    play = Play("a:delay=3,out=5..7;arm:delay=3", 12, legal(12))
    assert play.seen[:, 0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 5, 6, 7, 8, 9]
    assert play.seen[:, 0, 2].tolist() == [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9], "others are out too"
    late = Play("a:delay=3,out=0..4", 9, legal(9))
    assert late.seen[:, 0, 0].tolist() == [0, 0, 0, 0, 0, 2, 3, 4, 5, 6], "an episode's first one always arrives"


def test_an_agent_that_restarts_has_forgotten_before_it_hears_again() -> None:
    play = Play("a:delay=3,restart=5..7", 12, legal(12))
    assert play.seen[:, 0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 5, 6, 7, 8, 9]
    restarted = np.stack([each.restarted[0, 0] for each in play.observations])
    assert np.flatnonzero(restarted).tolist() == [8]


def test_senses_that_are_stuck_show_nothing_new_however_late_it_is() -> None:
    assert Play("a:delay=2,freeze=4..5", 9, legal(9)).seen[:, 0, 0].tolist() == [0, 0, 0, 1, 1, 1, 4, 5, 6, 7]


def test_what_an_agent_sent_before_it_was_out_is_done_and_nothing_that_it_chose_meanwhile() -> None:
    play = Play("arm:action_delay=3,out=5..7,fallback=zero", 14, legal(14), arm=(0.5, 5.0))
    done = np.flatnonzero(play.arm[:, 0, 1] == 5.0)
    assert done.tolist() == [3, 4, 5, 6, 7, 11, 12, 13]


@pytest.mark.parametrize("outage", ["out=0.2:3", "restart=0.2:3", "freeze=0.2:3"])
def test_a_delay_shifts_what_is_seen_and_no_outage(outage: str) -> None:
    steps = 60
    prompt, late = (Play(f"{faults}{outage}", steps, 2, seeds=SEEDS) for faults in ("", "delay=2,"))
    deaf = np.diff(prompt.seen, axis=0) == 0
    assert (np.diff(late.seen, axis=0)[deaf] == 0).all(), "news is heard in an outage"
    heard = ~deaf
    heard[:2] = False  # nothing is due yet
    assert (late.seen[1:][heard] == (prompt.seen[1:] - 2)[heard]).all(), "it is deaf when it is back"
    assert heard.any()
    assert deaf.any()


def test_an_agent_replaced_by_its_fallback_never_acts() -> None:
    assert set(Play("a:out=0,fallback=noop:1", 8, legal(8)).done[:, 0, 0]) == {0, 1}


# --- one seed, one set of faults -------------------------------------------------------------------------------------

OBSERVING = "delay=1..3,loss=0.2,noise=0.1,freeze=0.05:4"
EVERYTHING = f"{OBSERVING},action_delay=0..2,action_loss=0.1,out=0.02:5,restart=0.02:3,fallback=hold:2"


def test_faults_follow_from_seed_step_and_agent_alone() -> None:
    many = Play(EVERYTHING, 90, 2, seeds=range(5), horizon=40)
    alone = Play(EVERYTHING, 90, 1, seeds=[3], horizon=40)  # another team
    assert (many.seen[:, 3] == alone.seen[:, 0]).all()
    assert not (many.seen[:, 2] == alone.seen[:, 0]).all()
    assert not (alone.seen[:40, 0] == alone.seen[40:80, 0]).all(), "the next episode has the same faults"
    draws, fewer = Draws(["a", "b"], 2), Draws(["b"], 1)
    draws.begin(np.array([1, 2]))
    fewer.begin(np.array([2]))
    for _ in range(70):
        draws.advance()
        fewer.advance()
        assert draws.uniform(Chance.LOSS)[1, 1] == fewer.uniform(Chance.LOSS)[0, 0]


def test_the_numbers_are_philox() -> None:
    """The known answers of Random123, by Philox's authors."""
    full = 0xFFFFFFFF
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)
    for words, expected in (
        ((0,) * 6, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((full,) * 6, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (pi, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ):
        assert " ".join(f"{word:08x}" for word in philox(words[:4], words[4:]).tolist()) == expected


def test_an_environment_with_every_fault_keeps_its_promises() -> None:
    for results in (
        check_environment(lambda batch: make_environment("diary:make", batch, horizon=12, faults=EVERYTHING)),
        check_environment(lambda batch: with_faults(Diary(batch, 12, (4, 5)), parse_faults(EVERYTHING)), steps=30),
    ):
        assert all(result.passed for result in results if result.name != "active agents"), results


@pytest.mark.parametrize("toy", ["masked_discrete", "multi_discrete", "leaving"])
def test_masks_with_branches_and_unlike_agents_are_no_exception(toy: str) -> None:
    results = check_environment(lambda batch: make_environment(f"toy_environments:{toy}", batch, faults=EVERYTHING))
    assert all(result.passed for result in results), results


def test_without_faults_the_environment_is_the_very_same() -> None:
    diary = Diary()
    for nothing in (FaultModel(), parse_faults("delay=0,loss=0,out=0.0:5"), parse_faults("delay=3;none")):
        assert with_faults(diary, nothing) is diary
    assert type(make_environment("coordsum/2x10-20", faults="none")).__name__ == "CoordSum"
    faulty = make_environment("coordsum/2x10-20", **{"faults": "delay=2", "faults.loss": 0.5})
    assert isinstance(faulty, FaultyEnvironment)
    assert faulty.spec.faults == "delay=2,loss=0.5"


def test_what_all_see_alike_is_declared_only_where_they_still_do() -> None:
    def declared(faults: str) -> tuple[str, ...]:
        return with_faults(Diary(), parse_faults(faults)).spec.common_observations

    assert declared("delay=2") == declared("action_loss=0.5") == ("step",)
    for faults in ("delay=1..2", "a:delay=1", "loss=0.1", "noise=1", "freeze=5", "out=3", "restart=3"):
        assert declared(faults) == ()


def test_wrong_actions_are_refused_before_anything_changes() -> None:
    environment = with_faults(Diary(), parse_faults("action_delay=1"))
    actions = (np.full((1, 2), 1), np.full((1, 1, 2), 3, np.float32))
    with pytest.raises(UsageError, match="call reset"):
        environment.step(actions)
    environment.reset(np.array([1]))
    before = environment.get_state()
    with pytest.raises(UsageError, match=r"actions of 'a': got 9 to 9, expected 0 to 3"):
        environment.step((np.full((1, 2), 9), actions[1]))
    after = environment.get_state()
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    with pytest.raises(UsageError, match="state: got the arrays"):
        environment.set_state({name: array for name, array in before.items() if name != "faults.gone"})
