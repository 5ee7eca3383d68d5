"""A supervised process per agent of a team.

    with Fleet(load_bundle(path)) as fleet:
        fleet.endpoints  # {"agent_0": "127.0.0.1:40123", ...}

A member that dies is started again on the same address, after a pause that doubles from crash to crash. One that is
frozen, or says for long that it is not serving, is killed first. Members stop when the supervisor stops, and (on Linux)
also when it is killed. ``reload`` gives all of them another bundle, or none (``hmarl.runtime.team_reload``).
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from hmarl.runtime.bundle import Bundle, load_bundle
from hmarl.runtime.commands._security import as_words
from hmarl.runtime.compatible import check_replacement
from hmarl.runtime.cores import available_cores
from hmarl.runtime.fleet_member import Member
from hmarl.runtime.kept_bundle import KeptBundle
from hmarl.runtime.settings import SecuritySettings, ServerSettings
from hmarl.runtime.team_reload import ReloadError, TeamReload
from hmarl.runtime.telemetry import RELOAD_REFUSED, RELOADED
from hmarl.runtime.unix_sockets import LONGEST_PATH

if TYPE_CHECKING:
    from hmarl.runtime.team_keys import TeamKeys

MORE_THAN_GRACE_S = 10.0  # what members get beyond the time of their running episodes, to stop
_KILL_GRACE_S = 0.5
_POLL_S = 0.02
LOOPBACK = "127.0.0.1"
_ATTENTIVE_S = 10.0


class MemberState(Protocol):
    """How a member is.

    Attributes:
        serving: whether it has said that it serves, and has not ended since.
        restarts: how often it had to be started again, by what had been the matter.
    """

    serving: bool
    restarts: Counter[str]


class FleetState(Protocol):
    """How a fleet is.

    Attributes:
        reloads: attempts to serve another bundle, by how they ended.
    """

    reloads: Counter[str]

    @property
    def members(self) -> Mapping[str, MemberState]:
        """Its members by agent id."""
        ...

    @property
    def bundle_sha256(self) -> str:
        """What they serve."""
        ...


class Fleet:
    """One supervised process per agent; a context manager.

    Args:
        bundle: the verified bundle.
        path: what to call it, and where to look for another one; None: where it was loaded from.
        roster: who is served, see ``hmarl.runtime.roster``; None: all agents that were trained.
        socket_dir: a directory for Unix sockets; None takes free TCP ports of the loopback interface.
        frames_dir: a directory for Unix sockets at which members serve frames as well; None for none.
        pin: keep each member on one processor core, in turn.
        options: more options of hmarl-agent, for all members.
        security: who is let in; None for those who reach it.
        keys: the members' certificates; None for those of ``security``, or none.
        host: on whose free ports they listen, unless ``socket_dir`` is given.
        metrics: where members' metrics are read, ``HOST:PORT`` of the first one; the others take the ports after it. 0
            for free ones.
        grace_s: seconds that members get to stop before they are killed, and for which they may say that they are not
            serving.

    Raises:
        UsageError: members cannot be pinned on this system.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        path: Path | None = None,
        roster: Mapping[str, str | None] | None = None,
        socket_dir: Path | None = None,
        frames_dir: Path | None = None,
        pin: bool = False,
        options: Sequence[str] = (),
        security: SecuritySettings | None = None,
        keys: TeamKeys | None = None,
        host: str = LOOPBACK,
        metrics: tuple[str, int] | None = None,
        grace_s: float = ServerSettings.grace_s + MORE_THAN_GRACE_S,
    ) -> None:
        self._kept = KeptBundle(bundle)
        self._path = (path or bundle.path).absolute()
        self._grace_s = grace_s
        self._keys = keys
        self._security = security or SecuritySettings()
        self._roster = dict(roster or dict.fromkeys(bundle.agent_ids))
        self.reloads = Counter({RELOADED: 0, RELOAD_REFUSED: 0})
        self._reloading = threading.Lock()
        self._reload: TeamReload | None = None
        cores = cycle(available_cores() if pin else [None])
        self._members = [
            Member(
                agent_id,
                like,
                _listen(socket_dir, host, index, agent_id),
                next(cores),
                self._kept,
                [*options, *as_words(self._security_of(agent_id))],
                grace_s,
                _metrics_at(metrics, index),
                None if frames_dir is None else _socket(frames_dir, index, agent_id, "frames"),
            )
            for index, (agent_id, like) in enumerate(self._roster.items())
        ]
        self._stopping = threading.Event()
        self._failed = threading.Event()
        self._failure: Exception | None = None
        self._looked_at = time.monotonic()
        # One thread starts all members: Linux signals a child when the thread that started it ends.
        self._thread = threading.Thread(target=self._supervise, name="fleet", daemon=True)

    def _security_of(self, agent_id: str) -> SecuritySettings:
        return self._security if self._keys is None else self._keys.settings(agent_id, self._security)

    @property
    def endpoints(self) -> dict[str, str]:
        """Addresses by agent id; complete once ``start`` has returned."""
        return {member.agent_id: member.address for member in self._members if member.address is not None}

    @property
    def frames(self) -> dict[str, str]:
        """Where members serve frames beside gRPC, by agent id; empty where they serve but one of them."""
        doors = ((member.agent_id, member.frames, member.address) for member in self._members)
        return {agent_id: frames for agent_id, frames, address in doors if frames is not None and frames != address}

    @property
    def metrics(self) -> dict[str, str]:
        """Where members' metrics are read, by agent id; complete once ``start`` has returned."""
        return {member.agent_id: member.metrics for member in self._members if member.metrics is not None}

    @property
    def members(self) -> Mapping[str, MemberState]:
        """How each member is, by agent id."""
        return {member.agent_id: member for member in self._members}

    @property
    def bundle_sha256(self) -> str:
        """What is served."""
        return self._kept.bundle.sha256

    @property
    def process_ids(self) -> dict[str, int]:
        """Process ids by agent id, of the members that run now."""
        running = ((member.agent_id, member.process) for member in self._members)
        return {agent_id: process.pid for agent_id, process in running if process is not None}

    @property
    def serving(self) -> bool:
        """Whether all members are serving now."""
        return all(member.serving for member in self._members)

    def description(self) -> dict[str, Any]:
        """Which bundle is served, where, and what clients on this machine need to get in; no secret."""
        described = {"bundle": str(self._path), "bundle_sha256": self._kept.bundle.sha256, "agents": self.endpoints}
        if self.frames:
            described["frames"] = self.frames
        security = {} if self._keys is None else self._keys.description()
        if self._security.token_file is not None:
            security["token_file"] = str(self._security.token_file.absolute())
        return {**described, "security": security} if security else described

    @property
    def attentive(self) -> bool:
        """Whether the supervising thread has looked at all members lately."""
        return time.monotonic() - self._looked_at < _ATTENTIVE_S

    def start(self, interrupted: threading.Event | None = None) -> None:
        """Start all members and wait until they are serving, or ``interrupted`` is set.

        Raises:
            FleetError: a member cannot be started; the others have been stopped.
            UsageError: because of the options.
            BundleError: because of the bundle.
        """
        self._thread.start()
        while not self.serving and not (interrupted is not None and interrupted.is_set()):
            if self._failed.wait(_POLL_S):
                break
        self.check()

    def check(self) -> None:
        """Nothing when all is well.

        Raises:
            FleetError: a member keeps failing; the others have been stopped.
        """
        if self._failure is not None:
            raise self._failure

    def reload(
        self, path: Path | None, say: Callable[[str], None], load: Callable[[Path], Bundle] = load_bundle
    ) -> None:
        """Let all members serve another bundle, or none; waits for it. Running episodes go on with the one before.

        Args:
            path: of the bundle; None for the path of the one that is served, where there may be another by now.
            say: told how it goes.
            load: opens and verifies it.

        Raises:
            BundleError: it is damaged, does not fit, or an agent cannot serve it; nothing has changed.
            ReloadError: another reload is running, or an agent has ended meanwhile; nothing has changed.
        """
        if not self._reloading.acquire(blocking=False):
            raise ReloadError("another reload is running: try again once it has ended")
        outcome = RELOAD_REFUSED
        try:
            path = (path or self._path).absolute()
            bundle = load(resolved(path))
            if bundle.sha256 == self._kept.bundle.sha256:
                say(f"{path} is served already ({bundle.sha256})")
            else:
                check_replacement(self._kept.bundle, bundle, self._roster)
                self._switch(KeptBundle(bundle), say)
            self._path = path
            outcome = RELOADED
        finally:
            self.reloads[outcome] += 1
            self._reloading.release()

    def _switch(self, kept: KeptBundle, say: Callable[[str], None]) -> None:
        """Have the supervising thread go through a reload."""
        self._reload = reload = TeamReload(self._members, kept, say)
        while not reload.finished.wait(_POLL_S):
            if not self._thread.is_alive():
                reload.fail(ReloadError("the fleet is stopping and takes no other bundle"))
        self._reload = None
        if reload.failure is not None:
            kept.close()
            raise reload.failure
        before, self._kept = self._kept, kept
        before.close()

    def stop(self) -> None:
        """Stop all members and wait for them; a second call does nothing."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def kill(self) -> None:
        """End all members now, for a supervisor that has to go at once."""
        self._stopping.set()
        processes = [process for member in self._members if (process := member.process) is not None]
        for process in processes:
            process.terminate()  # the second time it is asked, a process ends at once, and takes away its socket
        deadline = time.monotonic() + _KILL_GRACE_S
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()

    def __enter__(self) -> Fleet:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _supervise(self) -> None:
        try:
            while not self._stopping.wait(_POLL_S):
                for member in self._members:
                    member.tend(time.monotonic())
                if self._keys is not None:
                    self._keys.tend()
                if (reload := self._reload) is not None and not reload.finished.is_set():
                    reload.tend()
                self._looked_at = time.monotonic()
        except Exception as error:
            self._failure = error
        finally:
            for member in self._members:
                member.ask_to_stop()
            deadline = time.monotonic() + self._grace_s
            for member in self._members:
                member.stop(deadline)
            if self._failure is not None:
                self._failed.set()


def _metrics_at(metrics: tuple[str, int] | None, index: int) -> str | None:
    """Where a member's metrics are to be read."""
    if metrics is None:
        return None
    host, port = metrics
    return f"{host}:{port + index if port else 0}"


def _listen(socket_dir: Path | None, host: str, index: int, agent_id: str) -> str:
    """Where a member listens first: a free port, or a socket named after the agent."""
    if socket_dir is None:
        return f"{host}:0"
    return f"unix:{_socket(socket_dir, index, agent_id, 'sock')}"


def _socket(folder: Path, index: int, agent_id: str, suffix: str) -> str:
    """The path of a socket named after an agent."""
    begin = f"{folder.absolute()}/"
    room = max(0, LONGEST_PATH - len(os.fsencode(begin)) - len(f"{index}-.{suffix}"))
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", agent_id)[: min(32, room)]
    return f"{begin}{index}-{name}.{suffix}"


def resolved(path: Path) -> Path:
    """Where a bundle lies now: a link that is turned to another one does not concern those that serve this one."""
    try:
        found = path.resolve()
    except (OSError, RuntimeError):  # RuntimeError: a loop of links
        return path  # opening it says what is wrong
    return path if found == path.absolute() else found
