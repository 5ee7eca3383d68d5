"""What a client makes of responses over frames: by their ids, late ones counted and dropped, whatever their order."""

from __future__ import annotations

import pytest

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.frames_pb2 import FrameError, FrameRequest, FrameResponse
from hmarl.agent.v1.framing import FrameReader, framed
from hmarl.agent.v1.status import Code
from hmarl.sdk.clients.agent import AgentStatistics
from hmarl.sdk.clients.call_metadata import request_id
from hmarl.sdk.clients.frames_talk import MAX_OUTSTANDING, Asked, Ended, Talk, taken_act
from hmarl.sdk.clients.operations import Act, CallFailed


@pytest.fixture
def talk() -> Talk:
    talk = Talk(1000)
    talk.statistics = AgentStatistics()
    return talk


def asked(talk: Talk, step: int) -> Asked:
    message = agent_pb2.StreamActRequest(act=agent_pb2.ActRequest(session_id="s", step=step), metadata={"a": "b"})
    made = talk.act(Act(message, step, 1.0))
    talk.sent(made)
    return made


def acted(number: int, step: int, missed: int = 0) -> bytes:
    return framed(FrameResponse(id=number, act=agent_pb2.ActResponse(step=step, missed_steps=missed)))


def request_in(made: Asked) -> FrameRequest:
    assert made.frame is not None
    (body,) = FrameReader(1000).take(made.frame)
    return FrameRequest.FromString(body)


def test_requests_are_numbered_and_carry_what_calls_carry(talk: Talk) -> None:
    first = talk.act(Act(agent_pb2.StreamActRequest(act=agent_pb2.ActRequest(step=3), metadata={"a": "b"}), 3, 1.0))
    with request_id("mission-7"):
        second = talk.start(agent_pb2.StartEpisodeRequest(seed=9))
    act, start = request_in(first), request_in(second)
    assert (act.id, act.act.step, dict(act.metadata), act.deadline_ns) == (1, 3, {"a": "b"}, 0)
    assert (start.id, start.start_episode.seed, dict(start.metadata)) == (2, 9, {"x-request-id": "mission-7"})
    assert start.deadline_ns > 0


def test_late_responses_are_counted_and_never_the_answer_to_another_request(talk: Talk) -> None:
    late, wanted = asked(talk, 0), asked(talk, 1)
    talk.give_up_act(late)
    talk.take(acted(1, 0, missed=2))
    assert talk.answer(wanted) is None
    talk.take(acted(2, 1))
    response = talk.answer(wanted)
    assert response is not None
    assert taken_act(response, 1).step == 1
    assert talk.statistics is not None
    assert (talk.statistics.late_replies, talk.statistics.missed_steps) == (1, 2)
    assert (talk.received, talk.outstanding) == (2, 0)


def test_late_responses_of_an_episode_that_is_over_are_not_counted(talk: Talk) -> None:
    late = asked(talk, 0)
    talk.give_up_act(late)
    talk.forget_acts()
    talk.take(acted(1, 0, missed=2))
    assert talk.statistics == AgentStatistics()


def test_an_answer_of_another_step_or_kind_is_an_invalid_reply(talk: Talk) -> None:
    for response in (acted(1, 5), framed(FrameResponse(id=2, end_episode=agent_pb2.EndEpisodeResponse()))):
        made = asked(talk, 1)
        talk.take(response)
        got = talk.answer(made)
        assert got is not None
        with pytest.raises(CallFailed, match="INTERNAL: invalid reply: got no act of step 1"):
            taken_act(got, 1)


def test_an_error_with_an_id_is_an_answer_and_one_without_ends_the_connection(talk: Talk) -> None:
    made = asked(talk, 0)
    talk.take(framed(FrameResponse(id=1, error=FrameError(code=5, message="not open"))))
    with pytest.raises(CallFailed, match="NOT_FOUND: not open") as refused:
        talk.answer(made)
    assert not isinstance(refused.value, Ended)
    with pytest.raises(Ended, match="RESOURCE_EXHAUSTED: all taken"):
        talk.take(framed(FrameResponse(error=FrameError(code=8, message="all taken"))))
    with pytest.raises(Ended, match="UNKNOWN"):
        talk.take(framed(FrameResponse(error=FrameError(code=99))))


@pytest.mark.parametrize("data", [b"\x02\xff\xff", b"\xff\xff\xff\xff\xff\x01", b"\xe9\x07"])
def test_bytes_that_are_no_response_end_the_connection(talk: Talk, data: bytes) -> None:
    with pytest.raises(Ended) as ended:
        talk.take(data)
    assert ended.value.code is Code.INTERNAL


def test_a_session_that_starts_when_nothing_waits_is_to_be_ended(talk: Talk) -> None:
    started = FrameResponse(start_episode=agent_pb2.StartEpisodeResponse(session_id="late"))
    for number, before in ((1, True), (2, False)):  # given up before it comes, and after
        made = talk.start(agent_pb2.StartEpisodeRequest())
        talk.sent(made)
        started.id = number
        if before:
            talk.give_up_start(made)
        talk.take(framed(started))
        if not before:
            talk.give_up_start(made)
        assert talk.started_late == ["late"] * number
    unsent = talk.start(agent_pb2.StartEpisodeRequest())
    talk.give_up_start(unsent)
    assert talk.started_late == ["late"] * 2


def test_an_agent_that_does_not_listen_is_sent_no_more(talk: Talk) -> None:
    for step in range(MAX_OUTSTANDING):
        assert talk.listened_to
        asked(talk, step)
    assert not talk.listened_to
    talk.take(acted(1, 0))
    assert talk.listened_to
