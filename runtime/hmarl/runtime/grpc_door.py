"""An agent over gRPC: ``hmarl.agent.v1``, health and reflection, and the address that they are served at.

A synchronous server with thread pools: on one machine its round trips are about a tenth shorter than those of
``grpc.aio``. A call occupies a thread while it is open, so each kind of call has threads and limits of its own: acts
and health checks are served whatever else is open. What gRPC needs around a call is in ``door``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.messages import refusal
from hmarl.runtime import hashing
from hmarl.runtime.access import Access, check_exposure, is_loopback, parse_address
from hmarl.runtime.door import Context, Line, decoded, queue_limit, server_options
from hmarl.runtime.errors import ForbiddenError, HmarlError, UnauthenticatedError, UsageError
from hmarl.runtime.health_service import SERVICE_NAME as HEALTH_SERVICE
from hmarl.runtime.health_service import HealthService
from hmarl.runtime.identity import Caller, Guard
from hmarl.runtime.liveness import Liveness
from hmarl.runtime.registry import SessionRegistry
from hmarl.runtime.request_ids import request_of
from hmarl.runtime.self_probe import Ask
from hmarl.runtime.service import SERVICE, AgentService
from hmarl.runtime.session import Action, PolicySession
from hmarl.runtime.settings import ServerSettings
from hmarl.runtime.shutdown import stop_server
from hmarl.runtime.telemetry import Telemetry
from hmarl.runtime.unix_sockets import BoundPath, claim

UNARY_THREADS = 128
_STREAM_IDLE_S = 60.0
_REFLECTION_IDLE_S = 10.0
_REFLECTIONS, _WATCHES, _CHECK_THREADS = 4, 32, 32
_ACT = "/hmarl.agent.v1.AgentService/Act"


class GrpcServicer:
    """The service's methods, as gRPC calls them.

    Args:
        service: answers.
        guard: knows who calls.
        telemetry: told of acts in streams.
    """

    def __init__(self, service: AgentService, guard: Guard, telemetry: Telemetry) -> None:
        self._service = service
        self._guard = guard
        self._reply_to = telemetry.streaming(self._stream_reply)

    @property
    def registry(self) -> SessionRegistry:
        """See ``AgentService``."""
        return self._service.registry

    def client_act(self, session: PolicySession, observation: Any, mask: Any, step: int | None) -> Action:
        """See ``AgentService``."""
        return self._service.client_act(session, observation, mask, step)

    def caller(self, context: Context) -> Caller:
        """Who calls."""
        return self._guard.caller(context)

    def get_agent_info(
        self, request: agent_pb2.GetAgentInfoRequest, context: Context
    ) -> agent_pb2.GetAgentInfoResponse:
        """Who is served, now or in a bundle that is named."""
        return self._service.get_agent_info(request)

    def start_episode(self, request: agent_pb2.StartEpisodeRequest, context: Context) -> agent_pb2.StartEpisodeResponse:
        """Start an episode and return its session."""
        return self._service.start_episode(request, self._guard.caller(context))

    def act(self, request: agent_pb2.ActRequest, context: Context) -> agent_pb2.ActResponse:
        """One action for one step."""
        response = agent_pb2.ActResponse()
        self._service.act(request, response, self._guard.caller(context))
        return response

    def end_episode(self, request: agent_pb2.EndEpisodeRequest, context: Context) -> agent_pb2.EndEpisodeResponse:
        """End an episode and forget its session."""
        return self._service.end_episode(request, self._guard.caller(context))

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
            self._service.act(request.act, response.act, caller)
            return response
        except (UnauthenticatedError, ForbiddenError):
            raise
        except Exception as error:
            with request_of(request.metadata.items(), context.invocation_metadata()):
                code, message = self._service.status_of(error)
        return refusal(request.act.step, code, message)


class GrpcDoor:
    """Serves from construction on.

    Args:
        settings: where and how to listen.
        service: answers.
        health: how the agent is.
        liveness: whether acts get through.
        access: who gets in.
        telemetry: told what is answered.

    Attributes:
        address: where it listens, as gRPC clients take it: ``host:port`` with the real port, or ``unix:path``.
        probe_address: where the process itself, and its supervisor, ask how it is; ``address`` for plaintext.
        lines: what shares threads, by name.

    Raises:
        UsageError: ``listen`` is malformed, or others would reach it unasked.
        HmarlError: the address cannot be bound, for example because it is in use.
    """

    def __init__(
        self,
        settings: ServerSettings,
        service: AgentService,
        health: HealthService,
        liveness: Liveness,
        access: Access,
        telemetry: Telemetry,
    ) -> None:
        self._settings = settings
        self._service = service
        self._health = health
        self._liveness = liveness
        self._guard = access.guard
        self._servicer = GrpcServicer(service, access.guard, telemetry)
        self.lines = self._open_lines()
        self._server = grpc.server(
            self.lines["acts"].pool,
            maximum_concurrent_rpcs=sum(line.capacity for line in self.lines.values())
            + queue_limit(settings.max_sessions),
            options=server_options(settings.max_streams, settings.max_sessions, settings.max_request_bytes),
        )
        for name, methods in self._methods().items():
            self._server.add_registered_method_handlers(name, telemetry.methods(methods))
        self.address = _bind(self._server, settings, access.server_credentials)
        self.probe_address = self.address if access.certificate is None else _bind_aside(self._server)
        unix_path = self.address.removeprefix("unix:")
        self._bound_path = BoundPath(unix_path) if unix_path != self.address else None
        self._server.start()

    @property
    def open_streams(self) -> int:
        """How many are open."""
        return len(self.lines["streams"].places)

    @contextlib.contextmanager
    def asking(self) -> Iterator[Ask]:
        """The way in for the process itself; see ``SelfProbe``."""
        options = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))
        with grpc.insecure_channel(_reachable(self.probe_address), options) as channel:
            act = channel.unary_unary(_ACT, agent_pb2.ActRequest.SerializeToString, agent_pb2.ActResponse.FromString)

            def ask(request: agent_pb2.ActRequest, timeout_s: float) -> agent_pb2.ActResponse | None:
                try:
                    reply: agent_pb2.ActResponse = act(request, timeout=timeout_s, metadata=self._guard.metadata)
                except grpc.RpcError:
                    return None
                return reply

            yield ask

    def stop(self, grace_s: float) -> None:
        """End all calls; those that are being answered get a moment."""
        stop_server(self._server, grace_s)

    def free_address(self) -> None:
        """Remove the name of the Unix socket, if it is one."""
        if self._bound_path is not None:
            self._bound_path.remove()

    def _open_lines(self) -> dict[str, Line]:
        """What shares threads: acts and episodes; streams; health checks; watches of health; reflection."""
        security = self._settings.security
        line = functools.partial(Line, status_of=self._service.status_of, guard=self._guard)
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
        servicer, lines = self._servicer, self.lines
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

        service = InferenceService(self._servicer, lambda: self._liveness.alive, lambda: self._health.is_serving(""))
        acts, checks = self.lines["acts"], self.lines["checks"]
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
        address = f"unix-abstract:hmarl-{os.getpid()}-{hashing.token_hex(8)}"  # leaves nothing behind
        if server.add_insecure_port(address):
            return address
    port = server.add_insecure_port("127.0.0.1:0")
    return f"127.0.0.1:{port}"


def _reachable(address: str) -> str:
    """The address for a client on this machine: who listens on all interfaces is spoken to over the loopback."""
    host, _, port = address.rpartition(":")
    return {"0.0.0.0": f"127.0.0.1:{port}", "[::]": f"[::1]:{port}"}.get(host, address)
