"""The gRPC server of one agent: ``hmarl.agent.v1``, health and reflection.

The servicer calls the session with what a request says and converts what comes back; what happens in between lives in
modules that know no transport, and what gRPC needs in ``door``.

A synchronous server with thread pools: on one machine its round trips are about a tenth shorter than those of
``grpc.aio``. A call occupies a thread while it is open, so each kind of call has threads and limits of its own: acts
and health checks are served whatever else is open.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.messages import choice_name, read_act, refusal, write_reply
from hmarl.agent.v1.tensors import WireError
from hmarl.runtime import __version__
from hmarl.runtime.access import Access, check_exposure, is_loopback
from hmarl.runtime.choices import checked_choice
from hmarl.runtime.door import Context, Line, Sweeper, cut, decoded, queue_limit, server_options
from hmarl.runtime.errors import (
    DrainingError,
    ForbiddenError,
    HmarlError,
    NonFiniteError,
    ObservationError,
    QuotaError,
    RequestError,
    SessionError,
    SessionLimitError,
    TakenError,
    UnauthenticatedError,
    UnknownModelError,
    UnknownServiceError,
    UnknownSessionError,
    UsageError,
)
from hmarl.runtime.health_service import PROCESS, HealthService
from hmarl.runtime.health_service import SERVICE_NAME as HEALTH_SERVICE
from hmarl.runtime.identity import Caller, Guard
from hmarl.runtime.liveness import Liveness
from hmarl.runtime.manifest import to_json
from hmarl.runtime.message_limits import ROOM_BYTES, request_limit_bytes
from hmarl.runtime.registry import SessionRegistry
from hmarl.runtime.repeats import RepeatLog
from hmarl.runtime.request_ids import request_of
from hmarl.runtime.self_probe import SelfProbe
from hmarl.runtime.session import Action, Policy, PolicySession
from hmarl.runtime.settings import ServerSettings
from hmarl.runtime.shutdown import stop_server
from hmarl.runtime.telemetry import Telemetry
from hmarl.runtime.unix_sockets import BoundPath, claim

LOGGER = logging.getLogger("hmarl.agent")
SERVICE = "hmarl.agent.v1.AgentService"
UNARY_THREADS = 128
_POLL_S = 0.05
_STOP_GRACE_S = 0.2  # for calls that are being answered, once all episodes have ended
_QUIET_S = 1.0  # while draining, a session without a request for this long counts as finished
_STREAM_IDLE_S = 60.0
_REFLECTION_IDLE_S = 10.0
_REFLECTIONS, _WATCHES, _CHECK_THREADS = 4, 32, 32

# First match wins: subclasses before their bases.
_STATUS: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (WireError, grpc.StatusCode.INVALID_ARGUMENT),
    (UnknownSessionError, grpc.StatusCode.NOT_FOUND),
    (UnknownServiceError, grpc.StatusCode.NOT_FOUND),
    (UnknownModelError, grpc.StatusCode.NOT_FOUND),
    (SessionLimitError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (TakenError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (QuotaError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (UnauthenticatedError, grpc.StatusCode.UNAUTHENTICATED),
    (ForbiddenError, grpc.StatusCode.PERMISSION_DENIED),
    (DrainingError, grpc.StatusCode.UNAVAILABLE),
    (SessionError, grpc.StatusCode.FAILED_PRECONDITION),
    (ObservationError, grpc.StatusCode.INVALID_ARGUMENT),
    (RequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (UsageError, grpc.StatusCode.INVALID_ARGUMENT),
    # The request is in order and so is the program: clients let their fallback decide, and go on.
    (NonFiniteError, grpc.StatusCode.OUT_OF_RANGE),
)
_OF_THE_REQUEST = (SessionError, ObservationError, UsageError)  # whatever else an act raises is the policy's failure


class AgentServicer:
    """Takes requests, calls the session, makes replies.

    Args:
        liveness: told how acts go.
        log: for what peers can cause.
        guard: knows who calls.
        telemetry: told of acts.
    """

    def __init__(self, liveness: Liveness, log: RepeatLog, guard: Guard, telemetry: Telemetry) -> None:
        self._registry: SessionRegistry | None = None
        self._telemetry = telemetry
        self._session_act = telemetry.acting(PolicySession.act)
        self._reply_to = telemetry.streaming(self._stream_reply)
        self._shapes: tuple[list[int], list[int] | None] = ([], None)
        self._liveness = liveness
        self._log = log
        self._guard = guard
        self._logged_ids: dict[str, str] = {}

    @property
    def registry(self) -> SessionRegistry:
        """The open sessions.

        Raises:
            DrainingError: the policy is not loaded yet (clients should retry, as they do when a process stops).
        """
        if self._registry is None:
            raise DrainingError("the policy is still being loaded; wait for grpc.health.v1 to report SERVING")
        return self._registry

    @registry.setter
    def registry(self, registry: SessionRegistry) -> None:
        agent = registry.policy.agent
        self._shapes = agent.observation.shape, agent.action_mask.shape if agent.action_mask is not None else None
        self._registry = registry

    def get_agent_info(
        self, request: agent_pb2.GetAgentInfoRequest, context: Context
    ) -> agent_pb2.GetAgentInfoResponse:
        """Who is served, now or in a bundle that is named."""
        return agent_info(self.registry.policy_of(request.bundle_sha256))

    def start_episode(self, request: agent_pb2.StartEpisodeRequest, context: Context) -> agent_pb2.StartEpisodeResponse:
        """Start an episode and return its session."""
        session = self.registry.policy_of(request.bundle_sha256).session()
        caller = self._guard.caller(context)
        session.reset(
            request.seed,
            sample=request.sample,
            instruction_choice=checked_choice(choice_name(request.instruction_choice)),
            first_step=request.first_step,
            diagnostics=request.diagnostics,
        )
        return agent_pb2.StartEpisodeResponse(
            session_id=self.registry.add(session, caller.name, caller.owner),
            state_reset_mid_episode=request.first_step > 0 and session.policy.recurrent,
            agent_id=session.policy.agent.id,
            bundle_sha256=session.policy.bundle.sha256,
        )

    def act(self, request: agent_pb2.ActRequest, context: Context) -> agent_pb2.ActResponse:
        """One action for one step."""
        response = agent_pb2.ActResponse()
        self._act(request, response, self._guard.caller(context))
        return response

    def stream_act(
        self, line: Line, bodies: Iterator[bytes], context: Context
    ) -> Iterator[agent_pb2.StreamActResponse]:
        """One response per request, in order; a wrong request is answered in-band and the stream goes on."""
        place = line.place(context, "streams (--max-streams)")
        try:
            caller = self._guard.caller(context)
            admit = functools.partial(line.admit, context)
            for body in bodies:
                line.places.use(place)
                yield self._reply_to(body, context, caller, admit)
        finally:
            line.places.free(place)

    def end_episode(self, request: agent_pb2.EndEpisodeRequest, context: Context) -> agent_pb2.EndEpisodeResponse:
        """End an episode and forget its session."""
        session = self.registry.remove(request.session_id, self._guard.caller(context).owner)
        return agent_pb2.EndEpisodeResponse(steps=session.steps, missed_steps=session.missed_steps)

    def status_of(self, error: Exception) -> tuple[grpc.StatusCode, str]:
        """The status code and message of an error; any other error is logged and told by a correlation id only.

        An error of one kind that comes again and again is logged now and then, and told by the id of the one logged.
        """
        for kind, code in _STATUS:
            if isinstance(error, kind):
                if isinstance(error, RequestError):
                    self._log.say("unreadable", logging.WARNING, f"refused: {error}")
                return code, cut(str(error))
        kind_name = type(error).__name__
        correlation_id = secrets.token_hex(8)
        if self._log.say(kind_name, logging.ERROR, f"internal error {correlation_id}", error):
            self._logged_ids[kind_name] = correlation_id
        correlation_id = self._logged_ids.get(kind_name, correlation_id)
        return grpc.StatusCode.INTERNAL, f"internal error {correlation_id}; the details are in the agent's log"

    def _stream_reply(
        self, body: bytes, context: Context, caller: Caller, admit: Callable[[], None]
    ) -> agent_pb2.StreamActResponse:
        """The reply to one request of a stream; an error belongs to the request, not to the stream.

        Raises:
            UnauthenticatedError: the caller is let in no longer, and the stream has to end.
            ForbiddenError: likewise.
        """
        request, response = agent_pb2.StreamActRequest(), agent_pb2.StreamActResponse()
        try:
            try:
                request = decoded(agent_pb2.StreamActRequest, body)
            finally:  # what is no message counts, too
                admit()
            self._act(request.act, response.act, caller)
            return response
        except (UnauthenticatedError, ForbiddenError):
            raise
        except Exception as error:
            with request_of(request.metadata.items(), context.invocation_metadata()):
                code, message = self.status_of(error)
        return refusal(request.act.step, code, message)

    def client_act(self, session: PolicySession, observation: Any, mask: Any, step: int | None) -> Action:
        """A client's act, noted."""
        try:
            action = self._session_act(session, observation, mask, step=step)
        except Exception as error:
            if not isinstance(error, _OF_THE_REQUEST):
                self._liveness.failed()
            raise
        self._liveness.acted()
        return action

    def caller(self, context: Context) -> Caller:
        """Who calls."""
        return self._guard.caller(context)

    def _act(self, request: agent_pb2.ActRequest, response: agent_pb2.ActResponse, caller: Caller) -> None:
        """Fill an empty response, in place: nothing is copied into the reply of a stream."""
        registry = self.registry
        own = request.session_id == registry.own_id
        if own:
            self._telemetry.own_act()
        session = registry.own() if own else registry.get(request.session_id, caller.owner)
        observation, mask = read_act(request, *self._shapes)
        act = PolicySession.act if own else self.client_act
        action = act(session, observation, mask, step=request.step)
        write_reply(response, action.action, action.step, action.missed_steps, action.replayed, action.diagnostics)


def agent_info(policy: Policy) -> agent_pb2.GetAgentInfoResponse:
    """What a client may want to know about the agent that is served."""
    manifest = policy.bundle.manifest
    return agent_pb2.GetAgentInfoResponse(
        agent_id=policy.agent.id,
        agent_manifest_json=to_json(policy.agent),
        bundle_name=manifest.name,
        bundle_sha256=policy.bundle.sha256,
        algorithm=manifest.algorithm,
        execution_provider=policy.execution_provider,
        hmarl_version=__version__,
        control_period_seconds=manifest.environment.control_period_s or 0.0,
        environment_json=to_json(manifest.environment),
    )


class AgentServer:
    """Listens from construction on, reports NOT_SERVING until ``serve``, and drains in ``stop``.

    Args:
        settings: where and how to listen.
        telemetry: told what is answered.

    Attributes:
        address: where it listens, as gRPC clients take it: ``host:port`` with the real port, or ``unix:path``.
        probe_address: where the process itself, and its supervisor, ask how it is; ``address`` for plaintext.
        access: who gets in; counts what does not, and reloads.
        telemetry: told what is answered.

    Raises:
        UsageError: ``listen`` is malformed, others would reach it unasked, or a file of its security cannot be used.
        HmarlError: the address cannot be bound, for example because it is in use.
    """

    def __init__(self, settings: ServerSettings, telemetry: Telemetry | None = None) -> None:
        self._settings = settings
        self.telemetry = telemetry or Telemetry()
        self._log = RepeatLog(LOGGER)
        self._liveness = Liveness()
        self._well = True  # as health was told last
        self.access = Access(settings.security, self._log)
        self._servicer = AgentServicer(self._liveness, self._log, self.access.guard, self.telemetry)
        self._health = HealthService(("", SERVICE, PROCESS))
        self._lines = self._open_lines()
        self._server = grpc.server(
            self._lines["acts"].pool,
            maximum_concurrent_rpcs=sum(line.capacity for line in self._lines.values())
            + queue_limit(settings.max_sessions),
            options=server_options(settings.max_streams, settings.max_sessions, settings.max_request_bytes),
        )
        for service, methods in self._methods().items():
            self._server.add_registered_method_handlers(service, self.telemetry.methods(methods))
        self.address = _bind(self._server, settings, self.access.server_credentials)
        self.probe_address = self.address if self.access.certificate is None else _bind_aside(self._server)
        unix_path = self.address.removeprefix("unix:")
        self._bound_path = BoundPath(unix_path) if unix_path != self.address else None
        self._server.start()
        self._stopped = threading.Event()
        self.access.start(self._stopped)
        self.telemetry.start(self._stopped)
        Sweeper(self._lines.values(), self._log).start(self._stopped)  # also while running episodes go on to their ends

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
        registry = self._servicer._registry
        return None if registry is None else registry.policy

    @property
    def open_sessions(self) -> int:
        """How many are open."""
        registry = self._servicer._registry
        return 0 if registry is None else len(registry)

    @property
    def open_streams(self) -> int:
        """How many are open."""
        return len(self._lines["streams"].places)

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
        self._servicer.registry = registry
        probe = SelfProbe(
            self.probe_address,
            policy.agent,
            registry.own_id,
            self._liveness,
            self._tell_health,
            self.access.guard.metadata,
        )
        self._tell_health()
        probe.start(self._health.closing)

    @property
    def sessions(self) -> SessionRegistry:
        """The open sessions, and the policy that new ones get; for ``hmarl.runtime.reload``.

        Raises:
            DrainingError: the policy is not loaded yet.
        """
        return self._servicer.registry

    def _tell_health(self) -> None:
        """The truth about acts, after a probe, and while there has been none yet."""
        well, before = self._liveness.well, self._well
        self._well = well
        self._health.report({"": well, SERVICE: well, PROCESS: self._liveness.alive})
        if well != before and not self._health.closing.is_set():
            LOGGER.warning("SERVING again" if well else f"NOT_SERVING: {self._liveness.trouble}")

    def _open_lines(self) -> dict[str, Line]:
        """What shares threads: acts and episodes; streams; health checks; watches of health; reflection."""
        security = self._settings.security
        line = functools.partial(Line, status_of=self._servicer.status_of, guard=self.access.guard)
        return {
            "acts": line("acts", threads=UNARY_THREADS),
            "streams": line(
                "streams",
                places=self._settings.max_streams,
                per_client=security.client_streams,
                idle_limit_s=_STREAM_IDLE_S,
            ),
            "checks": line("checks", threads=_CHECK_THREADS, open_to_all=security.open_health),
            "watches": line("watches", places=_WATCHES, open_to_all=security.open_health),
            "reflection": line(
                "reflection", places=_REFLECTIONS, gives_way_after_s=1.0, idle_limit_s=_REFLECTION_IDLE_S
            ),
        }

    def _reflects(self) -> bool:
        """Whether the protocol is described; unless it is said, only where this machine alone reaches it."""
        wanted, listen = self._settings.reflection, self._settings.listen
        if wanted is not None:
            return wanted
        return listen.startswith("unix:") or is_loopback(parse_address(listen)[0])

    def _methods(self) -> dict[str, dict[str, grpc.RpcMethodHandler]]:
        """All methods by service."""
        servicer, lines = self._servicer, self._lines
        acts, streams, watches = lines["acts"], lines["streams"], lines["watches"]
        methods = {
            SERVICE: {
                "GetAgentInfo": acts.unary(agent_pb2.GetAgentInfoRequest, servicer.get_agent_info),
                "StartEpisode": acts.unary(agent_pb2.StartEpisodeRequest, servicer.start_episode),
                "Act": acts.unary(agent_pb2.ActRequest, servicer.act),
                "EndEpisode": acts.unary(agent_pb2.EndEpisodeRequest, servicer.end_episode),
                "StreamAct": streams.stream(functools.partial(servicer.stream_act, streams)),
            },
            HEALTH_SERVICE: {
                "Check": lines["checks"].unary(health_pb2.HealthCheckRequest, self._health.check),
                "Watch": watches.stream(functools.partial(self._watch, watches)),
            },
        }
        if self._settings.oip:
            methods |= self._inference_methods()
        if self._reflects():
            from hmarl.runtime.reflection import REFLECTION_SERVICE, describe  # noqa: PLC0415 - not always needed

            services = (*methods, REFLECTION_SERVICE)
            line = lines["reflection"]
            methods[REFLECTION_SERVICE] = {
                "ServerReflectionInfo": line.stream(functools.partial(describe, services, line))
            }
        return methods

    def _inference_methods(self) -> dict[str, dict[str, grpc.RpcMethodHandler]]:
        """Those of the Open Inference Protocol."""
        from hmarl.oip import open_inference_pb2 as pb  # noqa: PLC0415 - takes names of other people's
        from hmarl.runtime.open_inference import INFERENCE_SERVICE, InferenceService  # noqa: PLC0415

        service = InferenceService(self._servicer, lambda: self._liveness.alive, lambda: self._health.serving(""))
        acts, checks = self._lines["acts"], self._lines["checks"]
        return {
            INFERENCE_SERVICE: {
                "ServerLive": checks.unary(pb.ServerLiveRequest, service.server_live),
                "ServerReady": checks.unary(pb.ServerReadyRequest, service.server_ready),
                "ModelReady": checks.unary(pb.ModelReadyRequest, service.model_ready),
                "ServerMetadata": acts.unary(pb.ServerMetadataRequest, service.server_metadata),
                "ModelMetadata": acts.unary(pb.ModelMetadataRequest, service.model_metadata),
                "ModelInfer": acts.unary(pb.ModelInferRequest, service.model_infer),
            }
        }

    def _watch(self, line: Line, bodies: Iterator[bytes], context: Context) -> Iterator[Any]:
        """Health as a stream, which stays open."""
        request = decoded(health_pb2.HealthCheckRequest, line.body(bodies, context))
        place = line.place(context, "watches of health")
        try:
            yield from self._health.watch(request, context)
        finally:
            line.places.free(place)

    def stop(self, grace_s: float | None = None) -> None:
        """Start no more episodes, report NOT_SERVING, let those that are running go on for a while, then stop.

        Args:
            grace_s: seconds that running episodes get, by default those of the settings; without requests for a second
                it ends sooner.
        """
        grace_s = self._settings.grace_s if grace_s is None else grace_s
        registry = self._servicer._registry
        if registry is not None:
            registry.drain()  # first: whoever reads NOT_SERVING may rely on it
        self._health.enter_graceful_shutdown()
        if registry is not None:
            LOGGER.info("draining, open sessions: %d", len(registry))
            deadline = time.monotonic() + grace_s
            while time.monotonic() < deadline and not registry.quiet(min(_QUIET_S, grace_s)):
                time.sleep(_POLL_S)
        stop_server(self._server, _STOP_GRACE_S)
        self.telemetry.flush()
        self._stopped.set()
        self.free_address()

    def free_address(self) -> None:
        """Remove the name of the Unix socket, if it is one."""
        if self._bound_path is not None:
            self._bound_path.remove()


def _bind(server: grpc.Server, settings: ServerSettings, credentials: grpc.ServerCredentials | None) -> str:
    """Bind an address and return it with the real port."""
    listen, host, path = settings.listen, "", None
    if listen.startswith("unix:"):
        path = Path(listen.removeprefix("unix:"))
        claim(str(path))
    else:
        host, port = parse_address(listen)
        listen = f"{host}:{port}"
        check_exposure(settings.security, host, None)
    try:
        bound = server.add_insecure_port(listen) if credentials is None else server.add_secure_port(listen, credentials)
    except RuntimeError:
        bound = 0
    if not bound:
        raise HmarlError(
            f"cannot listen on {listen}: the address is in use or not one of this machine; "
            "choose another with --listen, or port 0 for any free one"
        )
    if path is not None:
        _check_socket(settings, path)
    return listen if not host else f"{host}:{bound}"


def _check_socket(settings: ServerSettings, path: Path) -> None:
    """Refuse a socket to which other users may connect, which is known once it is there."""
    try:
        check_exposure(settings.security, "", path)
    except UsageError:
        BoundPath(str(path)).remove()
        raise


def _bind_aside(server: grpc.Server) -> str:
    """A door for the process itself beside that with TLS, for which it may have no certificate. Its secret guards it.

    Calls through it take the way of all others from there on: the same server, threads, locks and policy.
    """
    if sys.platform == "linux":
        address = f"unix-abstract:hmarl-{os.getpid()}-{secrets.token_hex(8)}"  # leaves nothing behind
        if server.add_insecure_port(address):
            return address
    port = server.add_insecure_port("127.0.0.1:0")
    return f"127.0.0.1:{port}"


def parse_address(listen: str) -> tuple[str, int]:
    """Split ``HOST:PORT``; an IPv6 host is in brackets.

    Raises:
        UsageError: malformed.
    """
    match = re.fullmatch(r"(\[[0-9a-fA-F:.%\w]+\]|[^:\[\]\s/]+):(\d+)", listen)
    if match is None:
        raise UsageError(f"listen: got '{listen}', expected HOST:PORT (for example 127.0.0.1:50051) or unix:PATH")
    port = int(match[2])
    if port > 65535:
        raise UsageError(f"listen: port must be between 0 and 65535, got {port}")
    return match[1], port
