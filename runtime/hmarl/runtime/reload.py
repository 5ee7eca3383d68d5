"""Another bundle for an agent that serves: loaded and checked aside, then given to new sessions; running ones stay.

    reloader = Reloader(server.sessions, load_bundle)
    reloader.switch(reloader.prepare(path))

What was served before is freed once its last session has ended, or has been idle for too long.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

from hmarl.runtime.bundle import Bundle
from hmarl.runtime.errors import BundleError, DrainingError
from hmarl.runtime.registry import SessionRegistry
from hmarl.runtime.session import Policy
from hmarl.runtime.settings import PROVIDER
from hmarl.runtime.telemetry import RELOAD_REFUSED, RELOADED
from hmarl.runtime.trial import Trial, TrialProcess

LOGGER = logging.getLogger("hmarl.agent")
# Episodes may ask for the bundle before for so long: teams whose agents switch one after the other stay of one bundle.
HOLD_S = 5.0
_LOOK_EVERY_S = 1.0
_NICENESS = 10
# The interpreter's turns while a bundle is loaded: an act waits for one of them, each time that it wants one itself.
_TURN_S = 0.0002


class Reloader:
    """Loads other bundles for the sessions of an agent, one at a time; may be used from several threads.

    Args:
        sessions: of the agent.
        load: opens and verifies a bundle, as when the process started.
        provider: where policies are computed.
        like: for an agent that was not trained, the interchangeable one by whose graph it acts.
        tell: told how each went, ``RELOADED`` or ``RELOAD_REFUSED``.
    """

    def __init__(
        self,
        sessions: SessionRegistry,
        load: Callable[[Path], Bundle],
        provider: str = PROVIDER,
        like: str | None = None,
        tell: Callable[[str], None] = lambda outcome: None,
    ) -> None:
        self._sessions = sessions
        self._tell = tell
        self._load = load
        self._provider = provider
        self._like = like
        self._one = threading.Lock()

    def prepare(self, path: Path, sha256: str | None = None) -> Policy:
        """Load, check, try, compare and warm up a policy; nothing changes for any session.

        Args:
            path: of the bundle.
            sha256: which bundle it has to be; None takes whatever is there.

        Returns:
            The policy; the current one when that is of this very bundle.

        Raises:
            BundleError: the bundle is damaged, of other agents or spaces, fails its trial, does not compute what the
                trainer recorded, or is another one than ``sha256``.
            DrainingError: the process is stopping.
            HmarlError: what else keeps it from that.
        """
        try:
            return self._prepared(path, sha256)
        except BaseException:
            self._tell(RELOAD_REFUSED)
            raise

    def _prepared(self, path: Path, sha256: str | None) -> Policy:
        from hmarl.runtime.compatible import check_replacement  # noqa: PLC0415 - most agents never need it
        from hmarl.runtime.verify import BATCH_SIZES, hold_to_parity  # noqa: PLC0415 - likewise

        with self._one, _short_turns(), TrialProcess(_NICENESS) as process:
            if self._sessions.draining:
                raise DrainingError("this process is stopping and takes no other bundle")
            bundle = self._load(path)
            if sha256 is not None and bundle.sha256 != sha256:
                raise BundleError(f"bundle {path}: got {bundle.sha256}, expected {sha256}: it was replaced meanwhile")
            current = self._sessions.policy
            agent_id = current.agent.id
            if bundle.sha256 == current.bundle.sha256:
                return current
            check_replacement(current.bundle, bundle, {agent_id: self._like})
            Trial(bundle, {agent_id: self._like}, rows=BATCH_SIZES, parity=True, process=process).result()
            policy = Policy(bundle, agent_id, self._provider, self._like)
            hold_to_parity(policy, self._provider)
            return policy

    def switch(self, policy: Policy) -> bool:
        """Let new sessions get a policy that was prepared; returns whether it is another one than before.

        Raises:
            DrainingError: the process is stopping.
        """
        before = self._sessions.switch(policy)
        if before is policy:
            return False
        self._tell(RELOADED)
        LOGGER.info(
            "%s (%s) is served to new episodes; those that run go on with the bundle before",
            policy.bundle.path,
            policy.bundle.sha256,
        )
        # In a list, which gives it away: the thread itself keeps its arguments until it ends.
        threading.Thread(target=self._retire, args=([before],), name="hmarl-retire", daemon=True).start()
        return True

    def _retire(self, held: list[Policy]) -> None:
        """Hold a policy for a moment, and free its memory once its sessions have gone."""
        sha256, gone = held[0].bundle.sha256, weakref.ref(held[0])
        time.sleep(HOLD_S)
        held.clear()
        while gone() is not None:
            time.sleep(_LOOK_EVERY_S)
            self._sessions.sweep()
        give_back_memory()
        LOGGER.info("bundle %s is no longer held: its last episode has ended", sha256)


@contextlib.contextmanager
def _short_turns() -> Iterator[None]:
    """Let other threads, those that act, have their turns soon; afterwards what was only needed here is given back."""
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(min(_TURN_S, usual_s))
    try:
        yield
    finally:
        sys.setswitchinterval(usual_s)
        give_back_memory()


def give_back_memory() -> None:
    """Return to the operating system what is free; C's allocator (glibc's) would keep it for later."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
