"""The open sessions of a process: found by unguessable ids, bounded in number, forgotten when idle."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from hmarl.runtime.errors import DrainingError, SessionLimitError, UnknownSessionError
from hmarl.runtime.session import Policy, PolicySession


class _Entry:
    __slots__ = ("session", "used_at")

    def __init__(self, session: PolicySession, used_at: float) -> None:
        self.session = session
        self.used_at = used_at


class SessionRegistry:
    """Opens, finds and ends sessions of one policy; safe to use from several threads.

    Args:
        policy: whose sessions.
        max_sessions: how many may be open at once.
        idle_limit_s: seconds without a request after which a session may be forgotten.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        policy: Policy,
        max_sessions: int,
        idle_limit_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policy = policy
        self._max_sessions = max_sessions
        self._idle_limit_s = idle_limit_s
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # least recently used first
        self._draining = False

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, session: PolicySession) -> str:
        """Register a session and return its new id.

        Raises:
            DrainingError: the process is stopping.
            SessionLimitError: too many sessions are open and none of them is idle for long enough.
        """
        with self._lock:
            if self._draining:
                raise DrainingError("this process is stopping and starts no more episodes; start it on another one")
            now = self._clock()
            self._forget_idle(now)
            if len(self._entries) >= self._max_sessions:
                raise SessionLimitError(
                    f"{len(self._entries)} sessions are open, the limit is {self._max_sessions} (--max-sessions): "
                    f"end episodes with EndEpisode, or wait until one has been idle for {self._idle_limit_s:g} s"
                )
            session_id = secrets.token_urlsafe(16)
            self._entries[session_id] = _Entry(session, now)
            return session_id

    def get(self, session_id: str) -> PolicySession:
        """The session of an id.

        Raises:
            UnknownSessionError: not open; the message says how to go on.
        """
        with self._lock:
            entry = self._entries.get(session_id)
            if entry is None:
                raise self._unknown(session_id)
            entry.used_at = self._clock()
            self._entries.move_to_end(session_id)
            return entry.session

    def remove(self, session_id: str) -> PolicySession:
        """End a session and return it.

        Raises:
            UnknownSessionError: not open.
        """
        with self._lock:
            entry = self._entries.pop(session_id, None)
            if entry is None:
                raise self._unknown(session_id)
            return entry.session

    def drain(self) -> None:
        """Refuse new sessions from now on; open ones go on."""
        with self._lock:
            self._draining = True

    def quiet(self, for_s: float) -> bool:
        """Whether no session has been used for ``for_s`` seconds (those that nobody ended do not count as work)."""
        with self._lock:
            newest = next(reversed(self._entries.values()), None)
            return newest is None or self._clock() - newest.used_at >= for_s

    def _forget_idle(self, now: float) -> None:
        while self._entries:
            session_id, entry = next(iter(self._entries.items()))
            if now - entry.used_at < self._idle_limit_s:
                return
            del self._entries[session_id]

    def _unknown(self, session_id: str) -> UnknownSessionError:
        return UnknownSessionError(
            f"session '{session_id[:40]}' is not open: it has ended, has been idle for too long, or the process has "
            "restarted; go on with StartEpisode, first_step set to the next step"
        )
