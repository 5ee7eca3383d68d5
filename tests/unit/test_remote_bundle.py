"""On which bundle an episode is played: named by the caller, kept when it is joined again, refused by the server."""

from __future__ import annotations

import pytest

from hmarl.runtime.bundle import Bundle
from hmarl.sdk.clients.operations import Act, Describe, End, Start
from hmarl.sdk.errors import AgentError, OtherBundleError
from scripted_client import (
    Code,
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
    session,
)
from told_clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return new_clock(monkeypatch)


@pytest.fixture
def make(toy_bundle: Bundle, clock: Clock) -> Make:
    return maker(toy_bundle, clock, Noting())


def test_a_named_bundle_is_asked_for_and_followed(make: Make, clock: Clock, toy_bundle: Bundle) -> None:
    episode = make()
    request = episode.starting(1, False, None, 0, "b2")
    script = episode.start(request, clock.now + 1.0)
    asked = next(script)
    assert isinstance(asked, Start)
    assert asked.request.bundle_sha256 == "b2"
    assert answer(script, session("s1", sha256="b2")) == Describe(0.5, "b2")
    finished(script, info_of(toy_bundle, sha256="b2"))
    assert (episode.session_id, episode.info.bundle_sha256) == ("s1", "b2")


@pytest.mark.parametrize("allowed", [False, True])
def test_a_named_bundle_that_is_not_held_is_an_error(make: Make, clock: Clock, allowed: bool) -> None:
    episode = make(allow_bundle_change=allowed)
    script = episode.start(episode.starting(1, False, None, 0, "b2"), clock.now + 1.0)
    next(script)
    assert raised(script, failure(Code.FAILED_PRECONDITION), OtherBundleError) == "robot:1: so it is"


@pytest.mark.parametrize("served", ["a1", "c3"])
def test_a_server_that_does_not_know_the_wish_is_not_obeyed(make: Make, clock: Clock, served: str) -> None:
    """Older servers start the episode on whatever they serve; what the client knew before does not matter."""
    episode = make(allow_bundle_change=True)
    script = episode.start(episode.starting(1, False, None, 0, "b2"), clock.now + 1.0)
    next(script)
    assert answer(script, session("s1", sha256=served)) == End("s1")
    expected = (
        f"robot:1: agent 'agent_0': got bundle {served}, expected b2, on which the episode is to be played: start it "
        "anew, with all agents of the team, on the bundle that is served"
    )
    assert raised(script, None, OtherBundleError) == expected
    assert episode.info.bundle_sha256 == "a1"


def test_an_older_server_that_happens_to_serve_the_named_bundle_will_do(
    make: Make, clock: Clock, toy_bundle: Bundle
) -> None:
    episode = make()
    script = episode.start(episode.starting(1, False, None, 0, "b2"), clock.now + 1.0)
    next(script)
    assert answer(script, session("s1", agent="", sha256="")) == Describe(0.5)
    finished(script, info_of(toy_bundle, sha256="b2"))
    assert episode.session_id == "s1"


@pytest.mark.parametrize("allowed", [False, True])
def test_joining_again_where_the_bundle_is_gone(make: Make, clock: Clock, toy_bundle: Bundle, allowed: bool) -> None:
    """The episode's own bundle first; whether another one will do is up to the client, as ever."""
    episode = make(allow_bundle_change=allowed)
    script, _ = acting(episode)
    first = answer(script, failure(Code.NOT_FOUND))
    assert isinstance(first, Start)
    assert (first.request.bundle_sha256, first.request.first_step) == ("a1", 7)
    second = answer(script, failure(Code.FAILED_PRECONDITION))
    assert isinstance(second, Start)
    assert (second.request.bundle_sha256, second.request.first_step) == ("", 7)
    if allowed:
        assert answer(script, session("s1", sha256="b2")) == Describe(0.5, "b2")
        assert isinstance(answer(script, info_of(toy_bundle, sha256="b2")), Act)
        assert episode.info.bundle_sha256 == "b2"
    else:
        assert answer(script, session("s1", sha256="b2")) == End("s1")
        assert "got bundle b2, expected a1" in raised(script, None, OtherBundleError)


@pytest.mark.parametrize("allowed", [False, True])
def test_an_episode_on_a_named_bundle_is_joined_again_on_that_alone(make: Make, clock: Clock, allowed: bool) -> None:
    episode = make(allow_bundle_change=allowed)
    script = episode.start(episode.starting(1, False, None, 0, "a1"), clock.now + 1.0)
    next(script)
    finished(script, session("s1"))
    for _ in range(2):  # whatever the fallback: each act says so
        script, _ = acting(episode)
        assert isinstance(answer(script, failure(Code.NOT_FOUND)), Start)
        message = raised(script, failure(Code.FAILED_PRECONDITION), OtherBundleError)
        assert message == "agent 'agent_0' at robot:1: NOT_FOUND: so it is; joining again: so it is"


def test_what_new_episodes_get_is_asked(make: Make, clock: Clock, toy_bundle: Bundle) -> None:
    episode = make()
    script = episode.current_bundle(clock.now + 1.0)
    assert next(script) == Describe(0.5)  # then it would be examined why there is no answer
    assert finished(script, info_of(toy_bundle, sha256="b2")) == "b2"
    assert episode.info.bundle_sha256 == "a1", "the running episode's"
    script = episode.current_bundle(clock.now + 1.0)
    next(script)
    message = raised(script, info_of(toy_bundle, "agent_1"), AgentError)
    assert message.startswith("robot:1: got agent 'agent_1', expected 'agent_0'")
