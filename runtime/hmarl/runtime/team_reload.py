"""Another bundle for a whole team: every member prepares it, and only when all are ready do all switch.

    wait      for members that are just being started again
    prepare   one member after the other loads, checks and warms up; the first that cannot, and all go on as before
    decide    from here on the team is of the new bundle: a member that dies comes up with it
    switch    all members at once; one that does not answer is killed, and comes up with it

A script that the supervising thread of the fleet goes through bit by bit, between looking after its members.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

from hmarl.runtime.control import Channel
from hmarl.runtime.errors import BundleError, HmarlError
from hmarl.runtime.kept_bundle import KeptBundle

READY_LIMIT_S = 30.0  # for members that are just being started again
PREPARE_LIMIT_S = 150.0  # a trial may take two minutes on a busy machine
SWITCH_LIMIT_S = 3.0
RESTART_LIMIT_S = 60.0
Waiting = Generator[None, None, Any]


class ReloadError(HmarlError):
    """A team could not be given another bundle; all its agents go on with the one that they had."""


class Member(Protocol):
    """What a reload needs of a member of a fleet."""

    agent_id: str
    serving: bool
    process: subprocess.Popen[bytes] | None
    control: Channel | None

    def adopt(self, kept: KeptBundle) -> None:
        """Start with this bundle from now on."""

    def kill(self, reason: str) -> None:
        """End the process, which is started again."""


class TeamReload:
    """One reload of a fleet.

    Args:
        members: all of them.
        kept: the bundle, verified, and of the same agents and spaces as the one that is served.
        say: told how it goes.

    Attributes:
        finished: set in the end.
        failure: why nothing has changed; None when all have switched.
    """

    def __init__(self, members: Sequence[Member], kept: KeptBundle, say: Callable[[str], None]) -> None:
        self.finished = threading.Event()
        self.failure: HmarlError | None = None
        self._members = members
        self._kept = kept
        self._say = say
        self._name = secrets.token_hex(8)  # in orders and replies: late ones of an earlier reload are told apart
        self._asked: list[tuple[Member, subprocess.Popen[bytes]]] = []
        self._script = self._run()

    def tend(self) -> None:
        """Go on as far as there is no need to wait."""
        try:
            next(self._script)
        except StopIteration:
            self.finished.set()
        except HmarlError as error:
            self.fail(error)
        except Exception as error:  # whatever a message holds: looking after the members goes on
            self.fail(ReloadError(f"{type(error).__name__}: {error}"))

    def fail(self, error: HmarlError) -> None:
        """Give up: those that have prepared the bundle forget it."""
        for member, process in self._asked:
            if member.process is process and member.control is not None:
                with contextlib.suppress(OSError):
                    member.control.send({"do": "forget", "reload": self._name})
        self.failure = error
        self.finished.set()

    def _run(self) -> Waiting:
        deadline = time.monotonic() + READY_LIMIT_S
        for member in self._members:
            while member.process is None or not member.serving:  # it is being started again
                if time.monotonic() > deadline:
                    raise ReloadError(f"agent '{member.agent_id}' does not serve, {READY_LIMIT_S:g} s on: try again")
                yield
            self._asked.append((member, member.process))
        for member, process in self._asked:
            begun = time.monotonic()
            yield from self._prepare(member, process)
            self._say(f"{member.agent_id} is ready, after {time.monotonic() - begun:.1f} s")
        for member, process in self._asked:
            self._check_there(member, process)
        for member in self._members:
            member.adopt(self._kept)
        for member, _ in self._asked:
            assert member.control is not None, "it was there a moment ago"
            with contextlib.suppress(OSError):  # it has just died, and comes up with the new bundle
                member.control.send({"do": "switch", "reload": self._name})
        for member, process in self._asked:
            yield from self._switched(member, process)

    def _prepare(self, member: Member, process: subprocess.Popen[bytes]) -> Waiting:
        wanted = self._kept.bundle
        bundle = {"path": str(wanted.path.absolute()), "sha256": wanted.sha256}
        self._check_there(member, process)
        assert member.control is not None
        try:
            member.control.send({"do": "prepare", "reload": self._name, **bundle})
            reply = yield from self._reply(member, process, PREPARE_LIMIT_S)
        except TimeoutError:
            raise ReloadError(
                f"agent '{member.agent_id}' has not loaded the bundle within {PREPARE_LIMIT_S:g} s"
            ) from None
        except OSError:
            reply = None
        if reply is None:
            raise self._ended(member)
        if "problem" in reply:
            kind = BundleError if reply.get("exit_code") == BundleError.exit_code else ReloadError
            raise kind(f"agent '{member.agent_id}': {reply['problem']}")

    def _switched(self, member: Member, process: subprocess.Popen[bytes]) -> Waiting:
        """Wait until a member has switched, or has been started again."""
        reply = None
        with contextlib.suppress(TimeoutError):
            reply = yield from self._reply(member, process, SWITCH_LIMIT_S)
        if reply is not None and "problem" not in reply:
            return
        if member.process is process:
            member.kill("does not switch to the new bundle")
        self._say(f"{member.agent_id} has ended, and is started again with the new bundle")
        deadline = time.monotonic() + RESTART_LIMIT_S
        while (member.process is process or not member.serving) and time.monotonic() < deadline:
            yield

    def _reply(self, member: Member, process: subprocess.Popen[bytes], limit_s: float) -> Waiting:
        """What a member answers; None when its process has ended.

        Raises:
            TimeoutError: nothing has come in time.
        """
        deadline = time.monotonic() + limit_s
        while member.process is process and member.control is not None:
            try:
                reply = member.control.receive()
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError from None
                yield
            else:
                if reply is None or reply.get("reload") == self._name:
                    return reply
        return None

    def _check_there(self, member: Member, process: subprocess.Popen[bytes]) -> None:
        if member.process is not process or process.poll() is not None:
            raise self._ended(member)

    def _ended(self, member: Member) -> ReloadError:
        return ReloadError(f"agent '{member.agent_id}' has ended meanwhile: try again")
