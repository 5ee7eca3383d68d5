"""Threads that work side by side, and that get from one computation what they ask for at the same time.

Each works as if it were alone, one at a time, until it asks for something (``ask``). When all of them have asked, or
ended, those who ask for the same kind of thing are answered by one computation, in the thread that waits for them.
Who is in no company is answered at once: whatever asks need not know whether others ask along with it.

PyTorch's threads belong to the one that answers: every thread that computes with several gets helpers of its own, which
keep a core busy for a while after each computation, so that those of many threads would stand in each other's way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, Self, TypeVar

import torch

A_co = TypeVar("A_co", covariant=True)
R = TypeVar("R")


class Request(Protocol[A_co]):
    """Something that is computed, for one or for several at once."""

    @property
    def of_all(self) -> bool:
        """Whether it is of use only when all who are still at work ask for it."""
        ...

    def alike(self, other: Any) -> bool:
        """Whether another request, of the same class, can be answered along with this one."""
        ...

    def together(self, requests: Sequence[Self]) -> Sequence[A_co]:
        """The answers to several that are alike, this one the first of them."""
        ...


@dataclass
class Outcome(Generic[R]):
    """What became of one's work: a value, or the error that ended it."""

    value: R | None = None
    error: BaseException | None = None


@dataclass(eq=False)
class _Asked:
    """A request that waits for its answer.

    Attributes:
        place: of who asks, among all.
    """

    place: int
    request: Request[Any]
    answered: threading.Event = field(default_factory=threading.Event)
    answer: Any = None
    error: Exception | None = None


@dataclass(frozen=True)
class _Place:
    """Where a thread belongs."""

    company: Company
    number: int


_place: ContextVar[_Place | None] = ContextVar("place", default=None)


def ask(request: Request[R]) -> R:
    """The answer to a request, along with those of others where this thread works in company.

    Raises:
        Exception: whatever computing it raises.
    """
    if (place := _place.get()) is None:
        return request.together([request])[0]
    answer: R = place.company.wait(place.number, request)
    return answer


class Company:
    """Those who work side by side."""

    def __init__(self) -> None:
        self._turn = threading.Lock()  # of working: one at a time, so that no thread waits for Python's own lock
        self._changed = threading.Condition()
        self._asked: list[_Asked] = []
        self._working = 0

    def work(self, works: Sequence[Callable[[], R]]) -> list[Outcome[R]]:
        """Do all of them, each in a thread of its own.

        Returns:
            What became of each, in their order. One that fails leaves the others at work.
        """
        outcomes: list[Outcome[R]] = [Outcome() for _ in works]
        self._working, threads = len(works), torch.get_num_threads()
        for number, work in enumerate(works):
            # Daemons: who is interrupted for good does not wait for them.
            target, name = self._begin, f"work {number}"
            threading.Thread(target=target, args=(number, work, outcomes[number]), name=name, daemon=True).start()
        while asked := self._all_waiting():
            torch.set_num_threads(threads)
            ready = [each for each in asked if not each.request.of_all] or asked
            for group in _groups(ready):
                _answer(group)
            with self._changed:
                self._asked = [each for each in asked if each not in ready]
                self._working += len(ready)
            for each in ready:
                each.answered.set()
        torch.set_num_threads(threads)
        return outcomes

    def _begin(self, number: int, work: Callable[[], R], outcome: Outcome[R]) -> None:
        """One's work, from its beginning to its end."""
        _place.set(_Place(self, number))
        with self._turn:
            torch.set_num_threads(1)
            try:
                outcome.value = work()
            except BaseException as error:
                outcome.error = error
        with self._changed:
            self._working -= 1
            self._changed.notify_all()

    def _all_waiting(self) -> list[_Asked]:
        """What is asked for, in the order of places, once no thread works; nothing where all have ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._working == 0)
            return sorted(self._asked, key=lambda each: each.place)

    def wait(self, number: int, request: Request[R]) -> R:
        """Wait for the answer to a request, while others work."""
        asked = _Asked(number, request)
        self._turn.release()
        try:
            with self._changed:
                self._asked.append(asked)
                self._working -= 1
                self._changed.notify_all()
            asked.answered.wait()
        finally:
            self._turn.acquire()
            torch.set_num_threads(1)  # a part of this setting is the whole process's
        if asked.error is not None:
            raise asked.error
        answer: R = asked.answer
        return answer


def _groups(asked: Sequence[_Asked]) -> list[list[_Asked]]:
    """Those that can be answered together."""
    groups: list[list[_Asked]] = []
    for each in asked:
        for group in groups:
            first = group[0].request
            if type(first) is type(each.request) and first.alike(each.request):
                group.append(each)
                break
        else:
            groups.append([each])
    return groups


def _answer(group: Sequence[_Asked]) -> None:
    """Answer all of a group, or tell them all what came between."""
    try:
        answers = group[0].request.together([each.request for each in group])
        for each, answer in zip(group, answers, strict=True):
            each.answer = answer
    except Exception as error:
        for each in group:
            each.error = error
