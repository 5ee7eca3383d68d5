"""What an agent answers, whichever door a request comes through: ``hmarl.agent.v1`` without a transport.

A door reads requests and says who calls; the service calls the session with what a request says and converts what comes
back. Errors become status codes here and nowhere else.
"""

from __future__ import annotations

import logging
from typing import Any

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.messages import choice_name, read_act, write_reply
from hmarl.agent.v1.status import Code
from hmarl.agent.v1.tensors import WireError
from hmarl.runtime import __version__, hashing
from hmarl.runtime.choices import checked_choice
from hmarl.runtime.errors import (
    DrainingError,
    ForbiddenError,
    NonFiniteError,
    ObservationError,
    QuotaError,
    RequestError,
    SessionError,
    SessionLimitError,
    TakenError,
    TooLargeError,
    TooLateError,
    UnauthenticatedError,
    UnknownModelError,
    UnknownRequestError,
    UnknownServiceError,
    UnknownSessionError,
    UsageError,
)
from hmarl.runtime.identity import Caller
from hmarl.runtime.liveness import Liveness
from hmarl.runtime.manifest import to_json
from hmarl.runtime.registry import SessionRegistry
from hmarl.runtime.repeats import RepeatLog
from hmarl.runtime.session import Action, Policy, PolicySession
from hmarl.runtime.telemetry import Telemetry

SERVICE = "hmarl.agent.v1.AgentService"
_TEXT_LIMIT = 400  # characters of an error's text; longer ones do not fit into HTTP/2's headers

# First match wins: subclasses before their bases.
_STATUS: tuple[tuple[type[Exception], Code], ...] = (
    (WireError, Code.INVALID_ARGUMENT),
    (UnknownSessionError, Code.NOT_FOUND),
    (UnknownServiceError, Code.NOT_FOUND),
    (UnknownModelError, Code.NOT_FOUND),
    (SessionLimitError, Code.RESOURCE_EXHAUSTED),
    (TakenError, Code.RESOURCE_EXHAUSTED),
    (QuotaError, Code.RESOURCE_EXHAUSTED),
    (UnauthenticatedError, Code.UNAUTHENTICATED),
    (ForbiddenError, Code.PERMISSION_DENIED),
    (DrainingError, Code.UNAVAILABLE),
    (SessionError, Code.FAILED_PRECONDITION),
    (ObservationError, Code.INVALID_ARGUMENT),
    (TooLargeError, Code.RESOURCE_EXHAUSTED),
    (TooLateError, Code.DEADLINE_EXCEEDED),
    (UnknownRequestError, Code.UNIMPLEMENTED),
    (RequestError, Code.INVALID_ARGUMENT),
    (UsageError, Code.INVALID_ARGUMENT),
    # The request is in order and so is the program: clients let their fallback decide, and go on.
    (NonFiniteError, Code.OUT_OF_RANGE),
)
_OF_THE_REQUEST = (SessionError, ObservationError, UsageError)  # whatever else an act raises is the policy's failure


class AgentService:
    """Answers requests.

    Args:
        liveness: told how acts go.
        log: for what peers can cause.
        telemetry: told of acts.
    """

    def __init__(self, liveness: Liveness, log: RepeatLog, telemetry: Telemetry) -> None:
        self._registry: SessionRegistry | None = None
        self._telemetry = telemetry
        self._session_act = telemetry.acting(PolicySession.act)
        self._shapes: tuple[list[int], list[int] | None] = ([], None)
        self._liveness = liveness
        self._log = log
        self._logged_ids: dict[str, str] = {}

    @property
    def registry(self) -> SessionRegistry:
        """The open sessions.

        Raises:
            DrainingError: the policy is not loaded yet (clients should retry, as they do when a process stops).
        """
        if self._registry is None:
            raise DrainingError("the policy is still being loaded; wait for health to report SERVING")
        return self._registry

    @registry.setter
    def registry(self, registry: SessionRegistry) -> None:
        agent = registry.policy.agent
        self._shapes = agent.observation.shape, agent.action_mask.shape if agent.action_mask is not None else None
        self._registry = registry

    @property
    def loaded(self) -> SessionRegistry | None:
        """The open sessions; None while the policy is being loaded."""
        return self._registry

    def get_agent_info(self, request: agent_pb2.GetAgentInfoRequest) -> agent_pb2.GetAgentInfoResponse:
        """Who is served, now or in a bundle that is named."""
        return agent_info(self.registry.policy_of(request.bundle_sha256))

    def start_episode(self, request: agent_pb2.StartEpisodeRequest, caller: Caller) -> agent_pb2.StartEpisodeResponse:
        """Start an episode and return its session."""
        session = self.registry.policy_of(request.bundle_sha256).session()
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

    def act(self, request: agent_pb2.ActRequest, response: agent_pb2.ActResponse, caller: Caller) -> None:
        """One action for one step: fill an empty response, in place, so that nothing is copied into what holds it."""
        registry = self.registry
        own = request.session_id == registry.own_id
        if own:
            self._telemetry.own_act()
        session = registry.own() if own else registry.get(request.session_id, caller.owner)
        observation, mask = read_act(request, *self._shapes)
        act = PolicySession.act if own else self.client_act
        action = act(session, observation, mask, step=request.step)
        write_reply(response, action.action, action.step, action.missed_steps, action.replayed, action.diagnostics)

    def end_episode(self, request: agent_pb2.EndEpisodeRequest, caller: Caller) -> agent_pb2.EndEpisodeResponse:
        """End an episode and forget its session."""
        session = self.registry.remove(request.session_id, caller.owner)
        return agent_pb2.EndEpisodeResponse(steps=session.steps, missed_steps=session.missed_steps)

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

    def status_of(self, error: Exception) -> tuple[Code, str]:
        """The status code and message of an error; any other error is logged and told by a correlation id only.

        An error of one kind that comes again and again is logged now and then, and told by the id of the one logged.
        """
        for kind, code in _STATUS:
            if isinstance(error, kind):
                if isinstance(error, RequestError):
                    self._log.say("unreadable", logging.WARNING, f"refused: {error}")
                return code, cut(str(error))
        kind_name = type(error).__name__
        correlation_id = hashing.token_hex(8)
        if self._log.say(kind_name, logging.ERROR, f"internal error {correlation_id}", error):
            self._logged_ids[kind_name] = correlation_id
        correlation_id = self._logged_ids.get(kind_name, correlation_id)
        return Code.INTERNAL, f"internal error {correlation_id}; the details are in the agent's log"


def cut(text: str) -> str:
    """An error's text, short enough to be sent."""
    return text if len(text) <= _TEXT_LIMIT else f"{text[:_TEXT_LIMIT]}…"


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
