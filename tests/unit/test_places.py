"""Bounded places that peers share: no peer takes them all, and one that does not use its place gives way."""

from __future__ import annotations

from hmarl.runtime.places import UNKNOWN_PEER, Places
from told_clock import Clock


def places(count: int) -> tuple[Places[str], Clock, list[str]]:
    clock, left = Clock(), []
    return Places(count, 5.0, left.append, clock), clock, left


def test_one_peer_may_take_all_places_until_another_asks() -> None:
    some, _, left = places(16)
    taken = [some.take("a", str(number)) for number in range(20)]
    assert [place is not None for place in taken] == [True] * 16 + [False] * 4
    assert some.take("b", "b 0") is not None
    assert some.take("c", "c 0") is not None
    assert left == ["0", "1"]
    assert some.take("d", "d 0") is None  # a keeps its share, seven eighths, as long as it uses it
    assert len(some) == 16


def test_peers_that_cannot_be_told_apart_take_nothing_from_one_another() -> None:
    some, clock, left = places(16)
    assert all(some.take(UNKNOWN_PEER, str(number)) for number in range(16))
    assert some.take(UNKNOWN_PEER, "one more") is None
    clock.now += 5
    assert some.take(UNKNOWN_PEER, "one more") is not None
    assert left == ["0"]


def test_few_places_may_go_to_one_peer() -> None:
    some, _, _ = places(2)
    assert some.take("a", "1")
    assert some.take("a", "2")
    assert some.take("b", "3") is None


def test_the_longest_idle_of_the_peer_that_holds_most_gives_way() -> None:
    some, clock, left = places(4)
    few = some.take("few", "few 1")
    clock.now += 0.2
    many = [some.take("many", f"many {number}") for number in range(3)]
    assert few is not None
    assert many[0] is not None
    clock.now += 4.5
    assert some.take("new", "too early") is None
    clock.now += 1
    some.use(many[0])
    assert some.take("new", "new 1") is not None
    assert left == ["many 1"]  # neither the oldest of all nor the one just used
    assert many[1] is not None
    assert not some.use(many[1])
    assert not some.free(many[1])
    assert some.use(few)
    assert len(some) == 4


def test_what_is_idle_is_swept_and_what_is_free_is_free() -> None:
    some, clock, left = places(4)
    old = some.take("a", "old")
    clock.now += 2
    some.take("a", "young")
    clock.now += 1
    assert some.sweep(3.0) == 1
    assert left == ["old"]
    assert old is not None
    assert not some.free(old)
    assert not some.quiet(2.0)
    clock.now += 2
    assert some.quiet(2.0)
    assert some.sweep(1.0) == 1
    assert len(some) == 0


def test_places_left_behind_give_way_also_where_the_largest_holder_uses_its_own() -> None:
    some, clock, left = places(4)
    active = [some.take("active", f"active {number}") for number in range(2)]
    some.take("gone", "gone 1")
    some.take("gone too", "gone 2")
    clock.now += 6
    for place in active:
        assert place is not None
        some.use(place)
    assert some.take("new", "new 1") is not None
    assert some.take("newer", "new 2") is not None
    assert left == ["gone 1", "gone 2"]
    assert some.take("newest", "new 3") is None


def test_who_holds_many_takes_nothing_from_who_holds_few() -> None:
    some, clock, left = places(4)
    many = [some.take("many", f"many {number}") for number in range(3)]
    some.take("few", "few 1")
    clock.now += 6
    for place in many:
        assert place is not None
        some.use(place)
    assert some.take("many", "many 3") is None
    assert left == []
