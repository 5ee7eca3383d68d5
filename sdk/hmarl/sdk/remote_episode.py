"""What an agent's client decides, without any input or output: steps, deadlines, retries, rejoining, fallbacks.

``RemoteEpisode.act`` is a generator. It yields what is to be done over the network (``Act``, ``Start``, ``Pause``), is
sent the response or thrown a ``CallFailed``, and returns the action. The synchronous and the asyncio client drive the
same generator, so that both behave alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, NamedTuple

import grpc
import numpy as np
import numpy.typing as npt

from hmarl.agent.v1 import agent_pb2
from hmarl.runtime.bundle import AgentModel, ObservationError, from_json
from hmarl.runtime.session import InstructionChoice
from hmarl.sdk.agent import Action, AgentError, AgentStatistics, agent_spec
from hmarl.sdk.errors import UsageError
from hmarl.sdk.fallback import Fallback, Situation
from hmarl.sdk.spaces import AgentSpec

_RETRY_PAUSE_S = 0.01
_WIRE_DTYPES: dict[agent_pb2.DataType, np.dtype[Any]] = {
    agent_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    agent_pb2.DATA_TYPE_INT64: np.dtype("<i8"),
    agent_pb2.DATA_TYPE_BOOL: np.dtype("?"),
}
_WIRE_TYPES: dict[np.dtype[Any], agent_pb2.DataType] = {dtype: code for code, dtype in _WIRE_DTYPES.items()}
_INT64 = agent_pb2.DATA_TYPE_INT64
_CHOICES = {
    None: agent_pb2.INSTRUCTION_CHOICE_UNSPECIFIED,
    "argmax": agent_pb2.INSTRUCTION_CHOICE_ARGMAX,
    "sample": agent_pb2.INSTRUCTION_CHOICE_SAMPLE,
    "common": agent_pb2.INSTRUCTION_CHOICE_COMMON,
}
# No answer of ours: the server is gone or going. Repeating a step is safe, it never advances the state twice.
_LOST = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN})
# The request itself is wrong: trying again or standing in with a fallback would hide a mistake of the program.
_CALLERS_FAULT = frozenset(
    {
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)


class Act(NamedTuple):
    """Send this request, over a stream as it is or its ``act`` in a call, and wait for the response to its step."""

    request: agent_pb2.StreamActRequest
    step: int
    timeout_s: float


@dataclass(frozen=True)
class Start:
    """Start an episode."""

    request: agent_pb2.StartEpisodeRequest
    timeout_s: float


@dataclass(frozen=True)
class Pause:
    """Do nothing for a while."""

    seconds: float


Operation = Act | Start | Pause


class CallFailed(Exception):
    """A remote call ended with a status other than OK."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code = code
        self.details = details


class RemoteEpisode:
    """The state of one agent's episode as its client sees it.

    Args:
        spec: the agent.
        fallback: decides when no fresh action arrives in time.
        timeout_s: seconds an act may take, all retries included.
        rejoin: whether to start the episode again, at the current step, when the server has forgotten the session.
        diagnostics: whether to ask for the policy's further outputs.
        source: the server's address, for messages.
    """

    def __init__(
        self, spec: AgentSpec, *, fallback: Fallback, timeout_s: float, rejoin: bool, diagnostics: bool, source: str
    ) -> None:
        self.spec = spec
        self.statistics = AgentStatistics()
        self.session_id: str | None = None
        self._fallback = fallback
        self.timeout_s = timeout_s
        self._rejoin = rejoin
        self._diagnostics = diagnostics
        self._source = source
        self._start: agent_pb2.StartEpisodeRequest | None = None
        self._next_step = 0
        self._last_action: int | npt.NDArray[Any] | None = None
        self._last_step = 0
        self._last_time_s = -math.inf

    def starting(
        self, seed: int, sample: bool, instruction_choice: InstructionChoice | None, first_step: int
    ) -> agent_pb2.StartEpisodeRequest:
        """The request that starts an episode.

        Raises:
            UsageError: an argument out of range.
        """
        if instruction_choice not in _CHOICES:
            raise UsageError(f"instruction_choice: got '{instruction_choice}', expected one of argmax, sample, common")
        for name, value in (("seed", seed), ("first_step", first_step)):
            if not 0 <= value < 2**64:
                raise UsageError(f"{name}: got {value}, expected 0 <= {name} < 2**64")
        return agent_pb2.StartEpisodeRequest(
            seed=int(seed),
            sample=sample,
            instruction_choice=_CHOICES[instruction_choice],
            first_step=int(first_step),
            diagnostics=self._diagnostics,
        )

    def started(self, request: agent_pb2.StartEpisodeRequest, response: agent_pb2.StartEpisodeResponse) -> None:
        """A new episode has begun: nothing of an earlier one may be held on to."""
        self._start = request
        self.session_id = response.session_id
        self._next_step = request.first_step
        self._last_action, self._last_time_s = None, -math.inf

    def ending(self) -> agent_pb2.EndEpisodeRequest | None:
        """The request that ends the episode, which is forgotten here; None when there is none."""
        session_id, self.session_id = self.session_id, None
        return None if session_id is None else agent_pb2.EndEpisodeRequest(session_id=session_id)

    def act(
        self, observation: npt.NDArray[np.float32], action_mask: npt.NDArray[np.bool_] | None
    ) -> Generator[Operation, Any, Action]:
        """Everything that one call of ``act`` does.

        Raises:
            ObservationError: wrong shape, dtype or content; the step is not used up.
            StaleActionError: no fresh action in time, and the fallback allows none instead.
            AgentError: no episode was started, or the server refuses the request.
        """
        begin = time.monotonic()
        request = self._request(observation, action_mask)
        step = self._next_step
        # Used up before anything is sent: whatever interrupts this call, the step is never sent with other content.
        self._next_step += 1
        self.statistics.acts += 1
        try:
            outcome = yield from self._attempts(request, action_mask, begin + self.timeout_s)
        except (ObservationError, AgentError):
            self._next_step = step
            raise
        if isinstance(outcome, str):
            return self._stand_in(self._situation(step, action_mask, outcome), begin)
        return self._accept(outcome, begin)

    def _attempts(
        self, message: agent_pb2.StreamActRequest, action_mask: npt.NDArray[np.bool_] | None, deadline: float
    ) -> Generator[Operation, Any, agent_pb2.ActResponse | str]:
        """Ask until a fresh reply arrives or the time is over; then the reason is returned."""
        reason, request = "the time allowed is over", message.act
        step = request.step
        while (left := deadline - time.monotonic()) > 0:
            try:
                reply: agent_pb2.ActResponse = yield Act(message, step, left)
                return reply
            except CallFailed as failure:
                reason = f"agent '{self.spec.id}' at {self._source}: {failure}"
                if failure.code is grpc.StatusCode.INVALID_ARGUMENT:
                    raise ObservationError(failure.details) from failure
                if failure.code in _CALLERS_FAULT:
                    raise AgentError(reason) from failure
                if failure.code is grpc.StatusCode.NOT_FOUND:
                    # Freshness first: what has gone stale must not be brought back by an automatic reconnection.
                    if not self._rejoin or not self._fallback.may_rejoin(self._situation(step, action_mask, reason)):
                        return f"{reason}; call reset(seed, first_step={step}) to join the episode again"
                    yield from self._join_again(request, deadline)
                elif failure.code in _LOST:
                    yield Pause(min(_RETRY_PAUSE_S, max(deadline - time.monotonic(), 0.0)))
                else:
                    return reason
        return reason

    def _join_again(self, request: agent_pb2.ActRequest, deadline: float) -> Generator[Operation, Any, None]:
        """Start the episode again at the request's step, and put the new session into the request."""
        assert self._start is not None
        start = agent_pb2.StartEpisodeRequest()
        start.CopyFrom(self._start)
        start.first_step = request.step
        try:
            response = yield Start(start, max(deadline - time.monotonic(), 0.0))
        except CallFailed:
            return  # the next attempt says what is wrong, as long as there is time for one
        self.session_id = request.session_id = response.session_id
        self.statistics.rejoins += 1
        self.statistics.state_resets += response.state_reset_mid_episode

    def _request(
        self, observation: npt.NDArray[np.float32], action_mask: npt.NDArray[np.bool_] | None
    ) -> agent_pb2.StreamActRequest:
        if self.session_id is None:
            raise AgentError(f"agent '{self.spec.id}': no episode has been started: call reset(seed) first")
        message = agent_pb2.StreamActRequest()
        request = message.act  # filled in place: nothing is copied into the message of a stream
        request.session_id = self.session_id
        request.step = self._next_step
        encode(observation, "observation", request.observation)
        if action_mask is not None:
            encode(action_mask, "action_mask", request.action_mask)
        return message

    def _accept(self, reply: agent_pb2.ActResponse, begin: float) -> Action:
        now = time.monotonic()
        action, step, missed = decode_action(reply.action), reply.step, reply.missed_steps
        self._last_action, self._last_step, self._last_time_s = action, step, now
        self.statistics.missed_steps += missed
        tensors = reply.diagnostics.items() if self._diagnostics else ()
        return Action(
            action=action,
            step=step,
            fresh=True,
            missed_steps=missed,
            replayed=reply.replayed,
            diagnostics={name: decode(tensor) for name, tensor in tensors},
            latency_s=now - begin,
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
            latency_s=time.monotonic() - begin,
        )

    def _situation(self, step: int, action_mask: npt.NDArray[np.bool_] | None, reason: str) -> Situation:
        return Situation(
            step=step,
            action_space=self.spec.action_space,
            action_mask=action_mask,
            last_action=None if self._last_action is None else np.asarray(self._last_action),
            age_s=time.monotonic() - self._last_time_s,
            age_steps=math.inf if self._last_action is None else step - self._last_step,
            reason=reason,
        )


def take_reply(
    response: agent_pb2.StreamActResponse, step: int, statistics: AgentStatistics
) -> agent_pb2.ActResponse | None:
    """A stream's response when it belongs to ``step``; None for a late one, which is counted and dropped.

    Raises:
        CallFailed: the server answered this step with an error.
    """
    if response.WhichOneof("result") == "act":
        act = response.act
        if act.step == step:
            return act
    elif response.error.step == step:
        raise CallFailed(_status(response.error.code), response.error.message)
    statistics.late_replies += 1
    return None


def _status(number: int) -> grpc.StatusCode:
    for code in grpc.StatusCode:
        if code.value[0] == number:
            return code
    return grpc.StatusCode.UNKNOWN


def described_agent(info: agent_pb2.GetAgentInfoResponse, source: str) -> AgentSpec:
    """The spec of the agent that a server describes.

    Raises:
        AgentError: the description is not one that this version understands.
    """
    try:
        return agent_spec(from_json(AgentModel, info.agent_manifest_json))
    except ValueError as error:
        raise AgentError(
            f"{source}: agent '{info.agent_id}' (hmarl {info.hmarl_version}) describes itself in an unknown form: "
            f"{error}"
        ) from error


def encode(array: npt.NDArray[Any], name: str, tensor: agent_pb2.Tensor) -> None:
    """Fill an empty message with an array.

    Raises:
        ObservationError: not an array of a dtype that can be sent.
    """
    data_type = _WIRE_TYPES.get(array.dtype) if isinstance(array, np.ndarray) else None
    if data_type is not None:
        tensor.data_type = data_type
        tensor.shape.extend(array.shape)
        tensor.data = array.tobytes()
        return
    got = array.dtype if isinstance(array, np.ndarray) else f"a {type(array).__name__}"
    raise ObservationError(f"{name}: got {got}, expected a NumPy array of float32, int64 or bool")


def decode_action(tensor: agent_pb2.Tensor) -> int | npt.NDArray[Any]:
    """The action of a message: an int when it is a scalar, else an array.

    Raises:
        AgentError: the message does not fit its own description.
    """
    data = tensor.data
    # Most actions; the way is short because a client that wakes up for one reply has cold caches.
    if tensor.data_type == _INT64 and len(data) == 8 and not tensor.shape:
        return int.from_bytes(data, "little", signed=True)
    array = decode(tensor)
    return array if array.ndim else array.item()


def decode(tensor: agent_pb2.Tensor) -> npt.NDArray[Any]:
    """The array of a message, in native byte order.

    Raises:
        AgentError: the message does not fit its own description.
    """
    dtype = _WIRE_DTYPES.get(tensor.data_type)
    shape = tuple(tensor.shape)
    if dtype is None or len(tensor.data) != dtype.itemsize * math.prod(shape):
        raise AgentError(f"got a tensor of type {tensor.data_type}, shape {shape} and {len(tensor.data)} bytes")
    return np.frombuffer(tensor.data, dtype).astype(dtype.newbyteorder("=")).reshape(shape)
