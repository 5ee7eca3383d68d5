"""The open sessions of a process: found by unguessable ids, bounded in number and by peer, forgotten when idle.

New sessions get the current policy. After ``switch`` the one before is held while a session of it is open, and for a
moment in any case; until then episodes may still ask for it by its bundle.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable

from hmarl.runtime import hashing
from hmarl.runtime.errors import (
    BundleNotHeldError,
    DrainingError,
    QuotaError,
    SessionLimitError,
    UnknownSessionError,
)
from hmarl.runtime.observing import FORGOTTEN, REPLACED
from hmarl.runtime.places import UNKNOWN_PEER, Place, Places
from hmarl.runtime.session import Policy, PolicySession

# When all are taken, a session that has been idle for so long gives way to another peer's.
GIVES_WAY_AFTER_S = 5.0


class _Entry:
    __slots__ = ("owner", "place", "session", "session_id")

    def __init__(self, session_id: str, session: PolicySession, owner: str | None) -> None:
        self.session_id = session_id
        self.session = session
        self.owner = owner
        self.place: Place[_Entry] | None = None


class SessionRegistry:
    """Opens, finds and ends sessions of one agent's policies; safe to use from several threads.

    Args:
        policy: whose sessions, at first.
        max_sessions: how many may be open at once.
        idle_limit_s: seconds without a request after which a session may be forgotten.
        clock: monotonic seconds.
        per_peer: how many of them one peer may have; 0 for any number.

    Attributes:
        policy: whose sessions are opened now.
        own_id: of a session in which the process itself acts, to see whether acts get through.
    """

    def __init__(
        self,
        policy: Policy,
        max_sessions: int,
        idle_limit_s: float,
        clock: Callable[[], float] = time.monotonic,
        per_peer: int = 0,
    ) -> None:
        self.policy = policy
        self._held: weakref.WeakValueDictionary[str, Policy] = weakref.WeakValueDictionary()  # by their bundles
        self._held[policy.bundle.sha256] = policy
        self._idle_limit_s = idle_limit_s
        self._entries: dict[str, _Entry] = {}
        self._gives_way_after_s = min(GIVES_WAY_AFTER_S, idle_limit_s)
        self._places: Places[_Entry] = Places(max_sessions, self._gives_way_after_s, self._forget, clock, per_peer)
        self._draining = False
        self.own_id = hashing.token_urlsafe(16)
        self._own: PolicySession | None = None
        self._own_lock = threading.Lock()
        self._lock = threading.Lock()  # an id may be taken again while the one that had it is forgotten

    def __len__(self) -> int:
        return len(self._places)

    def add(
        self,
        session: PolicySession,
        peer: str = UNKNOWN_PEER,
        owner: str | None = None,
        session_id: str | None = None,
    ) -> str:
        """Register a session and return its id.

        Args:
            session: the session.
            peer: who asks; any name that tells one from another.
            owner: who alone may act in it and end it; None for whoever knows its id.
            session_id: that no other client can guess; a session that has it ends. None takes a new one.

        Raises:
            DrainingError: the process is stopping.
            QuotaError: the peer has as many as one may have.
            SessionLimitError: too many sessions are open and none of them is idle for long enough.
        """
        if self._draining:
            raise DrainingError("this process is stopping and starts no more episodes; start it on another one")
        self.sweep()
        entry = _Entry(session_id or hashing.token_urlsafe(16), session, owner)
        with self._lock:
            replaced = self._entries.get(entry.session_id)
            self._entries[entry.session_id] = entry  # before it has a place, which may be taken away at once
        place = None if replaced is None else _parted(replaced)
        if replaced is not None and place is not None:
            self._places.free(place)
            replaced.session.end(REPLACED)
        session.named(entry.session_id)
        entry.place = self._places.take(peer, entry)
        if entry.place is None:
            self._forget(entry)
            if self._places.has_most(peer):
                raise QuotaError(
                    f"sessions: got more than {self._places.per_peer}, which is one client's limit "
                    "(--client-sessions): end episodes with EndEpisode, or wait until one has been idle for "
                    f"{self._gives_way_after_s:g} s"
                )
            raise SessionLimitError(
                f"{len(self)} sessions are open, the limit is {self._places.count} (--max-sessions): "
                f"end episodes with EndEpisode, or wait until one has been idle for {self._gives_way_after_s:g} s"
            )
        return entry.session_id

    def own(self) -> PolicySession:
        """The process's own session, started anew; for ``own_id``, takes no place and is never forgotten."""
        with self._own_lock:
            if self._own is None or self._own.policy is not self.policy:
                self._own = PolicySession(self.policy)  # which concerns no observer
            own = self._own
        own.reset(0)
        return own

    def get(self, session_id: str, owner: str | None = None) -> PolicySession:
        """The session of an id.

        Raises:
            UnknownSessionError: not open, or another's, which is told to no one; the message says how to go on.
        """
        entry = self._entries.get(session_id)
        place = None if entry is None else entry.place
        if entry is None or entry.owner != owner or place is None or not self._places.use(place):
            raise _unknown(session_id)
        return entry.session

    def remove(self, session_id: str, owner: str | None = None) -> PolicySession:
        """End a session and return it.

        Raises:
            UnknownSessionError: not open, or another's.
        """
        entry = self._entries.get(session_id)
        if entry is None or entry.owner != owner:
            raise _unknown(session_id)
        entry = self._entries.pop(session_id, None)  # another call may have been quicker
        place = None if entry is None else _parted(entry)
        if entry is None or place is None or not self._places.free(place):
            raise _unknown(session_id)
        entry.session.end()
        return entry.session

    def policy_of(self, bundle_sha256: str) -> Policy:
        """The policy of a bundle; of the current one where none is named.

        Raises:
            BundleNotHeldError: it is not held, or not any longer.
        """
        current = self.policy
        if bundle_sha256 in ("", current.bundle.sha256):
            return current
        held = self._held.get(bundle_sha256)
        if held is None:
            raise BundleNotHeldError(
                f"bundle_sha256: got {bundle_sha256[:64]}, expected {current.bundle.sha256}, which is served now: take "
                "that one, for all agents of the team"
            )
        return held

    def switch(self, policy: Policy) -> Policy:
        """Let new sessions get another policy from now on, which has the same observer.

        Returns:
            The policy before, which open sessions keep.

        Raises:
            DrainingError: the process is stopping.
        """
        if self._draining:
            raise DrainingError("this process is stopping and takes no other bundle")
        policy.observer = self.policy.observer
        before, self.policy = self.policy, policy
        self._held[policy.bundle.sha256] = policy
        return before

    def sweep(self) -> None:
        """Forget the sessions that have been idle for too long."""
        self._places.sweep(self._idle_limit_s)

    @property
    def draining(self) -> bool:
        """Whether new sessions are refused."""
        return self._draining

    def drain(self) -> None:
        """Refuse new sessions from now on; open ones go on."""
        self._draining = True

    def quiet(self, for_s: float) -> bool:
        """Whether no session has been used for ``for_s`` seconds (those that were left open do not count as work)."""
        return self._places.quiet(for_s)

    def _forget(self, entry: _Entry) -> None:
        with self._lock:
            if self._entries.get(entry.session_id) is entry:
                del self._entries[entry.session_id]
        _parted(entry)
        entry.session.end(FORGOTTEN)


def _parted(entry: _Entry) -> Place[_Entry] | None:
    """An entry's place, which it no longer refers to: its memory is free at once, and not when cycles are collected."""
    place, entry.place = entry.place, None
    return place


def _unknown(session_id: str) -> UnknownSessionError:
    return UnknownSessionError(
        f"session '{session_id[:40]}' is not open: it has ended, has been idle for too long, or the process has "
        "restarted; go on with StartEpisode, first_step set to the next step"
    )
