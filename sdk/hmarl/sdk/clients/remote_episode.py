"""What an agent's client decides, without any input or output: steps, deadlines, retries, rejoining, fallbacks.

``RemoteEpisode.act`` is a generator. It yields what is to be done over the network (an ``Operation``), is sent the
outcome or thrown a ``CallFailed``, and returns the action; so are ``start`` and ``describe``. The synchronous and
the asyncio client drive the same generators, so that both behave alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.messages import INSTRUCTION_CHOICES, write_act
from hmarl.agent.v1.status import Code
from hmarl.agent.v1.tensors import WireError, to_action, to_own_array
from hmarl.runtime.actions import ActionCheck
from hmarl.runtime.choices import InstructionChoice, checked_choice
from hmarl.runtime.errors import ObservationError
from hmarl.runtime.inputs import InputCheck, checked_integer
from hmarl.runtime.manifest import AgentModel, from_json
from hmarl.runtime.message_limits import reply_limit_bytes
from hmarl.sdk.clients import call_metadata
from hmarl.sdk.clients.agent import Action, AgentStatistics, agent_spec, mismatch
from hmarl.sdk.clients.link import LEAST_RECEIVE_LIMIT_BYTES, LinkWatch
from hmarl.sdk.clients.operations import (
    Abandon,
    Act,
    CallFailed,
    Describe,
    End,
    Examine,
    Operation,
    Pause,
    Reconnect,
    Script,
    Start,
)
from hmarl.sdk.clock import now_s
from hmarl.sdk.errors import AgentError, OtherBundleError, UsageError
from hmarl.sdk.fallback import Fallback, Situation
from hmarl.sdk.spaces import branch_sizes

if TYPE_CHECKING:
    from hmarl.sdk.clients.recording import ClientRecorder

_RETRY_PAUSE_S = 0.01
_START_PAUSE_S = 0.02
_EXAMINED_AFTER_S = 0.5  # without an answer, while connecting; sooner where there is less than twice that
_LONGEST_LOOK_S = 2.0  # at what is wrong with a connection
# No answer of ours: the server is gone or going. Repeating a step is safe, it never advances the state twice.
_LOST = frozenset({Code.UNAVAILABLE, Code.UNKNOWN})
# The request itself is wrong: trying again or standing in with a fallback would hide a mistake of the program.
_CALLERS_FAULT = frozenset(
    {
        Code.FAILED_PRECONDITION,
        Code.UNIMPLEMENTED,
        Code.UNAUTHENTICATED,
        Code.PERMISSION_DENIED,
    }
)


def describe(watch: LinkWatch, deadline: float) -> Generator[Operation, Any, agent_pb2.GetAgentInfoResponse]:
    """Ask who is served, again while the server is not there yet.

    Raises:
        CallFailed: no answer, or an unusual one.
        AgentError: none will ever come, because of how the client or the agent is set up.
    """
    examined = False
    while True:
        begin = now_s()
        left = max(deadline - begin, 0.0)
        limit_s = left if examined else min(left / 2, _EXAMINED_AFTER_S)
        try:
            info: agent_pb2.GetAgentInfoResponse = yield Describe(limit_s)
        except CallFailed as failure:
            if failure.code is Code.DEADLINE_EXCEEDED and not examined and now_s() < deadline:
                examined = True
                yield Examine(min((deadline - now_s()) / 2, _LONGEST_LOOK_S))
                continue
            if not _worth_retrying(failure, deadline):
                raise
        else:
            watch.connected(now_s() - begin)
            return info
        yield Pause(_START_PAUSE_S)


def _worth_retrying(failure: CallFailed, deadline: float) -> bool:
    """Whether a server that is still loading its policy, or is about to be replaced, should be asked again."""
    return failure.code is Code.UNAVAILABLE and now_s() + _START_PAUSE_S < deadline


def _is_refused_bundle(failure: CallFailed, request: agent_pb2.StartEpisodeRequest) -> bool:
    """Whether the server does not hold the bundle that the request asks for."""
    return failure.code is Code.FAILED_PRECONDITION and bool(request.bundle_sha256)


class _Nothing(NamedTuple):
    """What kept a fresh action: a kind, to be counted, and the reason in words."""

    kind: str
    reason: str


@dataclass
class _Rejoin:
    """An episode that is to be joined again: how it is started, and why."""

    request: agent_pb2.StartEpisodeRequest
    nothing: _Nothing


class RemoteEpisode:
    """The state of one agent's episode as its client sees it.

    Args:
        info: what the server said when the client connected: agent, bundle and spaces are those of every session.
        watch: judges the connection.
        fallback: decides when no fresh action arrives in time.
        timeout_s: seconds an act may take, all retries included.
        rejoin: whether to start the episode again, at the current step, when the server has forgotten the session.
        diagnostics: whether to ask for the policy's further outputs.
        allow_bundle_change: whether the agent may come back with another bundle, of the same spaces.
        source: the server's address, for messages.
        recorder: records its acts; None: nothing does.

    Raises:
        AgentError: the description is not one that this version understands.
    """

    def __init__(
        self,
        info: agent_pb2.GetAgentInfoResponse,
        watch: LinkWatch,
        *,
        fallback: Fallback,
        timeout_s: float,
        rejoin: bool,
        diagnostics: bool,
        allow_bundle_change: bool,
        source: str,
        recorder: ClientRecorder | None = None,
    ) -> None:
        model = described_model(info, source)
        self.info = info
        self.spec = agent_spec(model)
        self.statistics = AgentStatistics()
        self.session_id: str | None = None
        self.timeout_s = timeout_s
        self.watch = watch
        self._receive_limit_bytes = LEAST_RECEIVE_LIMIT_BYTES
        self._allow_replies_of(model)
        self._inputs = InputCheck(
            self.spec.observation_shape,
            branch_sizes(self.spec.action_space_model) if self.spec.has_action_mask else None,
            self.spec.observation_dtype,
        )
        self._action_form = self.spec.action_shape, self.spec.action_dtype
        self._action_problem = ActionCheck(self.spec.action_space_model).problem
        self._fallback = fallback
        self._rejoin = rejoin
        self._diagnostics = diagnostics
        self._allow_bundle_change = allow_bundle_change
        self._source = source
        self._recorder = recorder
        self._start: agent_pb2.StartEpisodeRequest | None = None
        self._rejoining: _Rejoin | None = None
        self._next_step = 0
        self._last_action: int | npt.NDArray[Any] | None = None
        self._last_step = 0
        self._last_time_s = -math.inf

    def starting(
        self,
        seed: int,
        sample: bool,
        instruction_choice: InstructionChoice | None,
        first_step: int,
        bundle_sha256: str | None = None,
    ) -> agent_pb2.StartEpisodeRequest:
        """The request that starts an episode; one with a bundle is played on that alone.

        Raises:
            UsageError: an argument out of range.
        """
        choice = checked_choice(instruction_choice)
        if not isinstance(sample, bool | np.bool_):
            raise UsageError(f"sample: got {sample!r}, expected True or False")
        return agent_pb2.StartEpisodeRequest(
            seed=checked_integer("seed", seed),
            sample=bool(sample),
            instruction_choice=INSTRUCTION_CHOICES[choice],
            first_step=checked_integer("first_step", first_step),
            diagnostics=self._diagnostics,
            bundle_sha256=bundle_sha256 or "",
        )

    def current_bundle(self, deadline: float) -> Generator[Operation, Any, str]:
        """The bundle that new episodes get.

        Raises:
            CallFailed: no answer.
            AgentError: another agent is served by now.
        """
        info = yield from describe(self.watch, deadline)
        self._check_agent(info.agent_id)
        return info.bundle_sha256

    def start(self, request: agent_pb2.StartEpisodeRequest, deadline: float) -> Generator[Operation, Any, None]:
        """Start an episode; nothing of an earlier one may be held on to.

        Raises:
            CallFailed: the server does not start it.
            OtherBundleError: another bundle is served by now, or one that the episode has to be played on is not held.
            AgentError: another agent is served by now.
        """
        self._rejoining = None
        while True:
            try:
                response = yield from self._begin(request, request.bundle_sha256, deadline)
                break
            except CallFailed as failure:
                if _is_refused_bundle(failure, request):
                    raise OtherBundleError(f"{self._source}: {failure.details}") from failure
                late = failure.code is Code.DEADLINE_EXCEEDED and now_s() < deadline
                if not late and not _worth_retrying(failure, deadline):
                    yield Abandon()
                    raise
            if not late:
                yield Pause(_START_PAUSE_S)
        self._start = request
        self.session_id = response.session_id
        self._next_step = request.first_step
        self._last_action, self._last_time_s = None, -math.inf
        if self._recorder is not None:
            self._recorder.began(request, response.session_id, self.info)

    def skip(self, steps: int) -> None:
        """Go on with a later step; the server counts those between as missed.

        Raises:
            UsageError: no number of steps.
        """
        self._next_step += checked_integer("steps", steps)

    def ending(self) -> agent_pb2.EndEpisodeRequest | None:
        """The request that ends the episode, which is forgotten here; None when there is none."""
        session_id, self.session_id = self.session_id, None
        if self._recorder is not None:
            self._recorder.ended()
        return None if session_id is None else agent_pb2.EndEpisodeRequest(session_id=session_id)

    def act(
        self, observation: npt.NDArray[Any], action_mask: npt.NDArray[np.bool_] | None
    ) -> Generator[Operation, Any, Action]:
        """Everything that one call of ``act`` does.

        Raises:
            ObservationError: wrong shape, dtype or content; the step is not used up.
            UsageError: no step follows the last one, 2**64 - 1.
            StaleActionError: no fresh action in time, and the fallback allows none instead.
            AgentError: no episode was started, the server refuses the request, what it replies is no action of the
                agent, or another agent or bundle is served.
        """
        asked = self._act(observation, action_mask)
        return asked if self._recorder is None else self._recorded(asked, self._recorder, observation, action_mask)

    def _recorded(
        self,
        asked: Generator[Operation, Any, Action],
        recorder: ClientRecorder,
        observation: npt.NDArray[Any],
        action_mask: npt.NDArray[np.bool_] | None,
    ) -> Generator[Operation, Any, Action]:
        """An act whose outcome is recorded, whatever it is."""
        step, began_ns = self._next_step, recorder.asks(self.timeout_s)
        try:
            action = yield from asked
        except BaseException as error:  # also when a program waits no longer: the agent may have acted
            recorder.refused(began_ns, step, observation, action_mask, error, self.session_id)
            raise
        recorder.acted(began_ns, observation, action_mask, action, self.session_id or "")
        return action

    def _act(
        self, observation: npt.NDArray[Any], action_mask: npt.NDArray[np.bool_] | None
    ) -> Generator[Operation, Any, Action]:
        begin = now_s()
        session_id = self.session_id
        if session_id is None:
            raise AgentError(f"agent '{self.spec.id}': no episode has been started: call reset(seed) first")
        observation, action_mask = self._inputs.checked(observation, action_mask)
        message = self._request(session_id, observation, action_mask)
        step = self._next_step
        # Used up before anything is sent: whatever interrupts this call, the step is never sent with other content.
        self._next_step = step + 1
        self.statistics.acts += 1
        deadline = begin + self.timeout_s
        try:
            outcome = yield from self._attempts(message, step, action_mask, begin, deadline)
        except ObservationError:
            self._next_step = step
            raise
        if not isinstance(outcome, _Nothing):
            action = self._accept(outcome, step, action_mask, begin, deadline)
            if action is not None:
                return action
            outcome = _Nothing("LATE_REPLY", "the reply was taken after the time allowed was over")
        self.statistics.fallback_reasons[outcome.kind] += 1
        if self._recorder is not None:
            self._recorder.falls_back(outcome.kind)
        return self._stand_in(self._situation(step, action_mask, outcome.reason), begin)

    def _attempts(
        self,
        message: agent_pb2.StreamActRequest,
        step: int,
        action_mask: npt.NDArray[np.bool_] | None,
        begin: float,
        deadline: float,
    ) -> Generator[Operation, Any, agent_pb2.ActResponse | _Nothing]:
        """Ask until a fresh reply arrives or the time is over; then the reason is returned."""
        nothing = _Nothing(Code.DEADLINE_EXCEEDED.name, "the time allowed is over")
        lost, watch = 0, self.watch
        while begin < deadline:
            if self._rejoining is not None:
                kept_from = yield from self._join_again(message.act, action_mask, deadline)
                if kept_from is not None:
                    return kept_from
                begin = now_s()
                continue
            if watch.given_up:
                yield from self._reconnect()
            left, patience_s = deadline - begin, watch.patience_left_s
            allowed = patience_s if patience_s < left else left
            try:
                reply: agent_pb2.ActResponse = yield Act(message, step, allowed)
            except CallFailed as failure:
                watch.failed(failure.code, begin, allowed, failure.heard)
                nothing = _Nothing(failure.code.name, f"agent '{self.spec.id}' at {self._source}: {failure}")
                if failure.code in _LOST:
                    lost += 1  # an idle stream or connection that was ended is seen only now: once more, at once
                    if lost > 1:
                        yield Pause(min(_RETRY_PAUSE_S, max(deadline - now_s(), 0.0)))
                elif self._is_final(failure, nothing.reason, step):
                    return nothing
                begin = now_s()
            else:
                watch.answered(now_s() - begin)
                return reply
        return nothing if self._rejoining is None else self._rejoining.nothing

    def _is_final(self, failure: CallFailed, reason: str, step: int) -> bool:
        """Whether the fallback has to decide, whatever time is left, because of what the server answered.

        Raises:
            ObservationError: the server refuses the observation or mask.
            AgentError: the server refuses the request.
        """
        if failure.code is Code.DEADLINE_EXCEEDED:
            return False
        if failure.code is Code.INVALID_ARGUMENT:
            raise ObservationError(failure.details) from failure
        if failure.code in _CALLERS_FAULT:
            raise AgentError(f"{reason}; the next act goes on with step {step + 1}") from failure
        if failure.code is Code.NOT_FOUND:
            self._rejoining = _Rejoin(self._start_at(step), _Nothing(failure.code.name, reason))
            return False
        return True

    def _reconnect(self) -> Generator[Operation, Any, None]:
        """Go on over a new connection; the old one does not answer any longer."""
        yield Reconnect(self.watch.connect_timeout_s, self._receive_limit_bytes)
        self.watch.replaced()

    def _call(self, make: Callable[[float], Operation], deadline: float) -> Script:
        """One request and its response, other than an act's.

        Args:
            make: the operation, from the seconds that it may take.
            deadline: when the time is over.

        Raises:
            CallFailed: whatever ended it; with DEADLINE_EXCEEDED there may be time left for another attempt.
        """
        watch = self.watch
        if watch.given_up:
            yield from self._reconnect()
        begin = now_s()
        allowed = min(max(deadline - begin, 0.0), watch.patience_left_s)
        try:
            response = yield make(allowed)
        except CallFailed as failure:
            watch.failed(failure.code, begin, allowed, failure.heard)
            raise
        watch.answered(now_s() - begin)
        return response

    def _start_at(self, step: int) -> agent_pb2.StartEpisodeRequest:
        """The request that joins the episode again, at first on its own bundle, which the process may still hold."""
        assert self._start is not None
        start = agent_pb2.StartEpisodeRequest()
        start.CopyFrom(self._start)
        start.first_step = step
        start.bundle_sha256 = self.info.bundle_sha256
        return start

    def _join_again(
        self, request: agent_pb2.ActRequest, action_mask: npt.NDArray[np.bool_] | None, deadline: float
    ) -> Generator[Operation, Any, _Nothing | None]:
        """Start the episode again, and put the new session into the request; returns what keeps it from that."""
        rejoin = self._rejoining
        assert rejoin is not None
        reason = rejoin.nothing.reason
        assert self._start is not None
        pinned = self._start.bundle_sha256
        # Freshness first, and asked each time: what has gone stale must not be brought back by a reconnection.
        if not self._rejoin or not self._fallback.may_rejoin(self._situation(request.step, action_mask, reason)):
            self._rejoining = None
            yield Abandon()
            advice = f"call reset(seed, first_step={request.step}) to join the episode again"
            return _Nothing(rejoin.nothing.kind, f"{reason}; {advice}")
        known = self.info
        try:
            response = yield from self._begin(rejoin.request, pinned, deadline)
        except CallFailed as failure:
            if failure.code is Code.DEADLINE_EXCEEDED:
                return None  # it stays on its way; the next act waits on
            if _is_refused_bundle(failure, rejoin.request) and not pinned:
                self._rejoining = self._without_bundle(rejoin)  # whether another one will do is judged by what comes
                return None
            self._rejoining = None
            if _is_refused_bundle(failure, rejoin.request):
                raise OtherBundleError(f"{rejoin.nothing.reason}; joining again: {failure.details}") from failure
            if failure.code not in _LOST:
                return _Nothing(failure.code.name, f"{reason}; joining again: {failure}")
            yield Pause(min(_RETRY_PAUSE_S, max(deadline - now_s(), 0.0)))
            return None
        except AgentError:
            self._rejoining = None
            raise
        self._rejoining = None
        self.session_id = request.session_id = response.session_id
        self.statistics.rejoins += 1
        self.statistics.state_resets += response.state_reset_mid_episode
        if self._recorder is not None and self.info is not known:  # what comes now is another bundle's
            self._recorder.began(rejoin.request, response.session_id, self.info)
        return None

    @staticmethod
    def _without_bundle(rejoin: _Rejoin) -> _Rejoin:
        request = agent_pb2.StartEpisodeRequest()
        request.CopyFrom(rejoin.request)
        request.ClearField("bundle_sha256")
        return _Rejoin(request, rejoin.nothing)

    def _begin(
        self, request: agent_pb2.StartEpisodeRequest, pinned: str, deadline: float
    ) -> Generator[Operation, Any, agent_pb2.StartEpisodeResponse]:
        """A new session of the agent that this client is for, and of the bundle ``pinned``, if one is named.

        Raises:
            CallFailed: there is none yet.
            AgentError: another agent or bundle answers.
        """
        response: agent_pb2.StartEpisodeResponse = yield from self._call(partial(Start, request), deadline)
        try:
            yield from self._identify(response, pinned, deadline)
        except (CallFailed, AgentError):
            yield End(response.session_id)
            raise
        return response

    def _identify(
        self, response: agent_pb2.StartEpisodeResponse, pinned: str, deadline: float
    ) -> Generator[Operation, Any, None]:
        """Make sure that a session is one of the agent, bundle and spaces that this client is for.

        A session is known to the process that started it only, so that nothing can change hands after this.
        """
        info, known = self.info, self.info
        agent_id, sha256 = response.agent_id, response.bundle_sha256
        if (agent_id, sha256) == (known.agent_id, known.bundle_sha256) and pinned in ("", sha256):
            return
        may_change = pinned == sha256 if pinned else self._allow_bundle_change
        if not agent_id or (agent_id == known.agent_id and may_change):
            info = yield from self._call(partial(Describe, bundle_sha256=sha256), deadline)
            if agent_id and (agent_id, sha256) != (info.agent_id, info.bundle_sha256):
                raise CallFailed(Code.UNAVAILABLE, "the server changed while it was asked who is served")
            agent_id, sha256 = info.agent_id, info.bundle_sha256
        self._check_agent(agent_id)
        if pinned and sha256 != pinned:
            raise OtherBundleError(
                f"{self._source}: agent '{agent_id}': got bundle {sha256}, expected {pinned}, on which the episode is "
                "to be played: start it anew, with all agents of the team, on the bundle that is served"
            )
        if sha256 == known.bundle_sha256:
            return
        if not pinned and not self._allow_bundle_change:
            raise OtherBundleError(
                f"{self._source}: agent '{agent_id}': got bundle {sha256}, expected {known.bundle_sha256} "
                f"('{known.bundle_name}'), which was served there before: make a new client, or one with "
                "allow_bundle_change=True"
            )
        self._take_over(info)

    def _check_agent(self, agent_id: str) -> None:
        """Refuse another agent than this client is for."""
        if agent_id != self.info.agent_id:
            raise AgentError(
                f"{self._source}: got agent '{agent_id}', expected '{self.info.agent_id}', which was served there "
                "before: its actions are not taken; serve the right agent there, or make a new client"
            )

    def _take_over(self, info: agent_pb2.GetAgentInfoResponse) -> None:
        """Go on with another bundle, whose spaces have to be the same."""
        model = described_model(info, self._source)
        spec = agent_spec(model)
        problem = mismatch(spec, self.spec)
        if problem is None and spec.has_action_mask != self.spec.has_action_mask:
            problem = "action mask: got a policy with a mask input, the one before had none"
        if problem is not None:
            raise AgentError(
                f"{self._source}: agent '{info.agent_id}' of bundle '{info.bundle_name}' does not fit: {problem}"
            )
        self._allow_replies_of(model)
        self.info = info
        if self._recorder is not None:
            self._recorder.takes_over(model)

    def _allow_replies_of(self, model: AgentModel) -> None:
        limit = reply_limit_bytes(model)
        if limit > self._receive_limit_bytes:
            self._receive_limit_bytes = limit
            self.watch.given_up = True  # the limit of a connection is fixed when it is made

    def _request(
        self, session_id: str, observation: npt.NDArray[Any], action_mask: npt.NDArray[np.bool_] | None
    ) -> agent_pb2.StreamActRequest:
        message = agent_pb2.StreamActRequest()
        write_act(message.act, session_id, checked_integer("step", self._next_step), observation, action_mask)
        metadata = call_metadata.current()
        if metadata:  # what a unary call carries beside its message
            message.metadata.update(metadata)
        return message

    def _accept(
        self,
        reply: agent_pb2.ActResponse,
        step: int,
        action_mask: npt.NDArray[np.bool_] | None,
        begin: float,
        deadline: float,
    ) -> Action | None:
        """The action of a reply, None when it is taken too late.

        Raises:
            AgentError: the reply is not what this agent answers at this step, given this mask.
        """
        missed = reply.missed_steps
        diagnostics = {}
        try:
            if reply.step != step:
                raise WireError(f"step: got {reply.step}, expected {step}")
            action = to_action(reply.action, "action", *self._action_form)
            problem = self._action_problem(action, action_mask)
            if problem is not None:
                raise WireError(problem)
            if self._diagnostics:
                diagnostics = {name: to_own_array(tensor, name) for name, tensor in reply.diagnostics.items()}
        except WireError as error:
            raise AgentError(
                f"agent '{self.spec.id}' at {self._source}: step {step}: invalid reply: {error}"
            ) from error
        if missed:
            self.statistics.missed_steps += missed
        now = now_s()
        # The reply may have come in time and waited: this process was stopped, or had no processor, in between.
        if now > deadline:
            self.statistics.late_replies += 1
            return None
        self._last_action, self._last_step, self._last_time_s = action, step, now
        self.statistics.fresh += 1
        return Action(
            action=action,
            step=step,
            fresh=True,
            missed_steps=missed,
            replayed=reply.replayed,
            diagnostics=diagnostics,
            latency_s=self.statistics.took(now - begin),
        )

    def _stand_in(self, situation: Situation, begin: float) -> Action:
        self.statistics.fallbacks += 1
        action = self._fallback.decide(situation)
        return Action(
            action=action.copy() if action.ndim else action.item(),
            step=situation.step,
            fresh=False,
            missed_steps=0,
            replayed=False,
            diagnostics={},
            latency_s=self.statistics.took(now_s() - begin),
        )

    def _situation(self, step: int, action_mask: npt.NDArray[np.bool_] | None, reason: str) -> Situation:
        return Situation(
            step=step,
            action_space=self.spec.action_space_model,
            action_mask=action_mask,
            last_action=None if self._last_action is None else np.asarray(self._last_action),
            age_s=now_s() - self._last_time_s,
            age_steps=math.inf if self._last_action is None else step - self._last_step,
            reason=reason,
        )


def described_model(info: agent_pb2.GetAgentInfoResponse, source: str) -> AgentModel:
    """The manifest's entry of the agent that a server describes.

    Raises:
        AgentError: the description is not one that this version understands.
    """
    try:
        return from_json(AgentModel, info.agent_manifest_json)
    except ValueError as error:
        raise AgentError(
            f"{source}: agent '{info.agent_id}' (hmarl {info.hmarl_version}) describes itself in an unknown form: "
            f"{error}"
        ) from error
