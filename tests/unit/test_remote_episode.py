"""What a client decides, act by act: retries, deadlines, fallbacks, and joining an episode again."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.status import Code
from hmarl.runtime.bundle import Bundle, ObservationError
from hmarl.sdk.clients.link import LEAST_RECEIVE_LIMIT_BYTES
from hmarl.sdk.clients.operations import Abandon, Act, End, Pause, Reconnect, Start
from hmarl.sdk.errors import AgentError, StaleActionError
from hmarl.sdk.fallback import Hold
from scripted_client import (
    MASK,
    OBSERVATION,
    Always,
    Make,
    Noting,
    acting,
    answer,
    failure,
    finished,
    info_of,
    maker,
    new_clock,
    raised,
    reply,
    session,
)
from told_clock import Clock
from toy_bundle import write_toy_bundle


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return new_clock(monkeypatch)


@pytest.fixture
def fallback() -> Noting:
    return Noting()


@pytest.fixture
def make(toy_bundle: Bundle, clock: Clock, fallback: Noting) -> Make:
    return maker(toy_bundle, clock, fallback)


# --- acting -----------------------------------------------------------------------------------------------------------


def test_an_act_sends_the_step_and_returns_what_is_answered(make: Make, clock: Clock) -> None:
    episode = make(diagnostics=True)
    script, act = acting(episode)
    sent = act.request.act
    assert (sent.session_id, sent.step, act.step, act.timeout_s) == ("s0", 7, 7, 0.5)
    assert sent.observation.data == OBSERVATION.tobytes()
    assert list(sent.observation.shape) == [6]
    assert sent.action_mask.data == MASK.tobytes()
    clock.now += 0.25
    logits = agent_pb2.Tensor(data_type=agent_pb2.DATA_TYPE_FLOAT32, shape=[1], data=np.float32(1.5).tobytes())
    action = finished(script, reply(3, missed_steps=4, replayed=True, diagnostics={"logits": logits}))
    assert (action.action, action.step, action.fresh, action.missed_steps, action.replayed) == (3, 7, True, 4, True)
    assert action.latency_s == 0.25
    assert action.diagnostics["logits"] == 1.5
    assert (episode.statistics.acts, episode.statistics.missed_steps, episode.statistics.fallbacks) == (1, 4, 0)
    script, act = acting(episode)
    assert act.step == 8
    finished(script, reply(step=8, missed_steps=2))
    assert (episode.statistics.acts, episode.statistics.missed_steps) == (2, 6)


def test_diagnostics_that_were_not_asked_for_are_not_decoded(make: Make) -> None:
    script, _ = acting(make())
    broken = agent_pb2.Tensor(data_type=agent_pb2.DATA_TYPE_FLOAT32, shape=[1])
    assert finished(script, reply(diagnostics={"logits": broken})).diagnostics == {}


def test_a_policy_without_a_mask_is_sent_none(make: Make, tmp_path: Path) -> None:
    episode = make(info=info_of(write_toy_bundle(tmp_path / "plain", plain=True)))
    act = next(episode.act(OBSERVATION, None))
    assert isinstance(act, Act)
    assert not act.request.act.HasField("action_mask")


def test_a_reply_in_the_last_moment_is_fresh_and_a_later_one_is_not(make: Make, clock: Clock, fallback: Noting) -> None:
    episode = make(timeout_s=0.25)
    script, act = acting(episode)
    assert act.timeout_s == 0.25
    clock.now += 0.25
    assert finished(script, reply()).fresh
    script, _ = acting(episode)
    clock.now += 0.5
    action = finished(script, reply(step=8, missed_steps=1))
    assert (action.action, action.step, action.fresh, action.missed_steps, action.replayed) == (2, 8, False, 0, False)
    assert (action.latency_s, action.diagnostics) == (0.5, {})
    counted = episode.statistics
    assert (counted.acts, counted.fallbacks, counted.late_replies, counted.missed_steps) == (2, 1, 1, 1)
    # The fallback is told of the reply that was fresh, 0.5 s and one step ago.
    (told,) = fallback.told
    assert (told.step, told.last_action, told.age_s, told.age_steps) == (8, 3, 0.5, 1)
    assert told.action_mask is not None
    assert told.action_mask.tolist() == MASK.tolist()
    assert "taken after the time allowed" in told.reason
    script, _ = acting(episode)
    clock.now += 1.0
    assert finished(script, reply(step=9)).action == 2
    assert episode.statistics.late_replies == 2
    assert episode.statistics.fallbacks == 2


def test_fallbacks_are_counted_by_what_kept_a_fresh_action(make: Make, clock: Clock) -> None:
    episode = make(timeout_s=0.25, rejoin=False)
    for code in (Code.OUT_OF_RANGE, Code.OUT_OF_RANGE):
        script, _ = acting(episode)
        finished(script, failure(code))
    script, _ = acting(episode)
    assert answer(script, failure(Code.NOT_FOUND)) == Abandon()
    finished(script, None)
    script, _ = acting(episode)
    clock.now += 0.5
    finished(script, failure(Code.DEADLINE_EXCEEDED))
    script, _ = acting(episode)
    clock.now += 0.5
    finished(script, reply(step=11))
    counted = episode.statistics
    assert counted.fallback_reasons == {"OUT_OF_RANGE": 2, "NOT_FOUND": 1, "DEADLINE_EXCEEDED": 1, "LATE_REPLY": 1}
    assert (counted.acts, counted.fresh, counted.fallbacks) == (5, 0, 5)
    script, _ = acting(episode)
    finished(script, reply(step=12))
    assert (counted.fresh, sum(counted.latency_counts)) == (1, 6)
    assert counted.latency_sum_s == 1.0


def test_a_lost_call_is_made_again_at_once_and_then_after_pauses(make: Make, clock: Clock) -> None:
    script, act = acting(make())
    again = answer(script, failure(Code.UNAVAILABLE))
    assert again == act
    assert answer(script, failure(Code.UNKNOWN)) == Pause(0.01)
    clock.now += 1.75
    late = answer(script, None)
    assert isinstance(late, Act)
    assert (late.request, late.timeout_s) == (act.request, 0.25)
    clock.now += 0.2421875
    assert answer(script, failure(Code.UNAVAILABLE)) == Pause(0.0078125)  # no longer than there is time


def test_the_time_is_over_when_the_last_pause_is(make: Make, clock: Clock, fallback: Noting) -> None:
    episode = make(timeout_s=0.25)
    script, _ = acting(episode)
    answer(script, failure(Code.UNAVAILABLE))
    clock.now += 0.5
    assert answer(script, failure(Code.UNAVAILABLE)) == Pause(0.0)
    assert finished(script, None).action == 2
    (told,) = fallback.told
    assert told.reason == "agent 'agent_0' at robot:1: UNAVAILABLE: so it is"
    assert told.last_action is None
    assert (told.age_s, told.age_steps) == (math.inf, math.inf)


def test_silence_gives_the_connection_up_and_the_act_goes_on_over_another(make: Make, clock: Clock) -> None:
    episode = make(timeout_s=5.0)
    script, act = acting(episode)
    assert act.timeout_s == 0.5
    clock.now += 0.5
    # The start was answered at once, so that a new connection is given 0.6 s.
    assert answer(script, failure(Code.DEADLINE_EXCEEDED)) == Reconnect(0.6, LEAST_RECEIVE_LIMIT_BYTES)
    again = answer(script, None)
    assert isinstance(again, Act)
    assert again.timeout_s == 1.0
    clock.now += 1.0
    # Something else was answered meanwhile: the connection stays.
    heard = answer(script, failure(Code.DEADLINE_EXCEEDED, heard=True))
    assert isinstance(heard, Act)
    assert heard.timeout_s == 1.0
    clock.now += 0.75
    assert finished(script, reply()).fresh
    assert episode.watch.patience_left_s == 3.0  # four times what the answered request took, not the whole act


def test_an_action_that_stands_in_is_the_callers_own(make: Make, fallback: Noting, tmp_path: Path) -> None:
    script, _ = acting(make())
    assert type(finished(script, failure(Code.INTERNAL)).action) is int
    kept = np.array([2, 1])
    pair = write_toy_bundle(tmp_path / "pair", action="multi_discrete")
    episode = make(info=info_of(pair), fallback=Noting(then=Always(kept)))
    script, _ = acting(episode)
    action = finished(script, failure(Code.INTERNAL)).action
    assert action.tolist() == [2, 1]
    action[0] = 0
    assert kept.tolist() == [2, 1]


def test_an_act_that_begins_too_late_sends_nothing(make: Make, clock: Clock) -> None:
    episode = make()
    episode.timeout_s = 0.0
    script = episode.act(OBSERVATION, MASK)
    with pytest.raises(StopIteration) as end:
        next(script)
    assert not end.value.value.fresh


# --- what the server refuses ------------------------------------------------------------------------------------------


def test_a_refused_observation_uses_no_step_up(make: Make, fallback: Noting) -> None:
    episode = make()
    script, _ = acting(episode)
    assert raised(script, failure(Code.INVALID_ARGUMENT), ObservationError) == "so it is"
    assert acting(episode)[1].step == 7
    assert fallback.told == []


@pytest.mark.parametrize(
    "code", [Code.FAILED_PRECONDITION, Code.UNIMPLEMENTED, Code.UNAUTHENTICATED, Code.PERMISSION_DENIED]
)
def test_a_refused_request_is_an_error_and_not_hidden_by_a_fallback(make: Make, fallback: Noting, code: Code) -> None:
    episode = make()
    script, _ = acting(episode)
    message = f"agent 'agent_0' at robot:1: {code.name}: so it is; the next act goes on with step 8"
    assert raised(script, failure(code), AgentError) == message
    assert acting(episode)[1].step == 8
    assert fallback.told == []


@pytest.mark.parametrize("code", [Code.RESOURCE_EXHAUSTED, Code.INTERNAL, Code.CANCELLED])
def test_another_failure_leaves_the_decision_to_the_fallback_at_once(make: Make, fallback: Noting, code: Code) -> None:
    script, _ = acting(make())
    action = finished(script, failure(code))
    assert (action.action, action.fresh) == (2, False)
    assert fallback.told[0].reason == f"agent 'agent_0' at robot:1: {code.name}: so it is"


def test_no_episode_no_act(make: Make) -> None:
    episode = make(first_step=None)
    with pytest.raises(AgentError, match=r"agent 'agent_0': no episode has been started: call reset\(seed\) first"):
        next(episode.act(OBSERVATION, MASK))
    assert episode.statistics.acts == 0


def test_an_ended_episode_is_forgotten(make: Make) -> None:
    episode = make()
    assert episode.ending() == agent_pb2.EndEpisodeRequest(session_id="s0")
    assert episode.ending() is None
    with pytest.raises(AgentError, match="no episode has been started"):
        next(episode.act(OBSERVATION, MASK))


# --- joining again ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [False, True])
def test_a_forgotten_episode_is_joined_again_at_the_step_and_the_act_goes_on(
    make: Make, fallback: Noting, reset: bool
) -> None:
    episode = make(first_step=3)
    finished(acting(episode)[0], reply(step=3))
    script, act = acting(episode)
    begun = episode.starting(5, True, "sample", 4, "a1")  # on its own bundle, while the server holds it
    assert answer(script, failure(Code.NOT_FOUND)) == Start(begun, 0.5)
    (told,) = fallback.told
    assert (told.step, told.reason) == (4, "agent 'agent_0' at robot:1: NOT_FOUND: so it is")
    assert told.last_action == 3
    assert told.action_mask is not None
    assert told.action_mask.tolist() == MASK.tolist()
    again = answer(script, session("s1", reset=reset))
    assert isinstance(again, Act)
    assert (again.step, again.request.act.session_id, again.request.act.step) == (4, "s1", 4)
    assert again.request.act.observation.data == OBSERVATION.tobytes()
    assert finished(script, reply(3, step=4)).action == 3
    assert (episode.statistics.rejoins, episode.statistics.state_resets) == (1, int(reset))
    script, act = acting(episode)
    assert (act.request.act.session_id, act.step) == ("s1", 5)
    answer(script, failure(Code.NOT_FOUND))
    answer(script, session("s2", reset=reset))
    assert (episode.statistics.rejoins, episode.statistics.state_resets) == (2, 2 * int(reset))


@pytest.mark.parametrize("kept_by", ["option", "fallback"])
def test_an_episode_that_may_not_be_joined_again_says_how_to(make: Make, kept_by: str) -> None:
    fallback = Noting(rejoins=kept_by == "option")
    episode = make(rejoin=kept_by == "fallback", fallback=fallback)
    script, _ = acting(episode)
    assert answer(script, failure(Code.NOT_FOUND)) == Abandon()
    assert finished(script, None).action == 2
    expected = (
        "agent 'agent_0' at robot:1: NOT_FOUND: so it is; call reset(seed, first_step=7) to join the episode again"
    )
    assert fallback.told[-1].reason == expected
    # The next act asks the server first, which may know the session after all.
    assert acting(episode)[1].step == 8


def test_a_start_on_its_way_is_waited_for_by_the_next_act(make: Make, clock: Clock, fallback: Noting) -> None:
    episode = make(timeout_s=0.25)
    script, _ = acting(episode)
    rejoin = answer(script, failure(Code.NOT_FOUND))
    clock.now += 0.25
    assert not finished(script, failure(Code.DEADLINE_EXCEEDED)).fresh
    assert fallback.told[-1].reason == "agent 'agent_0' at robot:1: NOT_FOUND: so it is"
    script = episode.act(OBSERVATION, MASK)
    waited = next(script)
    assert isinstance(waited, Start)
    assert isinstance(rejoin, Start)
    assert waited.request == rejoin.request
    assert waited.request.first_step == 7
    clock.now += 0.25
    assert not finished(script, failure(Code.DEADLINE_EXCEEDED)).fresh
    assert fallback.told[-1].reason == "agent 'agent_0' at robot:1: NOT_FOUND: so it is", "whatever act it was"
    script = episode.act(OBSERVATION, MASK)
    next(script)  # another connection, as nothing was answered for half a second
    assert isinstance(answer(script, None), Start)
    act = answer(script, session("s1"))
    assert isinstance(act, Act)
    assert (act.request.act.session_id, act.step) == ("s1", 9)


def test_joining_again_is_tried_anew_when_the_server_is_lost(make: Make, clock: Clock) -> None:
    script, act = acting(make())
    answer(script, failure(Code.NOT_FOUND))
    assert answer(script, failure(Code.UNAVAILABLE)) == Pause(0.01)
    assert answer(script, None) == act  # which finds out whether the session is still unknown
    answer(script, failure(Code.NOT_FOUND))
    clock.now += 1.9921875
    assert answer(script, failure(Code.UNKNOWN)) == Pause(0.0078125)


def test_a_refusal_to_join_again_is_told(make: Make, fallback: Noting) -> None:
    episode = make()
    script, _ = acting(episode)
    answer(script, failure(Code.NOT_FOUND))
    assert finished(script, failure(Code.RESOURCE_EXHAUSTED)).action == 2
    reason = "agent 'agent_0' at robot:1: NOT_FOUND: so it is; joining again: RESOURCE_EXHAUSTED: so it is"
    assert fallback.told[-1].reason == reason
    assert acting(episode)[1].step == 8


def test_another_agent_is_never_joined(make: Make) -> None:
    episode = make()
    script, _ = acting(episode)
    answer(script, failure(Code.NOT_FOUND))
    assert answer(script, session("s1", agent="agent_1")) == End("s1")
    expected = (
        "robot:1: got agent 'agent_1', expected 'agent_0', which was served there before: its actions are not taken; "
        "serve the right agent there, or make a new client"
    )
    assert raised(script, None, AgentError) == expected
    assert acting(episode)[1].request.act.session_id == "s0"


def test_an_expired_hold_ends_in_an_error(make: Make, clock: Clock) -> None:
    """A fallback that raises: the step is used up, and counted."""
    episode = make(fallback=Hold(expires_after_s=1.0))
    finished(acting(episode)[0], reply(3))
    script, _ = acting(episode)
    clock.now += 1.0
    assert finished(script, failure(Code.INTERNAL)).action == 3
    script, _ = acting(episode)
    clock.now += 0.5
    assert "1.500 s old" in raised(script, failure(Code.INTERNAL), StaleActionError)
    assert (episode.statistics.fallbacks, acting(episode)[1].step) == (2, 10)
