"""What a client decides, act by act: its scripts are taken through by hand, with replies and failures of every kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from hmarl.agent.v1 import agent_pb2
from hmarl.runtime.bundle import Bundle, ObservationError, to_json
from hmarl.runtime.message_limits import reply_limit_bytes
from hmarl.sdk import link, remote_episode
from hmarl.sdk.agent import AgentError
from hmarl.sdk.errors import UsageError
from hmarl.sdk.fallback import Fallback, Hold, NoOp, Situation, StaleActionError
from hmarl.sdk.link import LEAST_RECEIVE_LIMIT_BYTES, LinkWatch
from hmarl.sdk.operations import Abandon, Act, CallFailed, Describe, End, Operation, Pause, Reconnect, Start
from hmarl.sdk.remote_episode import RemoteEpisode, describe
from told_clock import Clock
from toy_bundle import write_toy_bundle

OBSERVATION = np.asarray([0.5, -1.0, 2.0, 0.0, 3.0, -0.25], np.float32)
MASK = np.asarray([True, False, True, True, False])
Code = grpc.StatusCode


@dataclass(frozen=True)
class Noting(Fallback):
    """Notes what it was told; the action 2, or whatever ``then`` decides."""

    told: list[Situation] = field(default_factory=list)
    then: Fallback = field(default_factory=lambda: NoOp(2))
    rejoins: bool = True

    def decide(self, situation: Situation) -> Any:
        self.told.append(situation)
        return self.then.decide(situation)

    def may_rejoin(self, situation: Situation) -> bool:
        self.told.append(situation)
        return self.rejoins


@dataclass(frozen=True)
class Always(Fallback):
    """One array, again and again."""

    action: Any

    def decide(self, situation: Situation) -> Any:
        return self.action


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    told = Clock()
    monkeypatch.setattr(remote_episode, "now_s", told)
    monkeypatch.setattr(link, "now_s", told)
    return told


@pytest.fixture
def fallback() -> Noting:
    return Noting()


def info_of(bundle: Bundle, agent: str = "agent_0", sha256: str = "a1") -> agent_pb2.GetAgentInfoResponse:
    return agent_pb2.GetAgentInfoResponse(
        agent_id=agent, agent_manifest_json=to_json(bundle.agent(agent)), bundle_name="toy", bundle_sha256=sha256
    )


Make = Callable[..., RemoteEpisode]


@pytest.fixture
def make(toy_bundle: Bundle, clock: Clock, fallback: Noting) -> Make:
    """A client's episode, started as session "s0" at a step unless ``first_step`` is None."""

    def make(first_step: int | None = 7, **options: Any) -> RemoteEpisode:
        chosen: dict[str, Any] = {"rejoin": True, "diagnostics": False, "allow_bundle_change": False}
        chosen |= {"timeout_s": 2.0, "fallback": fallback} | options
        info = chosen.pop("info", None) or info_of(toy_bundle)
        episode = RemoteEpisode(info, LinkWatch(), source="robot:1", **chosen)
        if first_step is not None:
            request = episode.starting(5, True, "sample", first_step)
            script = episode.start(request, clock.now + 10.0)
            assert next(script) == Start(request, 0.5)
            assert finished(script, session("s0")) is None
        return episode

    return make


def session(name: str, sha256: str = "a1", agent: str = "agent_0", reset: bool = False) -> Any:
    return agent_pb2.StartEpisodeResponse(
        session_id=name, agent_id=agent, bundle_sha256=sha256, state_reset_mid_episode=reset
    )


def reply(action: int = 3, step: int = 7, **fields: Any) -> Any:
    tensor = agent_pb2.Tensor(data_type=agent_pb2.DATA_TYPE_INT64, data=action.to_bytes(8, "little"))
    return agent_pb2.ActResponse(step=step, action=tensor, **fields)


def failure(code: grpc.StatusCode, heard: bool = False) -> CallFailed:
    return CallFailed(code, "so it is", heard=heard)


def answer(script: Generator[Operation, Any, Any], outcome: Any) -> Operation:
    """What is asked for next, after this response or failure."""
    return script.throw(outcome) if isinstance(outcome, Exception) else script.send(outcome)


def finished(script: Generator[Operation, Any, Any], outcome: Any) -> Any:
    """What the script returns after this response or failure, which has to be the last."""
    with pytest.raises(StopIteration) as end:
        answer(script, outcome)
    return end.value.value


def raised(script: Generator[Operation, Any, Any], outcome: Any, kind: type[Exception]) -> str:
    with pytest.raises(kind) as error:
        answer(script, outcome)
    return str(error.value)


def acting(episode: RemoteEpisode) -> tuple[Generator[Operation, Any, Any], Act]:
    """An act of the episode, and what it asks for first."""
    script = episode.act(OBSERVATION, MASK)
    first = next(script)
    assert isinstance(first, Act)
    return script, first


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
def test_a_refused_request_is_an_error_and_not_hidden_by_a_fallback(
    make: Make, fallback: Noting, code: grpc.StatusCode
) -> None:
    episode = make()
    script, _ = acting(episode)
    message = f"agent 'agent_0' at robot:1: {code.name}: so it is; the next act goes on with step 8"
    assert raised(script, failure(code), AgentError) == message
    assert acting(episode)[1].step == 8
    assert fallback.told == []


@pytest.mark.parametrize("code", [Code.RESOURCE_EXHAUSTED, Code.INTERNAL, Code.CANCELLED])
def test_another_failure_leaves_the_decision_to_the_fallback_at_once(
    make: Make, fallback: Noting, code: grpc.StatusCode
) -> None:
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
    begun = episode.starting(5, True, "sample", 4)
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
    assert finished(script, reply(1, step=4)).action == 1
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


# --- starting ---------------------------------------------------------------------------------------------------------


def test_what_starts_an_episode(make: Make) -> None:
    request = make(first_step=None, diagnostics=True).starting(2**64 - 1, np.True_, "common", 9)
    choice = agent_pb2.INSTRUCTION_CHOICE_COMMON
    assert request == agent_pb2.StartEpisodeRequest(
        seed=2**64 - 1, sample=True, instruction_choice=choice, first_step=9, diagnostics=True
    )
    plain = make(first_step=None).starting(1, False, None, 0)
    assert plain == agent_pb2.StartEpisodeRequest(seed=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, False, "best", 0), "instruction_choice: got 'best', expected one of argmax, sample, common"),
        ((1, False, ["argmax"], 0), "instruction_choice: got ['argmax'], expected one of argmax, sample, common"),
        ((1, 1, None, 0), "sample: got 1, expected True or False"),
        ((-1, False, None, 0), "seed: got -1"),
        ((1, False, None, -1), "first_step: got -1"),
    ],
)
def test_an_argument_out_of_range_is_named(make: Make, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UsageError) as error:
        make(first_step=None).starting(*arguments)
    assert str(error.value).startswith(message)


def test_a_start_waits_for_a_server_that_is_not_there_yet(make: Make, clock: Clock) -> None:
    episode = make(first_step=None)
    request = episode.starting(1, False, None, 4)
    script = episode.start(request, clock.now + 1.0)
    assert next(script) == Start(request, 0.5)
    clock.now += 0.9375
    assert answer(script, failure(Code.UNAVAILABLE)) == Pause(0.02)
    assert answer(script, None) == Start(request, 0.0625)
    clock.now += 0.046875  # a pause would outlast what is left
    assert answer(script, failure(Code.UNAVAILABLE)) == Abandon()
    assert raised(script, None, CallFailed) == "UNAVAILABLE: so it is"
    assert episode.session_id is None


def test_a_start_that_takes_longer_than_patience_is_waited_for_over_a_new_connection(make: Make, clock: Clock) -> None:
    episode = make(first_step=None)
    request = episode.starting(1, False, None, 4)
    script = episode.start(request, clock.now + 1.0)
    next(script)
    clock.now += 0.5
    assert answer(script, failure(Code.DEADLINE_EXCEEDED)) == Reconnect(20.0, LEAST_RECEIVE_LIMIT_BYTES)
    assert answer(script, None) == Start(request, 0.5)
    clock.now += 0.5
    assert answer(script, failure(Code.DEADLINE_EXCEEDED)) == Abandon()  # the time is over
    assert raised(script, None, CallFailed) == "DEADLINE_EXCEEDED: so it is"


def test_a_refused_start_is_not_repeated(make: Make, clock: Clock) -> None:
    episode = make(first_step=None)
    script = episode.start(episode.starting(1, False, None, 0), clock.now + 1.0)
    next(script)
    assert answer(script, failure(Code.INVALID_ARGUMENT)) == Abandon()
    assert raised(script, None, CallFailed) == "INVALID_ARGUMENT: so it is"


def test_a_new_episode_knows_nothing_of_the_one_before(make: Make, clock: Clock, fallback: Noting) -> None:
    episode = make(timeout_s=0.25)
    finished(acting(episode)[0], reply(3))
    script, _ = acting(episode)
    answer(script, failure(Code.NOT_FOUND))
    clock.now += 0.25
    finished(script, failure(Code.DEADLINE_EXCEEDED))  # the old episode is still to be joined again
    request = episode.starting(6, False, None, 20)
    script = episode.start(request, clock.now + 1.0)
    next(script)
    finished(script, session("s9"))
    script, act = acting(episode)
    assert (act.step, act.request.act.session_id) == (20, "s9")
    finished(script, failure(Code.INTERNAL))
    told = fallback.told[-1]
    assert told.last_action is None
    assert (told.age_s, told.age_steps) == (math.inf, math.inf)


# --- who answers ------------------------------------------------------------------------------------------------------


def test_another_bundle_is_an_error_unless_it_is_allowed(make: Make, clock: Clock) -> None:
    episode = make()
    script = episode.start(episode.starting(1, False, None, 0), clock.now + 1.0)
    next(script)
    assert answer(script, session("s1", sha256="b2")) == End("s1")
    expected = (
        "robot:1: agent 'agent_0': got bundle b2, expected a1 ('toy'), which was served there before: make a new "
        "client, or one with allow_bundle_change=True"
    )
    assert raised(script, None, AgentError) == expected


def test_an_allowed_bundle_is_asked_for_and_taken_over(make: Make, clock: Clock, toy_bundle: Bundle) -> None:
    episode = make(allow_bundle_change=True)
    script = episode.start(episode.starting(1, False, None, 0), clock.now + 1.0)
    next(script)
    clock.now += 0.75
    assert answer(script, session("s1", sha256="b2")) == Describe(0.25)
    new = info_of(toy_bundle, sha256="b2")
    finished(script, new)
    assert episode.info == new
    assert episode.session_id == "s1"


def test_a_server_that_changes_while_it_is_asked_is_asked_again(make: Make, clock: Clock, toy_bundle: Bundle) -> None:
    episode = make(allow_bundle_change=True)
    request = episode.starting(1, False, None, 0)
    script = episode.start(request, clock.now + 1.0)
    next(script)
    answer(script, session("s1", sha256="b2"))
    assert answer(script, info_of(toy_bundle, sha256="c3")) == End("s1")
    assert answer(script, None) == Pause(0.02)
    assert answer(script, None) == Start(request, 0.5)
    answer(script, session("s2", sha256="c3"))
    finished(script, info_of(toy_bundle, sha256="c3"))
    assert (episode.session_id, episode.info.bundle_sha256) == ("s2", "c3")


@pytest.mark.parametrize("other", [None, "agent", "bundle"])
def test_a_server_that_does_not_say_whose_session_it_is_gets_asked(
    make: Make, clock: Clock, toy_bundle: Bundle, other: str | None
) -> None:
    episode = make()
    script = episode.start(episode.starting(1, False, None, 0), clock.now + 1.0)
    next(script)
    assert answer(script, session("s1", agent="", sha256="")) == Describe(0.5)
    served = info_of(
        toy_bundle, "agent_1" if other == "agent" else "agent_0", sha256="b2" if other == "bundle" else "a1"
    )
    if other is None:
        finished(script, served)
        assert episode.session_id == "s1"
    else:
        assert answer(script, served) == End("s1")
        message = raised(script, None, AgentError)
        assert ("got agent 'agent_1', expected 'agent_0'" if other == "agent" else "got bundle b2") in message


@pytest.mark.parametrize(("differs", "shape"), [("observation", {"observation_size": 5}), ("mask", {})])
def test_a_bundle_that_does_not_fit_is_not_taken_over(
    make: Make, clock: Clock, tmp_path: Path, differs: str, shape: dict[str, Any]
) -> None:
    other = info_of(write_toy_bundle(tmp_path / "other", **shape, plain=differs == "mask"), sha256="b2")
    episode = make(allow_bundle_change=True)
    before = episode.info
    script = episode.start(episode.starting(1, False, None, 0), clock.now + 1.0)
    next(script)
    answer(script, session("s1", sha256="b2"))
    assert answer(script, other) == End("s1")
    message = raised(script, None, AgentError)
    assert message.startswith("robot:1: agent 'agent_0' of bundle 'toy' does not fit: ")
    assert differs in message
    assert episode.info is before


def test_a_bundle_that_wants_a_mask_is_not_taken_over_by_a_client_that_sends_none(
    make: Make, clock: Clock, toy_bundle: Bundle, tmp_path: Path
) -> None:
    episode = make(info=info_of(write_toy_bundle(tmp_path / "plain", plain=True)), allow_bundle_change=True)
    script = episode.start(episode.starting(1, False, None, 0), clock.now + 1.0)
    next(script)
    answer(script, session("s1", sha256="b2"))
    assert answer(script, info_of(toy_bundle, sha256="b2")) == End("s1")
    expected = "does not fit: action mask: got a policy with a mask input, the one before had none"
    assert raised(script, None, AgentError).endswith(expected)


def test_what_keeps_a_bundle_from_being_taken_over_is_told(make: Make, clock: Clock, toy_bundle: Bundle) -> None:
    episode = make(allow_bundle_change=True)
    script = episode.start(episode.starting(1, False, None, 0), clock.now + 1.0)
    next(script)
    answer(script, session("s1", sha256="b2"))
    strange = info_of(toy_bundle, sha256="b2")
    strange.agent_manifest_json = "{}"
    assert answer(script, strange) == End("s1")
    assert raised(script, None, AgentError).startswith("robot:1: agent 'agent_0' (hmarl ) describes itself in an unkno")
    script = episode.start(episode.starting(1, False, None, 0), clock.now + 1.0)
    next(script)
    answer(script, session("s2", sha256="b2"))
    clock.now += 1.0  # too late to ask again
    assert answer(script, info_of(toy_bundle, sha256="c3")) == End("s2")
    assert answer(script, None) == Abandon()
    expected = "UNAVAILABLE: the server changed while it was asked who is served"
    assert raised(script, None, CallFailed) == expected


def test_a_larger_reply_needs_another_connection(
    make: Make, clock: Clock, toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = reply_limit_bytes(toy_bundle.agent("agent_0"))
    monkeypatch.setattr(remote_episode, "LEAST_RECEIVE_LIMIT_BYTES", limit)
    assert not make(first_step=None).watch.given_up
    monkeypatch.setattr(remote_episode, "LEAST_RECEIVE_LIMIT_BYTES", limit - 1)
    episode = make(first_step=None)
    script = episode.start(episode.starting(1, False, None, 0), clock.now + 1.0)
    assert next(script) == Reconnect(20.0, limit)
    assert isinstance(answer(script, None), Start)


def test_an_unknown_description_is_told(make: Make) -> None:
    strange = agent_pb2.GetAgentInfoResponse(agent_id="a", hmarl_version="9", agent_manifest_json="{}")
    with pytest.raises(AgentError, match=r"robot:1: agent 'a' \(hmarl 9\) describes itself in an unknown form: "):
        make(info=strange)


# --- connecting -------------------------------------------------------------------------------------------------------


def test_who_is_served_is_asked_until_the_server_is_there(clock: Clock, toy_bundle: Bundle) -> None:
    watch, info = LinkWatch(), info_of(toy_bundle)
    script = describe(watch, clock.now + 1.0)
    assert next(script) == Describe(1.0)
    clock.now += 0.25
    assert answer(script, failure(Code.UNAVAILABLE)) == Pause(0.02)
    assert answer(script, None) == Describe(0.75)
    clock.now += 0.5
    assert finished(script, info) == info
    assert watch.connect_timeout_s == 2.0  # four times what the answered request took


@pytest.mark.parametrize(("code", "after_s"), [(Code.UNAVAILABLE, 0.984375), (Code.UNAUTHENTICATED, 0.25)])
def test_connecting_ends_with_the_time_and_with_a_refusal(clock: Clock, code: grpc.StatusCode, after_s: float) -> None:
    script = describe(LinkWatch(), clock.now + 1.0)
    next(script)
    clock.now += after_s
    assert raised(script, failure(code), CallFailed) == f"{code.name}: so it is"


def test_connecting_after_its_time_asks_once_without_waiting(clock: Clock) -> None:
    assert next(describe(LinkWatch(), clock.now - 1.0)) == Describe(0.0)
