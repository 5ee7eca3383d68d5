"""A supervised process per agent of a team.

    with Fleet(load_bundle(path)) as fleet:
        fleet.endpoints  # {"agent_0": "127.0.0.1:40123", ...}

A member that dies is started again on the same address, after a pause that doubles from crash to crash. One that is
frozen, or says for long that it is not serving, is killed first. Members stop when the supervisor stops, and (on Linux)
also when it is killed. ``reload`` gives all of them another bundle, or none (``hmarl.runtime.team_reload``).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from hmarl.agent.v1.framing import SCHEME
from hmarl.runtime.bundle import Bundle, load_bundle
from hmarl.runtime.children import python
from hmarl.runtime.commands._security import SECRET_VARIABLE, as_words, handed_over
from hmarl.runtime.commands.agent import PARENT_VARIABLE, SHA256_VARIABLE
from hmarl.runtime.compatible import check_replacement
from hmarl.runtime.control import CONTROL_VARIABLE, Channel
from hmarl.runtime.cores import available_cores
from hmarl.runtime.errors import BundleError, HmarlError, UsageError, one_line
from hmarl.runtime.health_probe import CHECK_EVERY_S, HealthProbe
from hmarl.runtime.kept_bundle import KeptBundle
from hmarl.runtime.plain_json import read_json
from hmarl.runtime.settings import SecuritySettings, ServerSettings
from hmarl.runtime.team_reload import STUCK, ReloadError, TeamReload
from hmarl.runtime.telemetry import RELOAD_REFUSED, RELOADED
from hmarl.runtime.unix_sockets import LONGEST_PATH

if TYPE_CHECKING:
    from hmarl.runtime.team_keys import TeamKeys

LOGGER = logging.getLogger("hmarl.fleet")
START_LIMIT_S = 60.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 10.0
STABLE_S = 10.0  # a member that has served for this long starts with a clean record
MAX_FAILURES = 6
FROZEN_AFTER = 5  # questions about its health in a row that a member does not answer
MORE_THAN_GRACE_S = 10.0  # what members get beyond the time of their running episodes, to stop
_KILL_GRACE_S = 0.5
KILL_LIMIT_S = 5.0  # what the kernel gets to end a process that was killed
_POLL_S = 0.02
LOOPBACK = "127.0.0.1"
_ATTENTIVE_S = 10.0
# Exit codes of wrong options and of a bad bundle. Where a member has never served, starting it again cannot help, and
# the fleet ends in the same way. What has served was in order: a file is being replaced, or was tampered with.
_HOPELESS: dict[int, type[HmarlError]] = {kind.exit_code: kind for kind in (UsageError, BundleError)}


# Why a member was started again.
EXITED, FROZEN, UNWELL, SLOW = "exited", "frozen", "unwell", "slow"
RESTARTS = (EXITED, FROZEN, UNWELL, SLOW, STUCK)


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


class FleetError(HmarlError):
    """An agent cannot be kept running."""


class _Member:
    """One agent's process. Used by the supervising thread only, but for the attributes that ``Fleet`` reads."""

    def __init__(
        self,
        agent_id: str,
        like: str | None,
        listen: str,
        core: int | None,
        kept: KeptBundle,
        options: Sequence[str],
        unwell_limit_s: float,
        metrics: str | None = None,
        frames: str | None = None,
    ) -> None:
        self.agent_id = agent_id
        self.address: str | None = None
        self.metrics = metrics  # where they are read; the port is 0 until it is known
        self.frames = None if frames is None else f"{SCHEME}{frames}"
        self.restarts = Counter(dict.fromkeys(RESTARTS, 0))
        self.serving = False
        self.process: subprocess.Popen[bytes] | None = None
        self.control: Channel | None = None
        self._listen = listen
        own = {"agent": agent_id, "like": like, "core": core, "frames": frames}
        self._options = [*options, *(f"--{name}={value}" for name, value in own.items() if value is not None)]
        self._kept = kept
        self._unwell_limit_s = unwell_limit_s
        self._probe: HealthProbe | None = None
        self._secret = secrets.token_urlsafe(32)
        self._killed = False
        self._ended = EXITED  # why it ends, unless something else is known
        self._failures = 0
        self._not_started = 0  # attempts in a row that broke off before there was a process
        self._started_at = 0.0
        self._start_at = 0.0
        self._output = b""

    def tend(self, now: float) -> None:
        """Start, watch or restart the process.

        Raises:
            FleetError: it keeps failing.
            UsageError: it cannot be started with these options.
            BundleError: it cannot be started with this bundle.
        """
        if self.process is None:
            if now >= self._start_at:
                try:
                    self._start(now)
                except OSError as error:
                    self._not_started_for(error, now)
            return
        code = self.process.poll()
        if code is not None:
            self._crashed(code, now)
        elif self._killed:
            return
        elif self._probe is not None:
            self._check_health(self._probe, now)
        else:
            self._read_address()
            if not self.serving and now - self._started_at > START_LIMIT_S:
                self.kill(f"is not serving after {START_LIMIT_S:g} s", SLOW)

    def adopt(self, kept: KeptBundle) -> None:
        """Start with this bundle from now on."""
        self._kept = kept

    def ask_to_stop(self) -> None:
        """Ask the process to stop, also one that is stopped like a job in a terminal."""
        if self.process is not None:
            self.process.terminate()
            self.process.send_signal(signal.SIGCONT)

    def stop(self, deadline: float) -> None:
        """Wait for a process that was asked to stop; kill it at the deadline."""
        if self.process is None:
            return
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill("does not stop", UNWELL)
            try:
                self.process.wait(KILL_LIMIT_S)
            except subprocess.TimeoutExpired:
                LOGGER.error("agent %s cannot be killed, leaving process %d behind", self.agent_id, self.process.pid)
        self._close()

    def _check_health(self, probe: HealthProbe, now: float) -> None:
        probe.tend(now)
        if probe.unanswered >= FROZEN_AFTER:
            self.kill(f"has not answered {probe.unanswered} questions about its health in a row", FROZEN)
        elif probe.unwell * CHECK_EVERY_S >= self._unwell_limit_s:  # longer than it takes to drain
            self.kill(f"has said {probe.unwell} times in a row that it is not serving", UNWELL)

    def kill(self, reason: str, kind: str) -> None:
        """End the process now; it is started again unless the fleet stops.

        Args:
            reason: for the log.
            kind: one of ``RESTARTS``, to be counted.
        """
        assert self.process is not None
        LOGGER.error("agent %s %s, killing it", self.agent_id, reason)
        self._killed, self._ended = True, kind
        self.process.kill()

    def _start(self, now: float) -> None:
        # After a crash the address stays, so that clients that know it find the agent again.
        listen = self.address or self._listen
        environment = {
            **os.environ,
            PARENT_VARIABLE: str(os.getpid()),
            SHA256_VARIABLE: self._kept.bundle.sha256,  # it may have been replaced since
        }
        environment.pop("NOTIFY_SOCKET", None)  # the service is the fleet, not a member
        environment.pop("HMARL_LIKE", None)  # the roster says who is like whom
        environment.pop("HMARL_CORE", None)  # and the fleet, who runs where
        environment.pop("HMARL_FRAMES", None)  # which door is whose
        environment.pop("HMARL_METRICS", None)  # and where each one's metrics are read
        metrics = [] if self.metrics is None else ["--metrics", self.metrics]
        command = python("-m", "hmarl.runtime.commands.agent", str(self._kept.path), *self._options)
        with contextlib.ExitStack() as kept, contextlib.ExitStack() as handed:
            ours, theirs = socket.socketpair()
            kept.enter_context(ours)
            handed.enter_context(theirs)
            environment[CONTROL_VARIABLE] = str(theirs.fileno())
            secret = handed_over(self._secret)  # it knows its supervisor, whoever it asks for a certificate or a token
            handed.callback(os.close, secret)
            environment[SECRET_VARIABLE] = str(secret)
            self.process = subprocess.Popen(
                [*command, "--listen", listen, "--json", *metrics],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C in a terminal reaches the supervisor alone, which stops the members
                env=environment,
                pass_fds=[theirs.fileno(), secret],
            )
            kept.pop_all()
        ours.setblocking(False)
        self.control = Channel(ours)
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self._started_at, self._output, self.serving, self._killed = now, b"", False, False
        self._not_started = 0

    def _not_started_for(self, error: OSError, now: float) -> None:
        """Try again later: once it has served, what is lacking is the machine's, which may have it again."""
        self._not_started += 1
        problem = f"cannot be started: {error.strerror}"
        if self._not_started >= MAX_FAILURES and self.address is None:
            raise FleetError(f"agent '{self.agent_id}' {problem}; tried {self._not_started} times") from error
        pause = _pause(self._not_started)
        LOGGER.error("agent %s %s, trying again in %g s", self.agent_id, problem, pause)
        self._start_at = now + pause

    def _read_address(self) -> None:
        """Take in the line that a member prints once it is serving."""
        assert self.process is not None and self.process.stdout is not None  # noqa: PT018
        self._output += self.process.stdout.read() or b""
        line, newline, _ = self._output.partition(b"\n")
        if newline:
            try:
                ready = read_json(line)
            except ValueError:
                ready = None
            if not isinstance(ready, dict) or not isinstance(ready.get("address"), str):
                self.kill(f"has not said where it serves, but '{one_line(line.decode(errors='replace'), 100)}'", UNWELL)
                return
            self.address, self.metrics = ready["address"], ready.get("metrics")
            self._probe = HealthProbe(str(ready.get("probe", self.address)), self._secret)
            self.serving = True
            if self._failures:
                LOGGER.warning("agent %s is serving again on %s", self.agent_id, self.address)

    def _crashed(self, code: int, now: float) -> None:
        stable = self.serving and now - self._started_at >= STABLE_S
        self._failures = 1 if stable else self._failures + 1
        self.serving = False
        self._close()
        if code == BundleError.exit_code:
            self._kept.refuse_path()
        if code in _HOPELESS and self.address is None:
            raise _HOPELESS[code](
                f"agent '{self.agent_id}' ended with exit code {code}, which starting it again cannot help; its own "
                "messages are above"
            )
        if self._failures >= MAX_FAILURES:
            raise FleetError(
                f"agent '{self.agent_id}' keeps failing: exit code {code}, {self._failures} failures in a row; "
                "its own messages are above"
            )
        self.restarts[self._ended] += 1
        self._ended = EXITED
        pause = _pause(self._failures)
        LOGGER.warning("agent %s ended with exit code %d, starting it again in %g s", self.agent_id, code, pause)
        self._start_at = now + pause

    def _close(self) -> None:
        if self._probe is not None:
            self._probe.close()
            self._probe = None
        if self.control is not None:
            self.control.close()
            self.control = None
        if self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()
        self.process = None


def _pause(failures: int) -> float:
    """Seconds until a member is started again that has failed so often in a row."""
    return min(FIRST_PAUSE_S * 2.0 ** min(failures - 1, 60), LONGEST_PAUSE_S)


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
            _Member(
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
