"""How a client's connection is set up, and when it is given up."""

from __future__ import annotations

import time

import grpc
import pytest

from hmarl.sdk.clients.link import LinkWatch, channel_options, stays_on_this_machine
from hmarl.sdk.clock import now_s

HERE = [
    "127.0.0.1:50051",
    "127.9.8.7:1",
    "localhost:50051",
    "LOCALHOST:50051",
    "localhost",
    "agent.localhost:1",
    "[::1]:50051",
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
        watch.failed(grpc.StatusCode.DEADLINE_EXCEEDED, now_s() - seconds + number * each, each)


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
    watch.failed(grpc.StatusCode.DEADLINE_EXCEEDED, now_s() - 60.0, 0.05)
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
        watch.failed(grpc.StatusCode.DEADLINE_EXCEEDED, now_s() - 0.1, 0.1, heard=True)
        watch.failed(grpc.StatusCode.RESOURCE_EXHAUSTED, now_s() - 0.1, 0.1)
    assert (watch.silent, watch.given_up) == (False, False)
