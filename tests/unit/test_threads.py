"""The threads that gRPC's calls run on: bounded, started when needed, none lost to an error, gone with their owner."""

from __future__ import annotations

import gc
import queue
import threading
import time
from collections.abc import Callable

import pytest

from hmarl.runtime.threads import Threads


def threads_of(name: str) -> int:
    return sum(thread.name.startswith(f"{name}_") for thread in threading.enumerate())


def eventually(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10.0
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    return true()


def test_there_are_as_many_threads_as_calls_at_once_but_no_more_than_allowed() -> None:
    threads, go, done = Threads(3, "bounded"), threading.Event(), queue.SimpleQueue[int]()

    def work(number: int) -> None:
        go.wait(10.0)
        done.put(number)

    for number in range(8):
        threads.submit(work, number)
    assert threads_of("bounded") == 3
    go.set()
    assert {done.get(timeout=10.0) for _ in range(8)} == set(range(8))
    assert threads_of("bounded") == 3


def test_a_thread_that_waits_is_used_again() -> None:
    threads, done = Threads(8, "again"), queue.SimpleQueue[str]()
    for _ in range(20):
        threads.submit(lambda: done.put(threading.current_thread().name))
        assert done.get(timeout=10.0) == "again_0"
        assert eventually(lambda: len(threads._waiting) == 1)


def test_an_error_in_a_call_costs_no_thread_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    threads, done = Threads(1, "errors"), queue.SimpleQueue[object]()
    task = threads.submit(lambda: 1 // 0)
    task.add_done_callback(done.put)
    assert done.get(timeout=10.0) is task
    threads.submit(done.put, "next")
    assert done.get(timeout=10.0) == "next"
    assert "ZeroDivisionError" in caplog.text


def test_the_end_of_each_call_is_told_once_whenever_it_comes() -> None:
    threads, told, ran = Threads(4, "told"), queue.SimpleQueue[object](), queue.SimpleQueue[int]()
    tasks = []
    for number in range(2000):
        task = threads.submit(ran.put, number)
        task.add_done_callback(told.put)  # before, during or after the call
        tasks.append(task)
    got = [told.get(timeout=10.0) for _ in tasks]
    assert sorted(map(id, got)) == sorted(map(id, tasks))
    assert told.empty()


def test_threads_end_when_nothing_refers_to_them() -> None:
    threads, done = Threads(2, "gone"), queue.SimpleQueue[int]()
    threads.submit(done.put, 1)
    threads.submit(done.put, 2)
    assert {done.get(timeout=10.0), done.get(timeout=10.0)} == {1, 2}
    del threads
    gc.collect()
    assert eventually(lambda: threads_of("gone") == 0)
