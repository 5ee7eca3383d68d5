"""The gRPC server of one agent: ``hmarl.agent.v1``, health and reflection.

The servicer converts, calls the session and converts back; what happens in between lives in modules that know no
transport.

A synchronous server with a thread pool: on one machine its round trips are about a tenth shorter than those of
``grpc.aio``. A stream occupies a thread while it is open, so streams are limited in number and never starve unary calls
and health checks.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from hmarl.agent.v1 import agent_pb2, agent_pb2_grpc
from hmarl.runtime.errors import (
    DrainingError,
    HmarlError,
    NonFiniteError,
    ObservationError,
    SessionError,
    SessionLimitError,
    UnknownSessionError,
    UsageError,
)
from hmarl.runtime.manifest import to_json
from hmarl.runtime.registry import SessionRegistry
from hmarl.runtime.session import Action, InstructionChoice, Policy
from hmarl.runtime.shutdown import stop_server
from hmarl.runtime.unix_sockets import BoundPath, claim
from hmarl.runtime.wire import to_array, write_tensor

LOGGER = logging.getLogger("hmarl.agent")
SERVICE = "hmarl.agent.v1.AgentService"
UNARY_THREADS = 16
_POLL_S = 0.05
_STOP_GRACE_S = 0.2  # for calls that are being answered, once all episodes have ended
_QUIET_S = 1.0  # while draining, a session without a request for this long counts as finished

# First match wins: subclasses before their bases.
_STATUS: tuple[tuple[type[HmarlError], grpc.StatusCode], ...] = (
    (UnknownSessionError, grpc.StatusCode.NOT_FOUND),
    (SessionLimitError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DrainingError, grpc.StatusCode.UNAVAILABLE),
    (SessionError, grpc.StatusCode.FAILED_PRECONDITION),
    (ObservationError, grpc.StatusCode.INVALID_ARGUMENT),
    (UsageError, grpc.StatusCode.INVALID_ARGUMENT),
    # The request is in order and so is the program: clients let their fallback decide, and go on.
    (NonFiniteError, grpc.StatusCode.OUT_OF_RANGE),
)
_CHOICES: dict[int, InstructionChoice | None] = {
    agent_pb2.INSTRUCTION_CHOICE_UNSPECIFIED: None,
    agent_pb2.INSTRUCTION_CHOICE_ARGMAX: "argmax",
    agent_pb2.INSTRUCTION_CHOICE_SAMPLE: "sample",
    agent_pb2.INSTRUCTION_CHOICE_COMMON: "common",
}
Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(frozen=True)
class ServerSettings:
    """How an agent is served.

    Attributes:
        listen: ``HOST:PORT`` (port 0 takes a free one) or ``unix:PATH``.
        max_sessions: episodes open at once.
        session_ttl_s: seconds after which an idle session may be forgotten.
        max_streams: StreamAct calls open at once.
        reflection: whether clients may ask for the protocol.
    """

    listen: str = "127.0.0.1:50051"
    max_sessions: int = 1024
    session_ttl_s: float = 600.0
    max_streams: int = 64
    reflection: bool = True


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The status code and message of an error; what nobody foresaw is logged and told by a correlation id only."""
    for kind, code in _STATUS:
        if isinstance(error, kind):
            return code, str(error)
    correlation_id = secrets.token_hex(8)
    LOGGER.error("internal error %s", correlation_id, exc_info=error)
    return grpc.StatusCode.INTERNAL, f"internal error {correlation_id}; the details are in the agent's log"


def _mapped(method: Method) -> Method:
    """Turn every error of a unary method into a gRPC status."""

    @functools.wraps(method)
    def call(self: AgentServicer, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return method(self, request, context)
        except Exception as error:
            code, message = status_of(error)
        context.abort(code, message)

    return call  # type: ignore[return-value]


class AgentServicer(agent_pb2_grpc.AgentServiceServicer):
    """Converts requests, calls the session, converts replies."""

    def __init__(self, max_streams: int) -> None:
        self._registry: SessionRegistry | None = None
        self._streams = threading.BoundedSemaphore(max_streams)
        self._max_streams = max_streams

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
        self._registry = registry

    @_mapped
    def GetAgentInfo(
        self, request: agent_pb2.GetAgentInfoRequest, context: grpc.ServicerContext
    ) -> agent_pb2.GetAgentInfoResponse:
        """Who is served."""
        return agent_info(self.registry.policy)

    @_mapped
    def StartEpisode(
        self, request: agent_pb2.StartEpisodeRequest, context: grpc.ServicerContext
    ) -> agent_pb2.StartEpisodeResponse:
        """Start an episode and return its session."""
        if request.instruction_choice not in _CHOICES:
            raise UsageError(
                f"instruction_choice: got {request.instruction_choice}, expected one of {sorted(_CHOICES)}"
            )
        session = self.registry.policy.session()
        session.reset(
            request.seed,
            sample=request.sample,
            instruction_choice=_CHOICES[request.instruction_choice],
            first_step=request.first_step,
            diagnostics=request.diagnostics,
        )
        return agent_pb2.StartEpisodeResponse(
            session_id=self.registry.add(session),
            state_reset_mid_episode=request.first_step > 0 and session.policy.recurrent,
            agent_id=session.policy.agent.id,
            bundle_sha256=session.policy.bundle.sha256,
        )

    @_mapped
    def Act(self, request: agent_pb2.ActRequest, context: grpc.ServicerContext) -> agent_pb2.ActResponse:
        """One action for one step."""
        response = agent_pb2.ActResponse()
        self._act(request, response)
        return response

    def StreamAct(
        self, request_iterator: Iterator[agent_pb2.StreamActRequest], context: grpc.ServicerContext
    ) -> Iterator[agent_pb2.StreamActResponse]:
        """One response per request, in order; a wrong request is answered in-band and the stream goes on."""
        if not self._streams.acquire(blocking=False):
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self._max_streams} streams are open, which is the limit (--max-streams): close one, or use Act",
            )
        try:
            for request in request_iterator:
                yield self._stream_reply(request)
        finally:
            self._streams.release()

    @_mapped
    def EndEpisode(
        self, request: agent_pb2.EndEpisodeRequest, context: grpc.ServicerContext
    ) -> agent_pb2.EndEpisodeResponse:
        """End an episode and forget its session."""
        session = self.registry.remove(request.session_id)
        return agent_pb2.EndEpisodeResponse(steps=session.steps, missed_steps=session.missed_steps)

    def _stream_reply(self, request: agent_pb2.StreamActRequest) -> agent_pb2.StreamActResponse:
        """The reply to one request of a stream; an error belongs to the request, not to the stream."""
        response = agent_pb2.StreamActResponse()
        try:
            self._act(request.act, response.act)
            return response
        except Exception as error:
            code, message = status_of(error)
        refusal = agent_pb2.StreamActError(step=request.act.step, code=code.value[0], message=message)
        return agent_pb2.StreamActResponse(error=refusal)

    def _act(self, request: agent_pb2.ActRequest, response: agent_pb2.ActResponse) -> None:
        """Fill an empty response, in place: nothing is copied into the reply of a stream."""
        session = self.registry.get(request.session_id)
        observation = to_array(request.observation, "observation")
        mask = to_array(request.action_mask, "action_mask") if request.HasField("action_mask") else None
        write_action(response, session.act(observation, mask, step=request.step))


def write_action(response: agent_pb2.ActResponse, action: Action) -> None:
    """Fill an empty response with an action; what has its default value is not on the wire, and not written."""
    response.step = action.step
    write_tensor(response.action, action.action)
    if action.missed_steps:
        response.missed_steps = action.missed_steps
    if action.replayed:
        response.replayed = True
    for name, array in action.diagnostics.items():
        write_tensor(response.diagnostics[name], array)


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
        hmarl_version=_version(),
        control_period_seconds=manifest.environment.control_period_s or 0.0,
        environment_json=to_json(manifest.environment),
    )


def _version() -> str:
    try:
        return version("hmarl")
    except PackageNotFoundError:
        return "unknown"


class AgentServer:
    """Listens from construction on, reports NOT_SERVING until ``serve``, and drains in ``stop``.

    Args:
        settings: where and how to listen.

    Attributes:
        address: where it listens, as gRPC clients take it: ``host:port`` with the real port, or ``unix:path``.

    Raises:
        UsageError: ``listen`` is malformed.
        HmarlError: the address cannot be bound, for example because it is in use.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._servicer = AgentServicer(settings.max_streams)
        self._health = health.HealthServicer(experimental_non_blocking=True)
        self._report(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._server = grpc.server(
            ThreadPoolExecutor(settings.max_streams + UNARY_THREADS, thread_name_prefix="grpc"),
            options=[("grpc.so_reuseport", 0)],
        )
        agent_pb2_grpc.add_AgentServiceServicer_to_server(self._servicer, self._server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if settings.reflection:
            _add_reflection(self._server)
        self.address = _bind(self._server, settings.listen)
        unix_path = self.address.removeprefix("unix:")
        self._bound_path = BoundPath(unix_path) if unix_path != self.address else None
        self._server.start()

    def serve(self, policy: Policy) -> None:
        """Accept episodes of a policy, which is loaded and warm, and report SERVING."""
        self._servicer.registry = SessionRegistry(policy, self._settings.max_sessions, self._settings.session_ttl_s)
        self._report(health_pb2.HealthCheckResponse.SERVING)

    def stop(self, grace_s: float) -> None:
        """Start no more episodes, report NOT_SERVING, let those that are running go on for a while, then stop.

        Args:
            grace_s: seconds that running episodes get; without requests for a second it ends sooner.
        """
        registry = self._servicer._registry
        if registry is not None:
            registry.drain()  # first: whoever reads NOT_SERVING may rely on it
        self._health.enter_graceful_shutdown()
        if registry is not None:
            LOGGER.info("draining, %d sessions open", len(registry))
            deadline = time.monotonic() + grace_s
            while time.monotonic() < deadline and not registry.quiet(min(_QUIET_S, grace_s)):
                time.sleep(_POLL_S)
        stop_server(self._server, _STOP_GRACE_S)
        self.free_address()

    def free_address(self) -> None:
        """Remove the name of the Unix socket, if it is one."""
        if self._bound_path is not None:
            self._bound_path.remove()

    def _report(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in ("", SERVICE):
            self._health.set(service, status)


def _add_reflection(server: grpc.Server) -> None:
    from grpc_reflection.v1alpha import reflection  # noqa: PLC0415 - not needed with --no-reflection

    names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)


def _bind(server: grpc.Server, listen: str) -> str:
    """Bind an address and return it with the real port."""
    if listen.startswith("unix:"):
        claim(listen.removeprefix("unix:"))
        host = ""
    else:
        host, port = parse_address(listen)
        listen = f"{host}:{port}"
        if not _is_loopback(host):
            LOGGER.warning(
                "listening on %s without encryption or authentication: anyone who can reach it can use it", host
            )
    try:
        bound = server.add_insecure_port(listen)
    except RuntimeError:
        bound = 0
    if not bound:
        raise HmarlError(
            f"cannot listen on {listen}: the address is in use or not one of this machine; "
            "choose another with --listen, or port 0 for any free one"
        )
    return listen if not host else f"{host}:{bound}"


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


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
