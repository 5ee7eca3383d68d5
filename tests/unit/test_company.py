"""Threads that get what they ask for at the same time from one computation."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch

from hmarl.trainer.together.company import Company, ask

Log = list[tuple[str, list[int]]]


@dataclass
class Square:
    """Asks for n², along with those of its kind."""

    n: int
    kind: str = "square"
    of_all: bool = False
    log: Log = field(default_factory=list)

    def alike(self, other: Square) -> bool:
        return self.kind == other.kind

    def together(self, requests: Sequence[Square]) -> list[int]:
        self.log.append((self.kind, [each.n for each in requests]))
        if any(each.n < 0 for each in requests):
            raise ValueError("negative")
        return [each.n**2 for each in requests]


def asking(*squares: Square) -> Callable[[], list[int]]:
    """A work that asks for these, one after the other."""
    return lambda: [ask(square) for square in squares]


def test_who_is_in_no_company_is_answered_at_once() -> None:
    log: Log = []
    assert ask(Square(3, log=log)) == 9
    assert log == [("square", [3])]


def test_those_who_ask_at_the_same_time_are_answered_together_in_their_order() -> None:
    log: Log = []
    works = [asking(*(Square(10 * member + turn, log=log) for turn in range(3))) for member in range(4)]
    outcomes = Company().work(works)
    assert [each.value for each in outcomes] == [
        [(10 * member + turn) ** 2 for turn in range(3)] for member in range(4)
    ]
    assert log == [("square", [turn, 10 + turn, 20 + turn, 30 + turn]) for turn in range(3)]


def test_only_those_of_a_kind_are_answered_together() -> None:
    log: Log = []
    works = [asking(Square(member, kind="odd" if member % 2 else "even", log=log)) for member in range(4)]
    assert [each.value for each in Company().work(works)] == [[0], [1], [4], [9]]
    assert log == [("even", [0, 2]), ("odd", [1, 3])]


def test_what_is_of_all_waits_for_all_who_are_still_at_work() -> None:
    log: Log = []
    for_all = [Square(member, kind="all", of_all=True, log=log) for member in range(3)]
    works = [
        asking(for_all[0]),
        asking(Square(7, log=log), Square(8, log=log), for_all[1]),
        asking(),  # has ended by then
    ]
    assert [each.value for each in Company().work(works)] == [[0], [49, 64, 1], []]
    assert log == [("square", [7]), ("square", [8]), ("all", [0, 1])]


def test_one_that_fails_leaves_the_others_at_work() -> None:
    def fails() -> list[int]:
        raise RuntimeError("mine")

    log: Log = []
    first, second, third = Company().work([asking(Square(2, log=log), Square(3, log=log)), fails, asking(Square(4))])
    assert (first.value, first.error) == ([4, 9], None)
    assert second.value is None
    assert str(second.error) == "mine"
    assert third.value == [16]


def test_an_error_is_raised_where_it_was_asked_for() -> None:
    def careful() -> list[int]:
        with pytest.raises(ValueError, match="negative"):
            ask(Square(-1))
        return [ask(Square(5))]

    outcomes = Company().work([careful, asking(Square(2), Square(6))])
    assert outcomes[0].value == [25]
    assert isinstance(outcomes[1].error, ValueError), "whoever asked along with it is told as well"


@dataclass
class Threads:
    """Asks how many threads PyTorch computes with where it is answered."""

    of_all: bool = False

    def alike(self, other: Threads) -> bool:
        return True

    def together(self, requests: Sequence[Threads]) -> list[int]:
        return [torch.get_num_threads()] * len(requests)


def test_who_answers_alone_computes_with_several_threads() -> None:
    def work() -> list[int]:
        return [torch.get_num_threads(), ask(Threads()), torch.get_num_threads()]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        outcomes = Company().work([work, work])
        assert [each.value for each in outcomes] == [[1, 3, 1]] * 2
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_one_works_at_a_time() -> None:
    busy, most = 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal busy, most
        for turn in range(20):
            with lock:
                busy += 1
                most = max(most, busy)
            sum(range(1000))
            with lock:
                busy -= 1
            ask(Square(turn))

    outcomes = Company().work([work] * 3)
    assert [each.error for each in outcomes] == [None] * 3
    assert most == 1
