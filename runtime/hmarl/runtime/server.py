"""The server of one agent: one service behind one door or two, gRPC's and that of frames.

What is answered is in ``service``; how requests come in, in ``grpc_door`` and ``frames_door``. gRPC is imported only
where it is served.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from hmarl.runtime.access import Access
from hmarl.runtime.errors import UsageError
from hmarl.runtime.health_service import PROCESS, HealthService
from hmarl.runtime.liveness import Liveness
from hmarl.runtime.message_limits import ROOM_BYTES, request_limit_bytes
from hmarl.runtime.registry import SessionRegistry
from hmarl.runtime.repeats import RepeatLog
from hmarl.runtime.self_probe import SelfProbe
from hmarl.runtime.service import SERVICE, AgentService
from hmarl.runtime.session import Policy
from hmarl.runtime.settings import ServerSettings
from hmarl.runtime.sweeper import Sweeper, Swept
from hmarl.runtime.telemetry import Telemetry

if TYPE_CHECKING:
    from hmarl.runtime.frames_door import FramesDoor
    from hmarl.runtime.grpc_door import GrpcDoor

LOGGER = logging.getLogger("hmarl.agent")
_POLL_S = 0.05
_STOP_GRACE_S = 0.2  # for requests that are being answered, once all episodes have ended
_QUIET_S = 1.0  # while draining, a session without a request for this long counts as finished


class AgentServer:
    """Listens from construction on, reports NOT_SERVING until ``serve``, and drains in ``stop``.

    Args:
        settings: where and how to listen.
        telemetry: told what is answered.

    Attributes:
        address: where it listens, as clients take it: ``host:port`` with the real port, or ``unix:path``, over gRPC;
            ``frames:path`` where it does not speak that.
        frames_address: ``frames:path``; None where it has no such door.
        probe_address: where the process itself, and its supervisor, ask how it is; ``address`` unless that is TLS.
        access: who gets in; counts what does not, and reloads.
        telemetry: told what is answered.

    Raises:
        UsageError: an address is malformed, others would reach it unasked, or a file of its security cannot be used.
        HmarlError: an address cannot be bound, for example because it is in use.
    """

    def __init__(self, settings: ServerSettings, telemetry: Telemetry | None = None) -> None:
        if not settings.grpc and settings.frames is None:
            raise UsageError("--no-grpc: got it without --frames, expected at least one door")
        self._settings = settings
        self.telemetry = telemetry or Telemetry()
        self._log = RepeatLog(LOGGER)
        self._liveness = Liveness()
        self._well = True  # as health was told last
        self.access = Access(settings.security, self._log)
        self._service = AgentService(self._liveness, self._log, self.telemetry)
        self._health = HealthService(("", SERVICE, PROCESS))
        self._grpc = self._open_grpc() if settings.grpc else None
        try:
            self._frames = None if settings.frames is None else self._open_frames()
        except BaseException:
            self._close_grpc()
            raise
        self.frames_address = None if self._frames is None else self._frames.address
        door = self._grpc or self._frames
        assert door is not None
        self.address, self.probe_address = door.address, door.probe_address
        self._stopped = threading.Event()
        self.access.start(self._stopped)
        self.telemetry.start(self._stopped)
        lines: list[Swept] = [] if self._grpc is None else [*self._grpc.lines.values()]
        lines += [] if self._frames is None else [self._frames]
        Sweeper(lines, self._log).start(self._stopped)  # also while running episodes go on to their ends

    def _open_grpc(self) -> GrpcDoor:
        from hmarl.runtime.grpc_door import GrpcDoor  # noqa: PLC0415 - an agent may be served without gRPC

        return GrpcDoor(self._settings, self._service, self._health, self._liveness, self.access, self.telemetry)

    def _open_frames(self) -> FramesDoor:
        from hmarl.runtime.frames_door import FramesDoor  # noqa: PLC0415 - not always needed

        return FramesDoor(self._settings, self._service, self._health, self.access.guard, self.telemetry, self._log)

    def _close_grpc(self) -> None:
        if self._grpc is not None:
            self._grpc.stop(0.0)
            self._grpc.free_address()

    @property
    def where(self) -> str:
        """All addresses, for people."""
        return " and ".join(dict.fromkeys(filter(None, (self.address, self.frames_address))))

    @property
    def alive(self) -> bool:
        """Whether acts get through, seen by a probe that goes the way they go; what a watchdog should be told."""
        return self._liveness.alive

    @property
    def serving(self) -> bool:
        """Whether health is SERVING."""
        return self.policy is not None and self._well and not self._health.closing.is_set()

    @property
    def policy(self) -> Policy | None:
        """What new episodes are played with; None while it is being loaded."""
        registry = self._service.loaded
        return None if registry is None else registry.policy

    @property
    def open_sessions(self) -> int:
        """How many are open."""
        registry = self._service.loaded
        return 0 if registry is None else len(registry)

    @property
    def open_streams(self) -> int:
        """How many are open: streams over gRPC, and connections of frames."""
        return sum(door.open_streams for door in (self._grpc, self._frames) if door is not None)

    def serve(self, policy: Policy) -> None:
        """Accept episodes of a policy, which is loaded and warm, and report SERVING.

        Raises:
            UsageError: its requests are larger than ``max_request_bytes``.
        """
        wanted = request_limit_bytes(policy.agent) - ROOM_BYTES
        if wanted > self._settings.max_request_bytes:
            raise UsageError(
                f"max_request_bytes: got {self._settings.max_request_bytes}, but agent '{policy.agent.id}' needs more "
                f"than {wanted}; take request_limit_bytes(bundle.agent(...))"
            )
        settings = self._settings
        registry = SessionRegistry(
            policy, settings.max_sessions, settings.session_ttl_s, per_peer=settings.security.client_sessions
        )
        self._service.registry = registry
        ways = [door.asking for door in (self._grpc, self._frames) if door is not None]
        probe = SelfProbe(ways, policy.agent, registry.own_id, self._liveness, self._tell_health)
        self._tell_health()
        probe.start(self._health.closing)

    @property
    def sessions(self) -> SessionRegistry:
        """The open sessions, and the policy that new ones get; for ``hmarl.runtime.reload``.

        Raises:
            DrainingError: the policy is not loaded yet.
        """
        return self._service.registry

    def _tell_health(self) -> None:
        """The truth about acts, after a probe, and while there has been none yet."""
        well, before = self._liveness.well, self._well
        self._well = well
        self._health.report({"": well, SERVICE: well, PROCESS: self._liveness.alive})
        if well != before and not self._health.closing.is_set():
            LOGGER.warning("SERVING again" if well else f"NOT_SERVING: {self._liveness.trouble}")

    def stop(self, grace_s: float | None = None) -> None:
        """Start no more episodes, report NOT_SERVING, let those that are running go on for a while, then stop.

        Args:
            grace_s: seconds that running episodes get, by default those of the settings; without requests for a second
                it ends sooner.
        """
        grace_s = self._settings.grace_s if grace_s is None else grace_s
        registry = self._service.loaded
        if registry is not None:
            registry.drain()  # first: whoever reads NOT_SERVING may rely on it
        self._health.enter_graceful_shutdown()
        if registry is not None:
            LOGGER.info("draining, open sessions: %d", len(registry))
            deadline = time.monotonic() + grace_s
            while time.monotonic() < deadline and not registry.quiet(min(_QUIET_S, grace_s)):
                time.sleep(_POLL_S)
        for door in (self._frames, self._grpc):
            if door is not None:
                door.stop(_STOP_GRACE_S)
        self.telemetry.flush()
        self._stopped.set()
        self.free_address()

    def free_address(self) -> None:
        """Remove the names of the Unix sockets, if there are any."""
        for door in (self._grpc, self._frames):
            if door is not None:
                door.free_address()
