"""A bounded number of places that peers share: sessions, streams, calls that wait for their body.

A peer is any string that tells one from another; this module knows no transport. Peers that cannot be told apart have
the same name.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from itertools import takewhile
from typing import Generic, TypeVar

Held = TypeVar("Held")
UNKNOWN_PEER = ""
_LENT_SHARE = 8  # of one peer's places, one in so many of all is only lent


class Place(Generic[Held]):
    """One place that is taken.

    Attributes:
        peer: who holds it.
        held: what it is held for.
        used_at: when it was used last, in seconds of the clock.
    """

    __slots__ = ("held", "peer", "used_at")

    def __init__(self, peer: str, held: Held, used_at: float) -> None:
        self.peer = peer
        self.held = held
        self.used_at = used_at


class Places(Generic[Held]):
    """Gives out places, and takes them back from who no longer uses them; safe to use from several threads.

    When no place is left and a peer holds more than its share, seven eighths, the one that it has not used for longest
    gives way to another peer at once. Otherwise it is one that has been idle for a while, held by a peer that holds no
    less than the one that asks: of those that hold most, the one that has been idle for longest.

    Args:
        count: how many there are.
        gives_way_after_s: seconds without use after which a place may be taken away when all are taken.
        leave: told what a place was held for when it is taken away; called without any lock.
        clock: monotonic seconds.
        per_peer: how many one peer may hold, whatever is free; 0 for any number. One that holds as many gives up that
            which it has not used for longest, if it has been idle for a while.

    Attributes:
        count: how many there are.
        per_peer: how many one peer may hold; 0 for any number.
        share: how many one peer may keep when others ask.
    """

    def __init__(
        self,
        count: int,
        gives_way_after_s: float,
        leave: Callable[[Held], None],
        clock: Callable[[], float] = time.monotonic,
        per_peer: int = 0,
    ) -> None:
        self.count = count
        self.per_peer = per_peer
        self.share = count - count // _LENT_SHARE
        self._gives_way_after_s = gives_way_after_s
        self._leave = leave
        self._clock = clock
        self._lock = threading.Lock()
        self._taken: OrderedDict[Place[Held], None] = OrderedDict()  # least recently used first
        self._by_peer: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._taken)

    def take(self, peer: str, held: Held) -> Place[Held] | None:
        """A place for a peer, or None when none is left."""
        victim = None
        with self._lock:
            now = self._clock()
            full, has_most = len(self._taken) >= self.count, self._has_most(peer)
            if full or has_most:
                victim = self._longest_idle_of(peer, now) if has_most else self._who_gives_way(peer, now)
                if victim is None:
                    return None
                self._remove(victim)
            place = Place(peer, held, now)
            self._taken[place] = None
            self._by_peer[peer] += 1
        if victim is not None:
            self._leave(victim.held)
        return place

    def has_most(self, peer: str) -> bool:
        """Whether a peer holds as many as one may."""
        with self._lock:
            return self._has_most(peer)

    def use(self, place: Place[Held]) -> bool:
        """Note that a place is used now; False when it has been taken away."""
        with self._lock:
            if place not in self._taken:
                return False
            place.used_at = self._clock()
            self._taken.move_to_end(place)
            return True

    def free(self, place: Place[Held]) -> bool:
        """Give a place back; False when it has been taken away before."""
        with self._lock:
            if place not in self._taken:
                return False
            self._remove(place)
            return True

    def sweep(self, idle_s: float) -> int:
        """Take away all places that have not been used for ``idle_s`` seconds; returns how many."""
        gone = []
        with self._lock:
            before = self._clock() - idle_s
            while self._taken:
                place = next(iter(self._taken))
                if place.used_at > before:
                    break
                self._remove(place)
                gone.append(place)
        for place in gone:
            self._leave(place.held)
        return len(gone)

    def quiet(self, for_s: float) -> bool:
        """Whether no place has been used for ``for_s`` seconds."""
        with self._lock:
            newest = next(reversed(self._taken), None)
            return newest is None or self._clock() - newest.used_at >= for_s

    def _has_most(self, peer: str) -> bool:
        return bool(self.per_peer) and self._by_peer[peer] >= self.per_peer

    def _longest_idle_of(self, peer: str, now: float) -> Place[Held] | None:
        """The place that a peer gives up for another one of its own."""
        before = now - self._gives_way_after_s
        return next((each for each in self._taken if each.peer == peer and each.used_at <= before), None)

    def _who_gives_way(self, peer: str, now: float) -> Place[Held] | None:
        """The place that is given up for ``peer`` while all are taken, if any is."""
        most = max(self._by_peer, key=self._by_peer.__getitem__)
        if peer != most and self._by_peer[most] > self.share:
            return next(place for place in self._taken if place.peer == most)
        # Not only of the one that holds most, which may use all of its places while others were left behind.
        before, own = now - self._gives_way_after_s, self._by_peer[peer]
        idle = takewhile(lambda place: place.used_at <= before, self._taken)
        free = (place for place in idle if self._by_peer[place.peer] >= own)
        return max(free, key=lambda place: self._by_peer[place.peer], default=None)

    def _remove(self, place: Place[Held]) -> None:
        del self._taken[place]
        self._by_peer[place.peer] -= 1
        if not self._by_peer[place.peer]:
            del self._by_peer[place.peer]
