"""One agent's process, started, watched and started again by its fleet."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Sequence

from hmarl.agent.v1.framing import SCHEME
from hmarl.runtime.children import python
from hmarl.runtime.commands._security import SECRET_VARIABLE, handed_over
from hmarl.runtime.commands.agent import PARENT_VARIABLE, SHA256_VARIABLE
from hmarl.runtime.control import CONTROL_VARIABLE, Channel
from hmarl.runtime.errors import BundleError, HmarlError, UsageError, one_line
from hmarl.runtime.health_probe import CHECK_EVERY_S, HealthProbe
from hmarl.runtime.kept_bundle import KeptBundle
from hmarl.runtime.plain_json import read_json
from hmarl.runtime.team_reload import STUCK

LOGGER = logging.getLogger("hmarl.fleet")
START_LIMIT_S = 60.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 10.0
STABLE_S = 10.0  # a member that has served for this long starts with a clean record
MAX_FAILURES = 6
FROZEN_AFTER = 5  # questions about its health in a row that a member does not answer
KILL_LIMIT_S = 5.0  # what the kernel gets to end a process that was killed
# Exit codes of wrong options and of a bad bundle. Where a member has never served, starting it again cannot help, and
# the fleet ends in the same way. What has served was in order: a file is being replaced, or was tampered with.
_HOPELESS: dict[int, type[HmarlError]] = {kind.exit_code: kind for kind in (UsageError, BundleError)}

# Why a member was started again.
EXITED, FROZEN, UNWELL, SLOW = "exited", "frozen", "unwell", "slow"
RESTARTS = (EXITED, FROZEN, UNWELL, SLOW, STUCK)


class FleetError(HmarlError):
    """An agent cannot be kept running."""


class Member:
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
