"""How a client's connection is set up, and when it is given up."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
from grpc._cython import cygrpc

from hmarl.agent.v1.status import Code
from hmarl.sdk.clients import link
from hmarl.sdk.clients.link import LinkWatch, channel_options, stays_on_this_machine
from hmarl.sdk.clock import now_s
from told_clock import Clock

HERE = [
    "127.0.0.1:50051",
    "127.9.8.7:1",
    "localhost:50051",
    "LOCALHOST:50051",
    "localhost",
    "localhost.:50051",
    "agent.localhost:1",
    "[::1]:50051",
    "[::1%lo]:50051",
    "[::ffff:127.0.0.1]:50051",
    "0.0.0.0:50051",
    "[::]:50051",
    "ipv4:127.0.0.1:50051",
    "ipv6:[::1]:50051",
    "dns:///localhost:50051",
    "dns://1.1.1.1/127.0.0.1:50051",
    "unix:/run/agent.sock",
    "unix:agent.sock",
    "unix:///run/agent.sock",
    "unix-abstract:agent",
]
ELSEWHERE = [
    "xlocalhost:50051",
    "XLOCALHOST:50051",
    "localhostX:50051",
    "192.168.1.7:50051",
    "[fe80::1]:50051",
    "robot:50051",
    "robot.example.org:50051",
    "localhost.example.org:1",
    "unix.example.org:50051",
    "dns:///robot:50051",
    "128.0.0.1:50051",
]


def test_loopback_and_unix_sockets_are_never_behind_a_proxy() -> None:
    assert [address for address in HERE if not stays_on_this_machine(address)] == []
    assert [address for address in ELSEWHERE if stays_on_this_machine(address)] == []
    assert dict(channel_options(HERE[0], 1.0))["grpc.enable_http_proxy"] == 0
    assert dict(channel_options(ELSEWHERE[0], 1.0))["grpc.enable_http_proxy"] == 1


def silence(watch: LinkWatch, seconds: float, requests: int = 1) -> None:
    """Requests that took ``seconds`` altogether, just now, and were not answered."""
    each = seconds / requests
    for number in range(requests):
        watch.failed(Code.DEADLINE_EXCEEDED, now_s() - seconds + number * each, each)


def test_a_connection_is_given_up_after_half_a_second_of_silence() -> None:
    watch = LinkWatch()
    watch.answered(0.001)
    silence(watch, 0.45)
    assert (watch.silent, watch.given_up) == (True, False)
    watch.answered(0.001)
    assert not watch.silent
    silence(watch, 0.45)
    assert not watch.given_up
    silence(watch, 0.1)
    assert watch.given_up


def test_patience_doubles_with_each_connection_and_ends_with_an_answer() -> None:
    watch, patience = LinkWatch(), []
    for _ in range(6):
        patience.append(watch.patience_left_s)
        silence(watch, patience[-1])
        assert watch.given_up
        watch.replaced()
        assert not watch.given_up
    assert patience == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    watch.answered(0.001)
    assert watch.patience_left_s == 0.5


def test_a_slow_policy_is_given_time() -> None:
    watch = LinkWatch()
    watch.answered(3.0)
    assert watch.patience_left_s == 12.0


def test_a_stop_of_this_process_says_nothing_about_the_link() -> None:
    watch = LinkWatch()
    watch.answered(0.001)
    watch.failed(Code.DEADLINE_EXCEEDED, now_s() - 60.0, 0.05)
    assert (watch.silent, watch.given_up) == (False, False)


def test_attempts_to_connect_are_short_but_longer_than_the_link_needs() -> None:
    watch = LinkWatch()
    watch.connected(5.0)  # the server was not there yet
    assert watch.connect_timeout_s == 20.0
    watch.answered(0.0005)
    assert watch.connect_timeout_s == 0.6
    far = LinkWatch()
    far.connected(2.4)
    far.answered(0.6)
    assert far.connect_timeout_s == pytest.approx(2.4)


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="no clock here counts the time of a suspended machine")
def test_the_time_that_a_machine_is_suspended_counts() -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= now_s() <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_late_answers_and_refusals_are_answers() -> None:
    watch = LinkWatch()
    for _ in range(20):
        watch.failed(Code.DEADLINE_EXCEEDED, now_s() - 0.1, 0.1, heard=True)
        watch.failed(Code.RESOURCE_EXHAUSTED, now_s() - 0.1, 0.1)
    assert (watch.silent, watch.given_up) == (False, False)


# --- with a clock that is told ----------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    told = Clock()
    monkeypatch.setattr(link, "now_s", told)
    return told


def unanswered(watch: LinkWatch, clock: Clock, allowed_s: float, pause_s: float = 0.0) -> bool:
    """A request that has no answer in the time allowed; whether the connection is given up."""
    begin_s = clock.now
    clock.now += allowed_s
    watch.failed(Code.DEADLINE_EXCEEDED, begin_s, allowed_s)
    clock.now += pause_s
    return watch.given_up


def test_what_is_allowed_to_take_time_and_memory() -> None:
    def options(connect_timeout_s: float, *limits: int, streaming: bool = False) -> dict[str, int]:
        return dict(channel_options("robot:1", connect_timeout_s, *limits, streaming=streaming))

    limits = [options(seconds)["grpc.min_reconnect_backoff_ms"] for seconds in (0.0001, 1.5, 3600.0, 1e12, math.inf)]
    assert limits == [1, 1500, 3_600_000, 3_600_000, 3_600_000]
    largest = [options(1.0, *limit)["grpc.max_receive_message_length"] for limit in ((), (7,), (2**31,), (2**40,))]
    assert largest == [64 * 2**20, 7, 2**31 - 1, 2**31 - 1]
    assert [options(1.0, streaming=each)["grpc.enable_retries"] for each in (False, True)] == [0, 1]
    plain = dict(channel_options("robot:1", 1.0))
    assert plain["grpc.enable_retries"] == 0
    assert plain["grpc.http2.max_pings_without_data"] == 0  # no limit


def test_every_argument_is_one_that_grpc_knows() -> None:
    """It says nothing about those that it does not."""
    core = Path(cygrpc.__file__).read_bytes()
    names = {name for name, _ in channel_options("robot:1", 1.0)}
    one_by_version = {"grpc.http2.ping_timeout_ms", "grpc.keepalive_timeout_ms"}
    assert one_by_version < names
    assert [name for name in sorted(names - one_by_version) if b"\0" + name.encode() + b"\0" not in core] == []
    assert any(name.encode() in core for name in one_by_version)


def test_a_fresh_connection_is_not_silent_and_has_time_to_connect() -> None:
    watch = LinkWatch()
    assert (watch.silent, watch.given_up, watch.patience_left_s, watch.connect_timeout_s) == (False, False, 0.5, 20.0)


def test_waiting_adds_up_over_requests_and_pauses_do_not(clock: Clock) -> None:
    watch = LinkWatch()
    assert not unanswered(watch, clock, 0.25, pause_s=10.0)
    assert (watch.silent, watch.patience_left_s) == (True, 0.25)
    assert not unanswered(watch, clock, 0.125)
    assert watch.patience_left_s == 0.125
    assert unanswered(watch, clock, 0.125)


def test_many_short_requests_give_a_connection_up_after_as_long_a_silence(clock: Clock) -> None:
    """Five at least, and half a second from the first one's beginning, of which they waited only a tenth."""
    watch = LinkWatch()
    for _ in range(3):
        assert not unanswered(watch, clock, 0.015625, pause_s=0.25)
    assert not unanswered(watch, clock, 0.015625), "four tries in 0.8 s"
    assert unanswered(watch, clock, 0.015625)
    quick = LinkWatch()
    for _ in range(5):
        assert not unanswered(quick, clock, 0.0625), "no more than 0.3 s"
    clock.now += 0.125
    assert unanswered(quick, clock, 0.0625), "half a second"


def test_time_that_this_process_was_held_up_is_no_silence_of_the_link(clock: Clock) -> None:
    watch = LinkWatch()
    begin_s = clock.now
    clock.now += 0.25 + 0.25
    watch.failed(Code.DEADLINE_EXCEEDED, begin_s, 0.25)
    assert (watch.silent, watch.patience_left_s) == (True, 0.25)  # what it was allowed, no more
    begin_s = clock.now
    clock.now += 0.25 + 0.375
    watch.failed(Code.DEADLINE_EXCEEDED, begin_s, 0.25)
    assert (watch.silent, watch.patience_left_s) == (False, 0.5)


def test_what_was_heard_meanwhile_ends_the_silence_and_begins_it_anew(clock: Clock) -> None:
    watch = LinkWatch()
    for _ in range(4):
        unanswered(watch, clock, 0.0625)
    begin_s = clock.now
    clock.now += 0.0625
    watch.failed(Code.DEADLINE_EXCEEDED, begin_s, 0.0625, heard=True)
    assert (watch.silent, watch.patience_left_s) == (False, 0.5)
    for _ in range(4):
        assert not unanswered(watch, clock, 0.015625, pause_s=0.25), "the tries before it do not count"


def test_a_request_that_ends_before_its_time_was_waited_for_no_longer(clock: Clock) -> None:
    watch, begin_s = LinkWatch(), clock.now
    clock.now += 0.125
    watch.failed(Code.DEADLINE_EXCEEDED, begin_s, 0.5)
    assert (watch.given_up, watch.patience_left_s) == (False, 0.375)


def test_a_refusal_says_nothing_about_a_silent_link(clock: Clock) -> None:
    watch = LinkWatch()
    unanswered(watch, clock, 0.25)
    watch.failed(Code.UNAVAILABLE, clock.now, 0.25)
    assert (watch.silent, watch.patience_left_s) == (True, 0.25)


def test_patience_follows_slow_answers_down_by_and_by() -> None:
    watch = LinkWatch()
    patience = []
    for latency_s in (1.0, 0.01, 0.01, 0.01, 0.01, 0.01, 0.5):
        watch.answered(latency_s)
        patience.append(watch.patience_left_s)
    assert patience == pytest.approx([4.0, 2.8, 1.96, 1.372, 0.9604, 0.67228, 2.0])


def test_patience_with_a_new_connection_may_be_longer_where_answers_are_slow(clock: Clock) -> None:
    watch = LinkWatch()
    watch.answered(3.0)
    watch.replaced()
    assert watch.patience_left_s == 12.0  # four times 3 s, above the usual 8 s
    usual = LinkWatch()
    usual.answered(1.5)
    assert usual.patience_left_s == 6.0
    assert unanswered(usual, clock, 6.0)
    assert usual.silent
    usual.replaced()
    assert (usual.silent, usual.patience_left_s) == (False, 8.0)


def test_the_quickest_answer_says_how_long_connecting_may_take() -> None:
    watch = LinkWatch()
    for latency_s, timeout_s in ((10.0, 20.0), (2.0, 8.0), (3.0, 8.0), (0.25, 1.0), (0.15, 0.6), (0.01, 0.6)):
        watch.answered(latency_s)
        assert watch.connect_timeout_s == pytest.approx(timeout_s)
    connected = LinkWatch()
    connected.connected(2.0)
    connected.connected(3.0)
    assert connected.connect_timeout_s == 8.0
