"""How a client starts an episode, and whose: retries, deadlines, other agents and bundles."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.status import Code
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.message_limits import reply_limit_bytes
from hmarl.sdk.clients import remote_episode
from hmarl.sdk.clients.link import LEAST_RECEIVE_LIMIT_BYTES, LinkWatch
from hmarl.sdk.clients.operations import Abandon, CallFailed, Describe, End, Examine, Pause, Reconnect, Start
from hmarl.sdk.clients.remote_episode import describe
from hmarl.sdk.errors import AgentError, UsageError
from scripted_client import (
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


def test_a_start_is_waited_for_over_a_connection_that_shows_life(make: Make, clock: Clock) -> None:
    episode = make(first_step=None)
    request = episode.starting(1, False, None, 4)
    script = episode.start(request, clock.now + 1.0)
    next(script)
    clock.now += 0.5
    assert answer(script, failure(Code.DEADLINE_EXCEEDED, heard=True)) == Start(request, 0.5)


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
    assert answer(script, session("s1", sha256="b2")) == Describe(0.25, "b2")
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
    script = describe(watch, clock.now + 2.0)
    assert next(script) == Describe(0.5)
    clock.now += 0.25
    assert answer(script, failure(Code.UNAVAILABLE)) == Pause(0.02)
    assert answer(script, None) == Describe(0.5)
    clock.now += 0.5
    assert answer(script, failure(Code.DEADLINE_EXCEEDED)) == Examine(0.625), "once, when nothing is heard"
    assert answer(script, None) == Describe(1.25)
    clock.now += 0.5
    assert finished(script, info) == info
    assert watch.connect_timeout_s == 2.0  # four times what the answered request took


def test_what_will_never_answer_ends_connecting(clock: Clock) -> None:
    script = describe(LinkWatch(), clock.now + 10.0)
    assert next(script) == Describe(0.5)
    clock.now += 0.5
    assert answer(script, failure(Code.DEADLINE_EXCEEDED)) == Examine(2.0)
    with pytest.raises(AgentError, match="another authority"):
        script.throw(AgentError("the agent's certificate is of another authority"))


@pytest.mark.parametrize(("code", "after_s"), [(Code.UNAVAILABLE, 0.984375), (Code.UNAUTHENTICATED, 0.25)])
def test_connecting_ends_with_the_time_and_with_a_refusal(clock: Clock, code: Code, after_s: float) -> None:
    script = describe(LinkWatch(), clock.now + 1.0)
    next(script)
    clock.now += after_s
    assert raised(script, failure(code), CallFailed) == f"{code.name}: so it is"


def test_connecting_after_its_time_asks_once_without_waiting(clock: Clock) -> None:
    assert next(describe(LinkWatch(), clock.now - 1.0)) == Describe(0.0)
